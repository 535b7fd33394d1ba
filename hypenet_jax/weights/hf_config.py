"""`config.json` of Hugging Face checkpoints to `ModelConfig` and back.

Reads and writes both generations of keys: `rope_theta`, `rope_scaling`, `torch_dtype` (transformers 4) and
`rope_parameters`, `dtype` (transformers 5). A field that could change the computation is either understood or refused
by name: a model that silently computes something else is the worst outcome of an import.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from hypenet_jax.hub import model_folder
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.mixers import MixerSpec, SoftmaxSpec
from hypenet_jax.model.rope_scaling import RopeScaling
from hypenet_jax.weights.families import FAMILIES, HEADS, NOPE, NOPE_INTERVAL, completed, family_of
from hypenet_jax.weights.hf_fields import (
    FIXED,
    HYBRID,
    LONGEST,
    PLAN,
    TOKEN_IDS,
    WIDTHS,
    planned_mixers,
    problems,
)
from hypenet_jax.weights.rotary import rotary_from_hf, rotary_problems, rotary_to_hf

# The model type of the folders that the paper's authors released, where ours and their repository say "hypenet".
RELEASED = "hybrid"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used as it stands; the message lists all reasons."""


def refuse_inexact(problems: Sequence[str]) -> None:
    """Raises a CheckpointError that lists them; there may be none."""
    if problems:
        raise CheckpointError("\n  ".join(["this model cannot be computed exactly:", *problems]))


def read_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """The architecture that `folder/config.json` describes; CheckpointError where it would not be computed exactly.

    The folder may be named as in the local cache (`model_folder`).
    """
    path = model_folder(folder) / "config.json"
    fields = read_json(path)
    try:
        return from_hf(fields)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; a repeated key is refused: one of its values would be lost."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_distinct)
    except OSError as error:
        need = "a checkpoint folder holds config.json and .safetensors files"
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {need}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: holds no JSON object")
    return fields


