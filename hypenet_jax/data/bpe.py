"""Byte-pair encoding from tokens and merges alone, for models that come without a tokenizer.json.

How text is cut before any merge is no part of tokens and merges: it has a name, llama.cpp's in GGUF files.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

Merges = Sequence[tuple[str, str]]

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LETTERS, OTHER = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*"
SPLITS: Mapping[str, str] = {
    "llama-bpe": rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}{{1,3}}|{OTHER}|{SPACES}",
    "qwen2": rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}|{OTHER}|{SPACES}",
    "tekken": rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}",
}
"""Regular expressions of the published tokenizer.json of Llama 3, Qwen2 to 3, and Mistral Nemo."""
PRE_TOKENIZERS = ("gpt-2", "smollm", *SPLITS)
WHOLE_WORDS = ("llama-bpe", "tekken")
"""A word that is a token is never cut, whether merges lead to it or not."""
CLASSES: Mapping[str, str] = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}
"""Classes of transformers that say how text is cut."""
SPACE = "▁"


def byte_level_bpe(
    vocab: Mapping[str, int], merges: Merges, pre_tokenizer: str
) -> tokenizers.Tokenizer:
    """BPE over the bytes of UTF-8, each written as one character of `ByteLevel.alphabet()`.

    Args:
      pre_tokenizer: how text is cut first, one of `PRE_TOKENIZERS`.
    Raises:
      ValueError: another pre-tokenizer, or merges of or into what is no token.
    """
    whole = pre_tokenizer in WHOLE_WORDS
    backend = _backend(vocab, merges, ignore_merges=whole)
    backend.pre_tokenizer = _pre_tokenizer(pre_tokenizer)
    backend.decoder = decoders.ByteLevel()
    if pre_tokenizer == "qwen2":
        backend.normalizer = normalizers.NFC()
    return backend


def sentencepiece_bpe(
    vocab: Mapping[str, int], merges: Merges, *, unknown: str, prefix: bool
) -> tokenizers.Tokenizer:
    """BPE over characters as SentencePiece has it: spaces are "▁", characters without a piece fall back to bytes.

    Args:
      unknown: token of bytes that have none.
      prefix: a text starts with a space that decoding drops.
    Raises:
      ValueError: as `byte_level_bpe`.
    """
    backend = _backend(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    replace = normalizers.Replace(" ", SPACE)
    first = [normalizers.Prepend(SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*first, replace])
    last = [decoders.Strip(" ", 1, 0)] if prefix else []
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *last])
    return backend


def merges_of_scores(scores: Mapping[str, float]) -> Merges:
    """The merges of SentencePiece's pieces: every cut of a piece into two others, the best score of the whole first.

    Pieces of equal score come with the longest first half first, as in transformers' `generate_merges`.
    """
    cuts = [
        (score, at, len(piece) - at, piece)
        for piece, score in scores.items()
        for at in range(1, len(piece))
        if piece[:at] in scores and piece[at:] in scores
    ]
    return [(piece[:at], piece[at:]) for _, at, _, piece in sorted(cuts, reverse=True)]


def missing_bytes(vocab: Iterable[str], *, byte_level: bool) -> bytes:
    """The bytes that no token stands for: text that holds them cannot be written with this vocabulary."""
    known = set(vocab)
    names = _alphabet() if byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
    return bytes(byte for byte, name in enumerate(names) if name not in known)


def read_vocab_and_merges(folder: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer of a folder that holds `vocab.json` and `merges.txt`, with its added tokens at their own ids.

    Args:
      config: its tokenizer_config.json, whose `tokenizer_class` says how text is cut.
    Raises:
      ValueError: files that are damaged or contradict each other, or a class that does not say it.
    """
    name = str(config.get("tokenizer_class")).removesuffix("Fast")
    if name not in CLASSES:
        raise ValueError(
            f"{folder} has vocab.json and merges.txt, and tokenizer_class {name!r} does not say how text is cut, only "
            f"{', '.join(CLASSES)}; let transformers write a tokenizer.json: AutoTokenizer.from_pretrained(folder)"
            ".save_pretrained(folder)"
        )
    try:
        vocab, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{folder}: vocab.json or merges.txt is damaged ({error})") from error
    added = _added_tokens(folder, config)
    texts = {token_id: text for text, token_id in vocab.items()}
    for token_id, token in added.items():
        if texts.setdefault(token_id, token.content) != token.content:
            raise ValueError(
                f"{folder}: id {token_id} is {texts[token_id]!r} in vocab.json and the added token {token.content!r}"
            )
    vocab |= {token.content: token_id for token_id, token in added.items()}
    backend = byte_level_bpe(vocab, merges, CLASSES[name])
    backend.add_tokens(list(added.values()))
    return backend


def _added_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, tokenizers.AddedToken]:
    """By id: from `added_tokens_decoder` of the config, and from added_tokens.json what that leaves out."""
    path, flags = folder / "added_tokens.json", ("special", "lstrip", "rstrip", "single_word")
    older = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    added = {i: tokenizers.AddedToken(text, special=True) for text, i in older.items()}
    for token_id, entry in config.get("added_tokens_decoder", {}).items():
        known = {flag: entry[flag] for flag in flags if flag in entry}
        added[int(token_id)] = tokenizers.AddedToken(entry["content"], normalized=False, **known)
    return dict(sorted(added.items()))


def _backend(vocab: Mapping[str, int], merges: Merges, **options: Any) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer(models.BPE(dict(vocab), list(merges), **options))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"these tokens and merges are no BPE ({error})") from error


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if name not in SPLITS:
        raise ValueError(f"no pre-tokenizer {name!r}; there are {', '.join(PRE_TOKENIZERS)}")
    split = pre_tokenizers.Split(tokenizers.Regex(SPLITS[name]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, byte_level])


def _alphabet() -> list[str]:
    """The character of every byte: its own where that is printable, else the next ones from 256 on (GPT-2)."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = {ord(letter): letter for letter in letters if ord(letter) < 256}
    others = iter(letters[len(own) :])
    return [own[byte] if byte in own else next(others) for byte in range(256)]
