"""The tokenizer in a GGUF file: its tokens, their types, merges or scores, and how text is cut."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from hypenet_jax.data import bpe
from hypenet_jax.data.tokenizer import Tokenizer
from hypenet_jax.gguf.file import GGUFFile
from hypenet_jax.weights import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
PRE_TOKENIZERS: Mapping[str, str] = {
    **{name: name for name in bpe.PRE_TOKENIZERS},
    **dict.fromkeys(("llama3", "llama-v3"), "llama-bpe"),
}
STARTS_WITH_BOS = ("llama-bpe", "tekken")  # where the file does not say
ENDS = ("eos", "eot", "eom")  # of a document, of a turn, of a message to a tool
NAMES: Mapping[str, str] = {"bos": "bos_token", "unknown": "unk_token", "padding": "pad_token"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unsaid:
    """What a GGUF file may leave out.

    Attributes:
      pre_tokenizer: how text is cut, one of `bpe.PRE_TOKENIZERS`; None: as the file says.
      end_tokens: texts of the tokens that end what is written, first that which ends a document; none: the file's.
    """

    pre_tokenizer: str | None = None
    end_tokens: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Tokens of a file by id, without those that only fill the rows of the embedding.

    Attributes:
      types: of each token, `NORMAL` to `BYTE`.
      roles: "bos", "eos", "padding" and their like, and the id that the file gives them.
    """

    texts: Mapping[int, str]
    types: Mapping[int, int]
    roles: Mapping[str, int]

    def ids(self, *types: int) -> dict[str, int]:
        """Text to id of the tokens of these types, or of all."""
        return {t: i for i, t in self.texts.items() if not types or self.types[i] in types}


def read_vocabulary(file: GGUFFile, rows: int) -> Vocabulary:
    """The tokens of a model whose embedding has so many rows; a CheckpointError says what is contradictory."""
    texts: list[str] = file.get("tokenizer.ggml.tokens", list)
    types: list[int] = _of_each_token(file, "token_type")
    if len(texts) > rows:
        raise CheckpointError(
            f"{len(texts)} tokens, and weights of {rows}: the model does not know the last "
            f"{len(texts) - rows}, {texts[rows]!r} to {texts[-1]!r}"
        )
    kept = {i: t for i, t in enumerate(texts) if types[i] != UNUSED or t != f"[PAD{i}]"}
    ids = {text: i for i, text in kept.items()}
    for i, text in kept.items():
        if ids[text] != i:
            raise CheckpointError(f"tokens {i} and {ids[text]} are both {text!r}")
    prefix, suffix = "tokenizer.ggml.", "_token_id"
    roles = {
        key.removeprefix(prefix).removesuffix(suffix): file.get(key, int)
        for key in file.metadata
        if key.startswith(prefix) and key.endswith(suffix)
    }
    for role, i in roles.items():
        if i not in kept:
            raise CheckpointError(f"{prefix}{role}{suffix} is {i}, which is no token")
    return Vocabulary(kept, dict(enumerate(types)), roles)


def end_ids(vocabulary: Vocabulary, unsaid: Unsaid) -> list[int]:
    """Ids of the tokens that end what is written, first that which ends a document."""
    if unsaid.end_tokens:
        ids = vocabulary.ids()
        unknown = [text for text in unsaid.end_tokens if text not in ids]
        if unknown:
            raise ValueError(f"end tokens {unknown} are no tokens of the file")
        return [ids[text] for text in unsaid.end_tokens]
    if ENDS[0] not in vocabulary.roles:
        raise ValueError("the file names no token that ends a document; name it with --end-tokens")
    return list(dict.fromkeys(vocabulary.roles[role] for role in ENDS if role in vocabulary.roles))


def make_tokenizer(file: GGUFFile, vocabulary: Vocabulary, unsaid: Unsaid) -> Tokenizer:
    """The tokenizer as a folder holds it, chat template included.

    Raises:
      CheckpointError: a kind of tokenizer that is not read, or a file that contradicts itself.
      ValueError: neither file nor `unsaid` say it.
    """
    kind = file.get("tokenizer.ggml.model", str)
    if kind == BYTE_LEVEL:
        name = _pre_tokenizer(file, unsaid)
        backend = bpe.byte_level_bpe(vocabulary.ids(), _merges(file), name)
        starts = name in STARTS_WITH_BOS
    elif kind == SENTENCEPIECE:
        backend, starts = _sentencepiece(file, vocabulary), True
    else:
        read = f"{BYTE_LEVEL}, {SENTENCEPIECE}"
        raise CheckpointError(f"tokenizer.ggml.model {kind!r} is not supported, only {read}")
    backend.add_tokens(list(_added_tokens(vocabulary)))
    end = end_ids(vocabulary, unsaid)[0]
    around = _around(file, vocabulary, end, starts)
    if any(around):
        backend.post_processor = _template(*around)
    return Tokenizer(backend, vocabulary.texts[end], _config(file, vocabulary, end))


