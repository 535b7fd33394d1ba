"""`config.json` of Hugging Face checkpoints to `ModelConfig` and back; refuses the unknown.

Reads both generations of keys: `rope_theta`, `rope_scaling`, `torch_dtype` (transformers 4) and
`rope_parameters`, `dtype` (transformers 5). Writes both. A field that could change the computation
is either understood or refused by name: a model that silently computes something else is the worst
outcome of an import.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.mixers import LightningSpec, MixerSpec, SoftmaxSpec
from hypenet_jax.weights.hf_fields import (
    LIGHTNING,
    PLAN,
    SOFTMAX,
    logit_scale_from_hf,
    logit_scale_to_hf,
    problems,
)

# Taken over from the source of an export.
CARRIED = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")

Spec = TypeVar("Spec", SoftmaxSpec, LightningSpec)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used as it stands; the message lists all reasons."""


def read_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """The architecture that `folder/config.json` describes.

    Raises:
      CheckpointError: no such file, no JSON, or a model that would not be computed exactly.
    """
    path = pathlib.Path(folder) / "config.json"
    try:
        return from_hf(read_json(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; a repeated key is refused: one of its values would be lost."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_distinct)
    except OSError as error:
        raise CheckpointError(
            f"cannot be read ({error.strerror}); a checkpoint folder holds config.json and "
            ".safetensors files"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise CheckpointError("holds no JSON object")
    return fields


def from_hf(fields: Mapping[str, Any]) -> ModelConfig:
    """Fields of a `config.json` (model_type "qwen3" or "hypenet") to the architecture.

    Raises:
      CheckpointError: lists every missing, unknown and unsupported field at once.
    """
    wrong = list(problems(fields))
    if wrong:
        raise CheckpointError("this model cannot be computed exactly:\n  " + "\n  ".join(wrong))
    return ModelConfig(
        vocab_size=fields["vocab_size"],
        d_model=fields["hidden_size"],
        d_mlp=fields["intermediate_size"],
        mixers=tuple(_mixer(fields, kind) for kind in _plan(fields)),
        tie_embeddings=fields["tie_word_embeddings"],
        norm_eps=float(fields["rms_norm_eps"]),
    )


def to_hf(
    config: ModelConfig, dtype: str, carried: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The fields of a `config.json` for this model, with the keys of transformers 4 and 5.

    Args:
      config: a plan whose softmax layers are all alike, and whose lightning layers are all alike.
      dtype: "bfloat16" or "float32", the type of the exported tensors.
      carried: fields of another config.json, from which token ids and the longest length are
        taken over.
    Raises:
      ValueError: a plan that the format has no fields for, and why.
    """
    softmax, lightning = _only(config, SoftmaxSpec), _only(config, LightningSpec)
    bases = {spec.rope_theta for spec in (softmax, lightning) if spec} - {None}
    if len(bases) > 1:
        raise ValueError(f"config.json has one rotary base for all layers, the plan has {bases}")
    theta = bases.pop() if bases else None
    plain = (
        SoftmaxSpec(softmax.num_heads, softmax.num_kv_heads, softmax.head_dim, theta)
        if softmax
        else None
    )
    is_qwen3 = theta is not None and lightning is None and softmax == plain
    return {
        "architectures": ["Qwen3ForCausalLM" if is_qwen3 else "HypeNetForCausalLM"],
        "model_type": "qwen3" if is_qwen3 else "hypenet",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": config.d_model,
        "intermediate_size": config.d_mlp,
        "num_hidden_layers": config.num_layers,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
        "torch_dtype": dtype,
        "dtype": dtype,
        **_heads(softmax, lightning),
        **_rotary(theta),
        **({} if is_qwen3 else _hybrid(config, softmax, lightning)),
        **{key: carried[key] for key in CARRIED if carried and key in carried},
    }


def _plan(fields: Mapping[str, Any]) -> list[str]:
    if fields["model_type"] == "qwen3":
        return [SOFTMAX] * fields["num_hidden_layers"]
    return fields[next(key for key in PLAN if key in fields)]


def _mixer(fields: Mapping[str, Any], kind: str) -> MixerSpec:
    new = fields.get("rope_parameters") or {}
    base = new.get("rope_theta")
    theta = float(fields["rope_theta"] if base is None else base)
    if kind == LIGHTNING:
        return LightningSpec(
            num_heads=fields["lightning_nh"],
            head_dim=fields["lightning_head_dim"],
            rope_theta=theta if fields["lightning_use_rope"] else None,
            scale=fields["lightning_scale"],
            qk_norm=fields["lightning_use_qk_norm"],
            output_norm=fields["lightning_use_output_norm"],
            output_gate=fields["lightning_use_output_gate"],
        )
    heads = fields["num_attention_heads"], fields["num_key_value_heads"], fields["head_dim"]
    if fields["model_type"] == "qwen3":
        return SoftmaxSpec(*heads, rope_theta=theta)
    return SoftmaxSpec(
        *heads,
        rope_theta=theta if fields["attn_use_rope"] else None,
        output_gate=fields["attn_use_output_gate"],
        logit_scale=logit_scale_from_hf(fields["attn_logits_scaling"]),
    )


def _only(config: ModelConfig, kind: type[Spec]) -> Spec | None:
    specs = {spec for spec in config.mixers if isinstance(spec, kind)}
    if len(specs) > 1:
        raise ValueError(
            f"config.json describes one {kind.__name__} for all layers, the plan has {specs}"
        )
    return specs.pop() if specs else None


def _heads(softmax: SoftmaxSpec | None, lightning: LightningSpec | None) -> dict[str, int]:
    spec = softmax or lightning
    if spec is None:
        raise ValueError("a plan without layers cannot be exported")
    return {
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": softmax.num_kv_heads if softmax else spec.num_heads,
        "head_dim": spec.head_dim,
    }


def _rotary(theta: float | None) -> dict[str, Any]:
    if theta is None:
        # No layer reads it, yet a file without a rotary base is refused; Qwen3 has this one.
        theta = 1e6
    return {
        "rope_theta": theta,
        "rope_scaling": None,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
    }


def _hybrid(
    config: ModelConfig, softmax: SoftmaxSpec | None, lightning: LightningSpec | None
) -> dict[str, Any]:
    """The fields of HypeNet; a mixer that the plan lacks gets the other's sizes, never read."""
    spec = softmax or lightning
    assert spec is not None
    softmax = softmax or SoftmaxSpec(spec.num_heads, spec.num_heads, spec.head_dim)
    lightning = lightning or LightningSpec(spec.num_heads, spec.head_dim, spec.rope_theta)
    if lightning.rope_theta is not None and lightning.head_dim != softmax.head_dim:
        raise ValueError(
            f"config.json has one width for rotary positions, {softmax.head_dim}; lightning heads "
            f"of {lightning.head_dim} cannot use it"
        )
    return {
        "mixer_types": [
            SOFTMAX if isinstance(s, SoftmaxSpec) else LIGHTNING for s in config.mixers
        ],
        "attn_use_rope": softmax.rope_theta is not None,
        "attn_use_output_gate": softmax.output_gate,
        "attn_logits_scaling": logit_scale_to_hf(softmax.logit_scale),
        "expand_kv_proj": True,
        "lightning_nh": lightning.num_heads,
        "lightning_nkv": lightning.num_heads,
        "lightning_head_dim": lightning.head_dim,
        "lightning_scale": lightning.scale,
        "lightning_use_rope": lightning.rope_theta is not None,
        "lightning_rope_scaling": None,
        "lightning_use_qk_norm": lightning.qk_norm,
        "lightning_use_output_norm": lightning.output_norm,
        "lightning_use_output_gate": lightning.output_gate,
        "lightning_use_short_conv": False,
    }


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"keys appear more than once: {', '.join(repeated)}")
    return fields
