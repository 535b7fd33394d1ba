"""Tokenise a corpus once: text or conversations to a file of tokens for each split, described by a manifest.

A folder appears complete or not at all (it is written under another name, then renamed), is reused
if its manifest matches the config, and is never overwritten.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import socket
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tokenizers

from hypenet_jax.data.chat import chat_template
from hypenet_jax.data.config import CorpusConfig
from hypenet_jax.data.conversations import conversation_words
from hypenet_jax.data.packing import (
    BestFit,
    DocumentLengths,
    EndToEnd,
    Packing,
    counts_in_words,
)
from hypenet_jax.data.prepared import (
    CONVERSATIONS_FORMAT,
    SPLITS,
    TEXT_FORMAT,
    Prepared,
    open_prepared,
)
from hypenet_jax.data.sources import Conversations, Source, documents, source_fingerprint
from hypenet_jax.data.tokenizer import Tokenizer, TokenizerFile, make_tokenizer
from hypenet_jax.fingerprint import differences, digest

_CHARACTERS_AT_ONCE = 1 << 22

# Which documents are counted and reported; of text, only the first kind.
_REPORTED = {
    "not_utf8": "are not UTF-8 and were left out",
    "cut": "are longer than block_length and were cut there",
    "unanswered": "have no token of the assistant before block_length and were left out",
}

logger = logging.getLogger(__name__)


def prepare(corpus: CorpusConfig) -> Prepared:
    """The prepared folder of a corpus: the existing one, which must match, or else a new one.

    One process does this; the others wait for it and call `open_prepared`.

    Raises:
      ValueError: the folder holds another corpus (the message names the differences), or the
        source has no text.
    """
    folder = Path(corpus.folder)
    recipe = _recipe(corpus)
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "manifest.json").is_file():
            raise ValueError(
                f"{folder} holds other files and no manifest.json; name a new or an empty folder"
            )
        prepared = open_prepared(folder)
        if changed := differences(prepared.manifest["recipe"], recipe):
            raise ValueError(
                f"{folder} was prepared differently in {changed}; name another folder, or remove it"
            )
        return prepared
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(folder)
    try:
        manifest = _write(corpus, recipe, partial)
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for split, counts in manifest["splits"].items():
        logger.info("prepared %s of %s: %s", split, folder, counts_in_words(counts))
    return Prepared(folder, manifest)


def is_held_out(name: str, fraction: float, seed: int) -> bool:
    """Whether a document is held out. Depends on its name alone, so new documents change no other."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _recipe(corpus: CorpusConfig) -> dict[str, Any]:
    """Everything that the content of the folder depends on; the path of the text is not part of it."""
    source = {key: value for key, value in vars(corpus.source).items() if key != "folder"}
    tokenizer: Any = corpus.tokenizer
    is_file = isinstance(tokenizer, TokenizerFile)
    recipe = {
        "format_version": CONVERSATIONS_FORMAT if corpus.holds_conversations else TEXT_FORMAT,
        "source": {"kind": type(corpus.source).__name__, **source},
        "source_fingerprint": source_fingerprint(corpus.source),
        "tokenizer": make_tokenizer(tokenizer, ()).fingerprint if is_file else vars(tokenizer),
        "block_length": corpus.block_length,
        "heldout_fraction": corpus.heldout_fraction,
        "seed": corpus.seed,
    }
    if corpus.min_document_tokens:
        recipe["min_document_tokens"] = corpus.min_document_tokens
    if corpus.holds_conversations:
        template = chat_template(make_tokenizer(tokenizer, ()))
        recipe["chat_template"] = digest(dataclasses.asdict(template))
    return json.loads(json.dumps(recipe))


def _partial(folder: Path) -> Path:
    """A new folder beside the final one, named by host and process; leftovers of killed processes are removed."""
    name = f".{folder.name}.partial-{socket.gethostname()}-"
    for old in folder.parent.iterdir():
        if old.name.startswith(name) and not _is_another(int(old.name.removeprefix(name))):
            logger.warning("removing %s, left by a process that was killed", old)
            shutil.rmtree(old)
    partial = folder.parent / f"{name}{os.getpid()}"
    partial.mkdir()
    return partial


