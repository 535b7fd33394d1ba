"""A GGUF file to a Hugging Face folder."""

import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping

from hypenet_jax.gguf.fields import config_fields
from hypenet_jax.gguf.file import GGUFFile, open_gguf
from hypenet_jax.gguf.tensors import kept_dtype, parameters
from hypenet_jax.gguf.tokenizer import (
    Unsaid,
    Vocabulary,
    end_ids,
    make_tokenizer,
    read_vocabulary,
    untokenized_bytes,
)
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.weights import CheckpointError, save_hf
from hypenet_jax.weights.hf_config import from_hf
from hypenet_jax.weights.model_card import CARD, heading

CARD_FIELDS: Mapping[str, str] = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
    "language": "general.languages",
}
"""Fields of a model card, and the metadata that they come from."""


@dataclasses.dataclass(frozen=True)
class Converted:
    """What was written; `notes` are sentences on what the folder does not hold."""

    config: ModelConfig
    dtype: str
    notes: tuple[str, ...]


def convert_gguf(
    source: str | os.PathLike[str], target: str | os.PathLike[str], unsaid: Unsaid
) -> Converted:
    """Writes config.json, weights, tokenizer, chat template and end tokens of a GGUF file.

    Quantized weights become float32; one tensor is in memory at a time.

    Args:
      target: must not exist, or be empty.
    Raises:
      FileNotFoundError, FileExistsError: no source, or a target that holds something.
      CheckpointError: the file is damaged, or not exactly a model that is computed here; lists all reasons.
      ValueError: the file leaves something out, and `unsaid` too.
    """
    file = open_gguf(source)
    try:
        return _convert(file, pathlib.Path(target), unsaid)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}") from None


def _convert(file: GGUFFile, target: pathlib.Path, unsaid: Unsaid) -> Converted:
    fields = config_fields(file)
    config, dtype = from_hf(fields), kept_dtype(file)
    params = parameters(file, config)
    vocabulary = read_vocabulary(file, config.vocab_size)
    tokenizer, ids = make_tokenizer(file, vocabulary, unsaid), _token_ids(vocabulary, unsaid)
    with tempfile.TemporaryDirectory() as folder:
        companions = pathlib.Path(folder)
        tokenizer.save(companions)
        for name in ("config.json", "generation_config.json"):
            known = {**fields, **ids} if name == "config.json" else ids
            (companions / name).write_text(json.dumps(known), encoding="utf-8")
        save_hf(target, config, params, dtype=dtype, tokenizer_from=companions)
    (target / CARD).write_text(_card(file), encoding="utf-8")
    return Converted(config, dtype, tuple(_notes(file, vocabulary)))


def _token_ids(vocabulary: Vocabulary, unsaid: Unsaid) -> dict[str, int | list[int]]:
    """As config.json and generation_config.json name them; several end tokens are a list."""
    ends, roles = end_ids(vocabulary, unsaid), vocabulary.roles
    named = {"bos_token_id": roles.get("bos"), "pad_token_id": roles.get("padding")}
    ids = {name: i for name, i in named.items() if i is not None}
    return {**ids, "eos_token_id": ends if len(ends) > 1 else ends[0]}


def _notes(file: GGUFFile, vocabulary: Vocabulary) -> Iterator[str]:
    missing = untokenized_bytes(file, vocabulary)
    if missing:
        yield (
            f"{len(missing)} of 256 bytes have no token and vanish from every text, as in the original tokenizer: "
            f"{missing.hex(' ')}"
        )
    rows, tokens = file.tensors["token_embd.weight"].shape[0], len(vocabulary.texts)
    if rows > tokens:
        yield f"{rows - tokens} of {rows} rows of the embedding are no token: padding, kept as it is"
    prefix = "tokenizer.chat_template."
    others = sorted(key.removeprefix(prefix) for key in file.metadata if key.startswith(prefix))
    if others:
        yield f"only the chat template without a name is taken over, not {', '.join(others)}"


def _card(file: GGUFFile) -> str:
    """The README.md: licence and languages as model cards have them, and where the weights come from."""
    known = {
        field: file.metadata[key] for field, key in CARD_FIELDS.items() if key in file.metadata
    }
    name = file.metadata.get("general.name", file.path.stem)
    kinds = ", ".join(sorted({tensor.kind for tensor in file.tensors.values()}))
    return f"{heading(known, name)}\nConverted from `{file.path.name}` ({kinds}).\n"