def untokenized_bytes(file: GGUFFile, vocabulary: Vocabulary) -> bytes:
    """The bytes that this tokenizer drops from every text."""
    byte_level = file.metadata["tokenizer.ggml.model"] == BYTE_LEVEL
    return bpe.missing_bytes(vocabulary.texts.values(), byte_level=byte_level)


def _of_each_token(file: GGUFFile, name: str) -> list[Any]:
    values, count = (
        file.get(f"tokenizer.ggml.{name}", list),
        len(file.metadata["tokenizer.ggml.tokens"]),
    )
    if len(values) != count:
        raise CheckpointError(f"tokenizer.ggml.{name} has {len(values)} entries for {count} tokens")
    return values


def _pre_tokenizer(file: GGUFFile, unsaid: Unsaid) -> str:
    name = unsaid.pre_tokenizer or file.get("tokenizer.ggml.pre", str, "default")
    if name not in PRE_TOKENIZERS:
        raise ValueError(
            f"the file says of how text is cut {name!r}; name it with --pre-tokenizer, one of "
            f"{', '.join(bpe.PRE_TOKENIZERS)}"
        )
    return PRE_TOKENIZERS[name]


def _merges(file: GGUFFile) -> list[tuple[str, str]]:
    merges = []
    for line in file.get("tokenizer.ggml.merges", list):
        # The first character may be a space of its own.
        at = line.find(" ", 1)
        if at < 0:
            raise CheckpointError(f"tokenizer.ggml.merges has {line!r}, which is no pair")
        merges.append((line[:at], line[at + 1 :]))
    return merges


def _sentencepiece(file: GGUFFile, vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    if file.get("tokenizer.ggml.remove_extra_whitespaces", bool, False):
        raise CheckpointError("tokenizer.ggml.remove_extra_whitespaces is not supported")
    if "unknown" not in vocabulary.roles:
        raise CheckpointError("tokenizer.ggml.unknown_token_id is missing")
    if "tokenizer.ggml.merges" in file.metadata:
        merges: bpe.Merges = _merges(file)
    else:
        scores = _of_each_token(file, "scores")
        pieces = vocabulary.ids(NORMAL)
        merges = bpe.merges_of_scores({text: scores[i] for text, i in pieces.items()})
    return bpe.sentencepiece_bpe(
        vocabulary.ids(),
        merges,
        unknown=vocabulary.texts[vocabulary.roles["unknown"]],
        prefix=file.get("tokenizer.ggml.add_space_prefix", bool, True),
    )


def _added_tokens(vocabulary: Vocabulary) -> Iterator[AddedToken]:
    """Tokens that are found whole in a text; those of control only where special tokens are read as such."""
    for i, text in vocabulary.texts.items():
        kind = vocabulary.types[i]
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            yield AddedToken(text, special=kind != USER_DEFINED, normalized=False)


def _around(
    file: GGUFFile, vocabulary: Vocabulary, end: int, starts: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """The tokens before and after every text, and their ids; `starts`: what it is where the file does not say."""
    first = file.get("tokenizer.ggml.add_bos_token", bool, starts)
    last = file.get("tokenizer.ggml.add_eos_token", bool, False)
    if first and "bos" not in vocabulary.roles:
        raise CheckpointError("bos_token_id is missing, and every text starts with it")
    before, after = [vocabulary.roles["bos"]] * first, [end] * last
    return {vocabulary.texts[i]: i for i in before}, {vocabulary.texts[i]: i for i in after}


def _template(before: Mapping[str, int], after: Mapping[str, int]) -> Any:
    """Adds tokens around texts for those who ask for special tokens; `Tokenizer.encode` does not."""
    single = [*before, "$A", *after]
    second = [f"{piece}:1" for piece in (*before, "$B", *after)]
    return processors.TemplateProcessing(
        single=single, pair=[*single, *second], special_tokens=[*before.items(), *after.items()]
    )


def _config(file: GGUFFile, vocabulary: Vocabulary, end: int) -> dict[str, Any]:
    """The tokenizer_config.json."""
    template = file.get("tokenizer.chat_template", str, "")
    named = {
        theirs: vocabulary.roles[ours] for ours, theirs in NAMES.items() if ours in vocabulary.roles
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: vocabulary.texts[i] for name, i in named.items()},
        "eos_token": vocabulary.texts[end],
        "clean_up_tokenization_spaces": False,
        **({"chat_template": template} if template else {}),
    }