def _is_another(process: int) -> bool:
    """Whether this is the number of another living process of the host."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        pass
    return process != os.getpid()


def _write(corpus: CorpusConfig, recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Writes tokenizer and tokens; returns the manifest."""
    source = corpus.source
    reported: dict[str, list[str]] = {"not_utf8": []}
    if isinstance(source, Conversations):
        reported |= {reason: [] for reason in _REPORTED}
        tokenizer = make_tokenizer(corpus.tokenizer, ())
        found = conversation_words(source, tokenizer, corpus.block_length, reported)
        packing = {split: BestFit(corpus.block_length) for split in SPLITS}
    else:
        tokenizer = make_tokenizer(corpus.tokenizer, (text for _, text in _texts(source, [])))
        found = _tokenised(source, tokenizer, reported["not_utf8"])
        packing = {split: EndToEnd() for split in SPLITS}
    tokenizer.save(folder)
    splits = _write_splits(corpus, folder, found, packing)
    if not splits["train"]["tokens"]:
        raise ValueError(_nothing_to_train_on(corpus, splits["train"]))
    for reason, names in reported.items():
        if names:
            logger.warning("%d documents %s, first %s", len(names), _REPORTED[reason], names[:5])
    return {
        "recipe": recipe,
        "splits": splits,
        **{why: {"count": len(names), "first": names[:20]} for why, names in reported.items()},
        "end_token": tokenizer.end_token,
        "end_id": tokenizer.end_id,
        "vocab_size": tokenizer.vocab_size,
        "tokenizers_version": tokenizers.__version__,
    }


def _write_splits(
    corpus: CorpusConfig,
    folder: Path,
    found: Iterable[tuple[str, np.ndarray]],
    packing: Mapping[str, Packing],
) -> dict[str, dict[str, Any]]:
    """Writes the tokens of named documents; returns what each split holds, and what was left out of it."""
    lengths = {split: DocumentLengths() for split in SPLITS}
    left_out = {split: DocumentLengths() for split in SPLITS}
    with contextlib.ExitStack() as until_end:
        paths = {split: folder / f"{split}.tokens" for split in SPLITS}
        files = {split: until_end.enter_context(path.open("w+b")) for split, path in paths.items()}
        for name, tokens in found:
            held_out = is_held_out(name, corpus.heldout_fraction, corpus.seed)
            split = "heldout" if held_out else "train"
            if len(tokens) < corpus.min_document_tokens:
                left_out[split].add(len(tokens))
                continue
            lengths[split].add(len(tokens))
            _append(files[split], packing[split].add(tokens))
        for split, file in files.items():
            _append(file, packing[split].rest())
        return {
            split: {
                "documents": sum(lengths[split].documents.values()),
                "tokens": _checked(file, corpus.block_length),
                **packing[split].counts,
                "lengths": lengths[split].as_json(),
                **({"left_out": left_out[split].as_json()} if corpus.min_document_tokens else {}),
            }
            for split, file in files.items()
        }


def _nothing_to_train_on(corpus: CorpusConfig, counts: dict[str, Any]) -> str:
    longest, least = counts.get("left_out", {}).get("longest", 0), corpus.min_document_tokens
    if not longest:
        return f"{corpus.source} holds no text for training; name a source with text"
    return (
        f"{corpus.source} has no document for training of min_document_tokens {least}: the longest "
        f"has {longest}. Use at most that; or 0, and join_below in the data of a stage, which joins short documents"
    )


def _append(file: BinaryIO, pieces: Iterable[np.ndarray]) -> None:
    for piece in pieces:
        file.write(piece.astype("<i4").tobytes())


def _texts(source: Source, not_utf8: list[str]) -> Iterator[tuple[str, str]]:
    """Non-empty documents; the names of those that are not UTF-8 are appended to `not_utf8`."""
    for name, text in documents(source):
        if text is None:
            not_utf8.append(name)
        elif text:
            yield name, text


def _tokenised(
    source: Source, tokenizer: Tokenizer, not_utf8: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Tokens of each document with its end token, in order; groups of documents are encoded on all cores."""
    end = np.int32(tokenizer.end_id)
    for group in _groups(_texts(source, not_utf8)):
        encoded = tokenizer.encode_all([text for _, text in group])
        for (name, _), tokens in zip(group, encoded, strict=True):
            if end in tokens:
                raise ValueError(
                    f"{name} holds the end token {tokenizer.end_token!r}; set end_token to a special "
                    "token, which no text holds"
                )
            yield name, np.append(tokens, end)


def _groups(texts: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    group, size = [], 0
    for entry in texts:
        group.append(entry)
        size += len(entry[1])
        if size >= _CHARACTERS_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _checked(file: BinaryIO, block_length: int) -> int:
    """Appends to a file of tokens the CRC-32 of each block; returns the number of tokens."""
    file.seek(0)
    blocks = iter(lambda: file.read(4 * block_length), b"")
    checksums = np.asarray([zlib.crc32(block) for block in blocks], "<u4")
    num_tokens = file.tell() // 4
    file.write(checksums.tobytes())
    return num_tokens
