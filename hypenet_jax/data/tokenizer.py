"""Tokenizers: a checkpoint's tokenizer.json, or a small byte-level BPE trained on the corpus."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Array, Int
from tokenizers import pre_tokenizers, trainers

from hypenet_jax.data.bpe import byte_level_bpe, read_vocab_and_merges
from hypenet_jax.hub import model_folder

END_OF_TEXT = "<|endoftext|>"


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
    """An existing tokenizer.

    Attributes:
      path: of a tokenizer.json, or of its folder, or the name of a model in the local cache (`model_folder`).
      end_token: None takes the `eos_token` of the tokenizer_config.json in the same folder.
    """

    path: str
    end_token: str | None = None


@dataclasses.dataclass(frozen=True)
class TrainedTokenizer:
    """Byte-level BPE trained on the corpus: `vocab_size` tokens, end token included, then `reserved`."""

    vocab_size: int
    reserved: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer and the token that ends a document; `config` is its tokenizer_config.json.

    Special tokens spelled out in text are encoded as plain text, unless asked for.
    """

    backend: tokenizers.Tokenizer
    end_token: str
    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.backend.encode_special_tokens = True
        self.backend.no_padding()
        self.backend.no_truncation()
        self.id_of(self.end_token)

    @property
    def vocab_size(self) -> int:
        """Size of the smallest vocabulary with these tokens: the largest id plus one."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def end_id(self) -> int:
        """Id of the end token."""
        return self.id_of(self.end_token)

    @property
    def fingerprint(self) -> str:
        """sha256 of the tokenizer and its end token, in hexadecimal."""
        return hashlib.sha256((self.backend.to_str() + self.end_token).encode()).hexdigest()

    def id_of(self, token: str) -> int:
        """The id of a token, given by its exact text; raises ValueError if the vocabulary has no such token."""
        token_id = self.backend.token_to_id(token)
        if token_id is None:
            raise ValueError(
                f"the tokenizer has no token {token!r} among its {self.vocab_size}; name one it has"
            )
        return token_id

    def check_fits(self, vocab_size: int, model: str) -> None:
        """Raises ValueError: it has ids that a model with a vocabulary of this size does not know."""
        vocab = self.backend.get_vocab(with_added_tokens=True)
        beyond = sorted((i, token) for token, i in vocab.items() if i >= vocab_size)
        if beyond:
            some = ", ".join(f"{token!r} {i}" for i, token in beyond[:3])
            raise ValueError(
                f"{len(beyond)} tokens of the tokenizer of {model} are beyond a vocabulary of {vocab_size}, which the "
                f"model has: {some}; use the tokenizer that the model was trained with"
            )

    @functools.cached_property
    def with_special_tokens(self) -> tokenizers.Tokenizer:
        """A copy of `backend` to which special tokens spelled out in text are tokens."""
        copy = tokenizers.Tokenizer.from_str(self.backend.to_str())
        copy.encode_special_tokens = False
        return copy

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.special)

    def encode(self, text: str, *, special_tokens: bool = False) -> Int[np.ndarray, " n"]:
        """Token ids of `text`, without begin or end tokens.

        Args:
          special_tokens: read those that are spelled out as tokens.
        """
        return self.encode_all([text], special_tokens=special_tokens)[0]

    def encode_all(
        self, texts: Sequence[str], *, special_tokens: bool = False
    ) -> list[Int[np.ndarray, " _"]]:
        """Token ids of each text, computed on all cores."""
        backend = self.with_special_tokens if special_tokens else self.backend
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, tokens: Sequence[int] | Int[Array | np.ndarray, " n"]) -> str:
        """The text of these ids, with special tokens spelled out."""
        return self.backend.decode(np.asarray(tokens).tolist(), skip_special_tokens=False)

    def continuation(self, tokens: Sequence[int] | Int[Array | np.ndarray, " n"]) -> str:
        """What these ids add to a text: SentencePiece drops the space that begins a whole text, and it stays here."""
        end = [self.end_id]
        return self.decode([*end, *np.asarray(tokens).tolist()]).removeprefix(self.decode(end))

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json in the layout of Hugging Face folders."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(
            json.dumps(dict(self.config), indent=2, ensure_ascii=False), encoding="utf-8"
        )


def train_tokenizer(texts: Iterable[str], recipe: TrainedTokenizer) -> Tokenizer:
    """Byte-level BPE: id 0 is the end token, then 256 bytes, merges, and the reserved tokens.

    Raises:
      ValueError: the vocabulary is too small for bytes and end token, or larger than the text yields.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if recipe.vocab_size <= len(alphabet):
        raise ValueError(
            f"vocab_size {recipe.vocab_size} cannot hold {len(alphabet)} bytes and an end token; "
            f"use at least {len(alphabet) + 1}"
        )
    backend = byte_level_bpe({}, (), "gpt-2")
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    learned = backend.get_vocab_size()
    if learned < recipe.vocab_size:
        raise ValueError(
            f"the text yields only {learned} of {recipe.vocab_size} tokens; "
            f"use vocab_size {learned} or more text"
        )
    backend.add_special_tokens(list(recipe.reserved))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    return Tokenizer(backend, END_OF_TEXT, config)


def load_tokenizer(path: str | Path, end_token: str | None = None) -> Tokenizer:
    """Reads a tokenizer.json, given its path or its folder (`model_folder`), which may hold vocab.json and merges.txt.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no tokenizer, or no end token is known.
    """
    path = Path(path) if str(path).endswith(".json") else model_folder(path)
    path = path / "tokenizer.json" if path.is_dir() else path
    folder, config_path = path.parent, path.with_name("tokenizer_config.json")
    config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
    if (template := folder / "chat_template.jinja").is_file():
        config["chat_template"] = template.read_text(encoding="utf-8")
    if path.is_file():
        backend = _read_backend(path)
    elif all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        backend = read_vocab_and_merges(folder, config)
    else:
        raise FileNotFoundError(
            f"no tokenizer at {path}; name a tokenizer.json or a folder that holds one"
        )
    return Tokenizer(backend, end_token or _end_token_of(config, config_path), config)


def make_tokenizer(recipe: TokenizerFile | TrainedTokenizer, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of this config; `texts` is only read to train one."""
    if isinstance(recipe, TokenizerFile):
        return load_tokenizer(recipe.path, recipe.end_token)
    return train_tokenizer(texts, recipe)


def special_token(config: Mapping[str, Any], name: str) -> str | None:
    """A token of a tokenizer_config.json: a string in some files and {"content": string, ...} in others."""
    entry = config.get(name)
    return entry["content"] if isinstance(entry, Mapping) else entry


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{path} is not a readable tokenizer.json ({error})") from error


def _end_token_of(config: Mapping[str, Any], config_path: Path) -> str:
    name = special_token(config, "eos_token")
    if not name:
        raise ValueError(
            f"{config_path} names no eos_token; set end_token to the token that ends a document"
        )
    return name
