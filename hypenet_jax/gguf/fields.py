"""The metadata of a GGUF file as the fields of a config.json, read by the same rules as every other one.

What may change the computation and is not understood is refused by name.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from hypenet_jax.gguf.file import GGUFFile
from hypenet_jax.model.rope_scaling import Llama3Scaling
from hypenet_jax.weights import CheckpointError
from hypenet_jax.weights.hf_config import refuse_inexact


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a value of general.architecture stands for.

    Attributes:
      model_type: in config.json.
      rotates_neighbors: rows 2j and 2j + 1 of a head of queries and keys turn as a pair, so the file holds them in that
        order; Hugging Face pairs rows j and j + H/2.
    """

    model_type: str
    rotates_neighbors: bool


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", rotates_neighbors=True),  # Mistral, too
    "qwen2": Architecture("qwen2", rotates_neighbors=False),
    "qwen3": Architecture("qwen3", rotates_neighbors=False),
    "smollm3": Architecture("smollm3", rotates_neighbors=True),
}
# Keys without the architecture in front: what config.json calls them, and their type.
READ: Mapping[str, tuple[str, type]] = {
    "vocab_size": ("vocab_size", int),
    "context_length": ("max_position_embeddings", int),
    "embedding_length": ("hidden_size", int),
    "feed_forward_length": ("intermediate_size", int),
    "block_count": ("num_hidden_layers", int),
    "attention.head_count": ("num_attention_heads", int),
    "attention.head_count_kv": ("num_key_value_heads", int),
    "attention.key_length": ("head_dim", int),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", float),
    "rope.freq_base": ("rope_theta", float),
}
SCALING: Mapping[str, str] = {
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
SCALING_TYPE = "rope.scaling.type"
HEAD_WIDTHS = ("attention.value_length", "rope.dimension_count")
"""Other widths than `head_dim` are not computed here."""
FIXED: Mapping[str, Any] = {"attention.causal": True, "expert_count": 0, "expert_used_count": 0}
HARMLESS = ("tensor_data_layout", "rope.scaling.finetuned")
KNOWN = {*READ, *SCALING, SCALING_TYPE, *HEAD_WIDTHS, *FIXED, *HARMLESS}
ROPE_BASE = 1e4  # of a file that names none
ROPE_DIVISORS = "rope_freqs.weight"
LLAMA3: Mapping[str, Any] = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Of every published Llama 3.1 to 3.3; a file holds only the divisors that follow from them."""


def architecture(file: GGUFFile) -> tuple[str, Architecture]:
    """Its name in the file and what it stands for; CheckpointError where it is not supported."""
    name = file.get("general.architecture", str)
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"general.architecture {name!r} is not supported, only {known}")
    return name, ARCHITECTURES[name]


def config_fields(file: GGUFFile) -> dict[str, Any]:
    """The fields of this model's config.json, token ids left out; a CheckpointError lists what is in the way."""
    name, known = architecture(file)
    fields: dict[str, Any] = {"rope_theta": ROPE_BASE}
    for key, (theirs, kind) in READ.items():
        if f"{name}.{key}" in file.metadata:
            fields[theirs] = _shortest(file.get(f"{name}.{key}", kind))
    heads = fields.get("num_attention_heads", 0)
    fields.setdefault("num_key_value_heads", heads)
    fields.setdefault("head_dim", fields.get("hidden_size", 0) // max(heads, 1))
    if "token_embd.weight" in file.tensors:
        fields.setdefault("vocab_size", file.tensors["token_embd.weight"].shape[0])
    refuse_inexact([*_problems(file.metadata, name, fields["head_dim"])])
    return {
        "model_type": known.model_type,
        **fields,
        "rope_scaling": _rope_scaling(file, name, fields),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }


def _problems(metadata: Mapping[str, Any], name: str, head_dim: int) -> Iterator[str]:
    own = {
        key.removeprefix(f"{name}."): metadata[key]
        for key in metadata
        if key.startswith(f"{name}.")
    }
    unknown = sorted(f"{name}.{key}" for key in own.keys() - KNOWN)
    if unknown:
        yield f"unknown fields that may change the computation: {', '.join(unknown)}"
    for key, value in {**FIXED, **dict.fromkeys(HEAD_WIDTHS, head_dim)}.items():
        if own.get(key, value) != value:
            yield f"{name}.{key} {own[key]!r} is not supported, only {value!r}"


def _rope_scaling(file: GGUFFile, name: str, fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """As config.json writes it; None where positions are not scaled."""
    kind = file.get(f"{name}.{SCALING_TYPE}", str, "none")
    if ROPE_DIVISORS in file.tensors:
        if kind != "none":
            raise CheckpointError(
                f"{ROPE_DIVISORS} beside {name}.{SCALING_TYPE} {kind!r} is not supported"
            )
        return _llama3(file.tensors[ROPE_DIVISORS].read(), fields["head_dim"], fields["rope_theta"])
    if kind == "none":
        return None
    keys = {theirs: file.metadata.get(f"{name}.{key}") for key, theirs in SCALING.items()}
    scaling = {key: _shortest(value) for key, value in keys.items() if value is not None}
    return {"rope_type": kind, **scaling}


def _llama3(factors: Float[np.ndarray, " J"], head_dim: int, base: float) -> dict[str, Any]:
    """The scaling that these divisors of the rotary frequencies follow from."""
    scaling = Llama3Scaling(factor=_shortest(max(float(factors.max()), 1.0)), **LLAMA3)
    expected = rope_divisors(scaling, head_dim, base)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise CheckpointError(f"{ROPE_DIVISORS} does not follow from {scaling}: another scaling?")
    return {"rope_type": "llama3", **dataclasses.asdict(scaling)}


def rope_divisors(scaling: Llama3Scaling, head_dim: int, base: float) -> Float[np.ndarray, " J"]:
    """By what each rotary frequency is divided: all that a file holds of the scaling of Llama 3.1."""
    frequencies = base ** (-jnp.arange(0, head_dim, 2) / head_dim)
    return np.asarray(frequencies / scaling.frequencies(frequencies, base))


def _shortest(value: Any) -> Any:
    """1e-5 and not 9.999999747378752e-06: floats are stored as float32."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
