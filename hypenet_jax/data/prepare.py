"""Tokenise a corpus once: documents to packed rows in ArrayRecord shards, described by a manifest.

A folder appears complete or not at all (it is written under another name, then renamed), is reused
if its manifest matches the config, and is overwritten only on request.
"""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from array_record.python.array_record_module import ArrayRecordWriter

from hypenet_jax.data.config import CorpusConfig
from hypenet_jax.data.packing import PackedRow, Packer, row_to_bytes
from hypenet_jax.data.prepared import FORMAT_VERSION, SPLITS, Prepared, Split, open_prepared
from hypenet_jax.data.sources import documents, source_fingerprint
from hypenet_jax.data.tokenizer import Tokenizer, TokenizerFile, load_tokenizer, make_tokenizer

TOKENS_PER_SHARD = 1 << 26
_CHARACTERS_AT_ONCE = 1 << 22

logger = logging.getLogger(__name__)


def prepare(corpus: CorpusConfig, *, rebuild: bool = False) -> Prepared:
    """The prepared folder of a corpus: the existing one if it matches, or else a new one.

    One process does this; the others wait for it and call `open_prepared`.

    Args:
      rebuild: prepare again and replace an existing folder.
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
        if not rebuild:
            return _reuse(folder, recipe)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(folder)
    try:
        manifest = _write(corpus, recipe, partial)
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("prepared %s: %s", folder, manifest["splits"])
    return Prepared(folder, manifest)


def is_held_out(name: str, fraction: float, seed: int) -> bool:
    """Whether a document is held out. Depends on its name alone, so new documents change no other."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _recipe(corpus: CorpusConfig) -> dict[str, Any]:
    """Everything that the content of the folder depends on; the path of the text is not part of it."""
    source = {key: value for key, value in vars(corpus.source).items() if key != "folder"}
    if isinstance(corpus.tokenizer, TokenizerFile):
        tokenizer: Any = load_tokenizer(
            corpus.tokenizer.path, corpus.tokenizer.end_token
        ).fingerprint
    else:
        tokenizer = dataclasses.asdict(corpus.tokenizer)
    recipe = {
        "format_version": FORMAT_VERSION,
        "source": {"kind": type(corpus.source).__name__, **source},
        "source_fingerprint": source_fingerprint(corpus.source),
        "tokenizer": tokenizer,
        "block_length": corpus.block_length,
        "heldout_fraction": corpus.heldout_fraction,
        "seed": corpus.seed,
    }
    return json.loads(json.dumps(recipe))


def _partial(folder: Path) -> Path:
    """A new folder beside the final one, named by host and process; leftovers of killed processes are removed."""
    name = f".{folder.name}.partial-{socket.gethostname()}-"
    for old in folder.parent.iterdir():
        process = old.name.removeprefix(name)
        if old.name.startswith(name) and (
            int(process) == os.getpid() or not _is_alive(int(process))
        ):
            logger.warning("removing %s, left by a process that was killed", old)
            shutil.rmtree(old)
    partial = folder.parent / f"{name}{os.getpid()}"
    partial.mkdir()
    return partial


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        pass
    return True


def _reuse(folder: Path, recipe: dict[str, Any]) -> Prepared:
    prepared = open_prepared(folder)
    stored = prepared.manifest["recipe"]
    differing = [key for key in recipe if key not in stored or stored[key] != recipe[key]]
    if differing:
        details = "; ".join(
            f"{key}: {stored.get(key)} in the folder, {recipe[key]} in the config"
            for key in differing
        )
        raise ValueError(
            f"{folder} was prepared differently in {', '.join(differing)} ({details}); "
            "name another folder or prepare with rebuild=True"
        )
    return prepared


def _write(corpus: CorpusConfig, recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    rejected: list[str] = []
    tokenizer = make_tokenizer(corpus.tokenizer, (text for _, text in _texts(corpus, [])))
    tokenizer.save(folder)
    writers = {split: _ShardWriter(folder, split, corpus.block_length) for split in SPLITS}
    for name, tokens in _tokenised(corpus, tokenizer, rejected):
        held_out = is_held_out(name, corpus.heldout_fraction, corpus.seed)
        writers["heldout" if held_out else "train"].add(tokens)
    splits = {split: writer.close() for split, writer in writers.items()}
    if not splits["train"]["tokens"]:
        raise ValueError(f"{corpus.source} holds no text for training; name a source with text")
    if rejected:
        logger.warning(
            "%d documents are not UTF-8 and were left out, first %s", len(rejected), rejected[:5]
        )
    return {
        "recipe": recipe,
        "splits": splits,
        "not_utf8": {"count": len(rejected), "first": rejected[:20]},
        "end_token": tokenizer.end_token,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "tokenizers_version": tokenizers.__version__,
    }


def _texts(corpus: CorpusConfig, rejected: list[str]) -> Iterator[tuple[str, str]]:
    """Non-empty documents; the names of those that are not UTF-8 are appended to `rejected`."""
    for name, text in documents(corpus.source):
        if text is None:
            rejected.append(name)
        elif text:
            yield name, text


def _tokenised(
    corpus: CorpusConfig, tokenizer: Tokenizer, rejected: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Tokens of each document with its end token, in order; groups of documents are encoded on all cores."""
    end = np.asarray([tokenizer.end_id], np.int32)
    for group in _groups(_texts(corpus, rejected)):
        encoded = tokenizer.encode_all([text for _, text in group])
        for (name, _), tokens in zip(group, encoded, strict=True):
            yield name, np.concatenate([tokens, end])


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


class _ShardWriter:
    """Packs the documents of one split and writes them to shards."""

    def __init__(self, folder: Path, split: Split, block_length: int):
        self._folder, self._split = folder, split
        self._packer = Packer(block_length)
        self._rows_per_shard = max(1, TOKENS_PER_SHARD // block_length)
        self._writer: ArrayRecordWriter | None = None
        self._shards: list[str] = []
        self._documents = self._rows = self._tokens = 0

    def add(self, document: np.ndarray) -> None:
        self._documents += 1
        self._tokens += len(document)
        for row in self._packer.add(document):
            self._put(row)

    def close(self) -> dict[str, Any]:
        for row in self._packer.finish():
            self._put(row)
        self._close_shard()
        return {
            "documents": self._documents,
            "tokens": self._tokens,
            "rows": self._rows,
            "shards": self._shards,
        }

    def _put(self, row: PackedRow) -> None:
        writer = self._writer
        if writer is None or self._rows % self._rows_per_shard == 0:
            writer = self._next_shard()
        writer.write(row_to_bytes(row))
        self._rows += 1

    def _next_shard(self) -> ArrayRecordWriter:
        self._close_shard()
        self._shards.append(f"{self._split}-{len(self._shards):05d}.array_record")
        # One record per group: larger groups would be decompressed whole at every random read.
        self._writer = ArrayRecordWriter(str(self._folder / self._shards[-1]), "group_size:1")
        return self._writer

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None