def from_hf(fields: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a `config.json`; a CheckpointError lists all missing, unknown and unsupported fields."""
    if fields.get("model_type") == RELEASED:
        fields = {**fields, "model_type": HYBRID}
    fields = completed(fields)
    refuse_inexact([*problems(fields), *rotary_problems(fields)])
    widths = {ours: kind(fields[theirs]) for theirs, (ours, kind) in WIDTHS.items()}
    return ModelConfig(mixers=_mixers(fields), **widths)


def to_hf(
    config: ModelConfig, dtype: str, carried: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The fields of a `config.json` for this model, with the keys of transformers 4 and 5.

    The model type is the first of `FAMILIES` that computes the same (a Mistral is written as a Llama), else HypeNet.

    Args:
      config: a model whose mixers of one kind are all alike; those of a family may differ in their positions.
      dtype: "bfloat16" or "float32", the type of the exported tensors.
      carried: fields of another config.json, from which token ids and the longest length are taken over.
    Raises:
      ValueError: a model that the format has no fields for, and why.
    """
    family, rotary = family_of(config.mixers) or (None, None)
    specs: list[MixerSpec] = _one_of_each_kind(config) if rotary is None else [rotary]
    # Where there is no softmax attention, one of the other mixer's sizes, which nothing reads.
    other = SoftmaxSpec(specs[0].num_heads, specs[0].num_heads, specs[0].head_dim)
    softmax = next((spec for spec in specs if isinstance(spec, SoftmaxSpec)), other)
    theta, scaling = _rotary(specs)
    heads = (softmax.num_heads, softmax.num_kv_heads, softmax.head_dim)
    own = _hybrid(config, [softmax, *specs]) if family is None else _family(family, config)
    if any(getattr(spec, "qkv_bias", False) for spec in specs):
        del own["attention_bias"]  # it would mean the output's bias too
    return {
        **{theirs: getattr(config, ours) for theirs, (ours, _) in WIDTHS.items()},
        "num_hidden_layers": config.num_layers,
        **dict(zip(HEADS, heads, strict=True)),
        "use_cache": True,
        "torch_dtype": dtype,
        "dtype": dtype,
        **rotary_to_hf(theta, scaling),
        **own,
        **{key: carried[key] for key in (*TOKEN_IDS, LONGEST) if carried and key in carried},
    }


def _mixers(fields: Mapping[str, Any]) -> tuple[MixerSpec, ...]:
    theta, scaling = rotary_from_hf(fields)
    layers = fields["num_hidden_layers"]
    if (family := FAMILIES.get(fields["model_type"])) is not None:
        heads, kv_heads, width = (fields[key] for key in HEADS)
        mixer = family.mixer(heads, kv_heads, width, theta, scaling)
        turns = _turns(fields, layers) if family.has_nope else [1] * layers
        return tuple(mixer if turn else mixer.without_positions() for turn in turns)
    specs = {
        kind.CHECKPOINT.kind: kind.from_hf(fields, theta, scaling)
        for kind in planned_mixers(fields)
    }
    return tuple(specs[name] for name in fields[next(key for key in PLAN if key in fields)])


def _turns(fields: Mapping[str, Any], layers: int) -> list[int]:
    """Which layers have rotary positions."""
    interval = fields[NOPE_INTERVAL]
    said = fields.get(NOPE)
    return [int((i + 1) % interval != 0) for i in range(layers)] if said is None else said


def _one_of_each_kind(config: ModelConfig) -> list[MixerSpec]:
    specs: dict[type[MixerSpec], MixerSpec] = {}
    for spec in config.mixers:
        if specs.setdefault(type(spec), spec) != spec:
            raise ValueError(
                f"config.json describes one {type(spec).__name__} for all layers, the model has "
                f"{specs[type(spec)]} and {spec}"
            )
    if not specs:
        raise ValueError("a model without layers cannot be exported")
    return list(specs.values())


def _rotary(specs: list[MixerSpec]) -> tuple[float, RopeScaling | None]:
    # A mixer without rotary positions may have no such fields.
    fields = {
        tuple(getattr(s, f"rope_{name}", None) for name in ("theta", "scaling")) for s in specs
    }
    said = {(theta, scaling) for theta, scaling in fields if theta is not None}
    if len(said) > 1:
        raise ValueError(
            f"config.json has one rotary base and scaling for all layers, the model has {said}"
        )
    # Without rotary positions nothing reads the base, yet a file without one is refused; Qwen3 has this one.
    return said.pop() if said else (1e6, None)


def _family(name: str, config: ModelConfig) -> dict[str, Any]:
    """The fields of this model type alone."""
    family = FAMILIES[name]
    fields = {"model_type": name, "architectures": [family.architecture], **FIXED, **family.fixed}
    if family.defaults:
        fields |= dict.fromkeys(TOKEN_IDS)  # left out, they would be those of its first release
    if family.has_nope:
        turns = [getattr(spec, "rope_theta", None) is not None for spec in config.mixers]
        fields[NOPE] = [int(turn) for turn in turns]
    return fields


def _hybrid(config: ModelConfig, specs: list[MixerSpec]) -> dict[str, Any]:
    """The fields of HypeNet alone; the first spec is softmax attention."""
    width = specs[0].head_dim
    for spec in specs:
        if getattr(spec, "rope_theta", None) is not None and spec.head_dim != width:
            raise ValueError(
                f"config.json has one width for rotary positions, {width}; {spec.NAME} heads of {spec.head_dim} "
                "cannot use it"
            )
    return {
        "model_type": HYBRID,
        "architectures": ["HypeNetForCausalLM"],
        **FIXED,
        "mixer_types": [spec.CHECKPOINT.kind for spec in config.mixers],
        "expand_kv_proj": not any(
            getattr(spec, "num_kv_heads", None) for spec in specs if spec.NAME != SoftmaxSpec.NAME
        ),
        **_of_all(specs),
    }


def _of_all(specs: list[MixerSpec]) -> dict[str, Any]:
    """The fields of all mixers; some have one in common, the width of their heads for example."""
    fields: dict[str, Any] = {}
    for spec in specs:
        for key, value in spec.to_hf().items():
            if fields.setdefault(key, value) != value:
                raise ValueError(
                    f"config.json has one {key}, {fields[key]!r}; {spec.NAME} layers have {value!r}"
                )
    return fields


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"keys appear more than once: {', '.join(repeated)}")
    return fields
