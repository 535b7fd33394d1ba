"""Stage 0: teacher weights to student weights. What both have is copied, key/value heads are widened, gates are new.

All trees here are in single layers (`unstack_layers`). Source: arXiv 2601.22156, official `halo` conversion.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypenet_jax.axes import Params
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.layers import Initialization
from hypenet_jax.model.mixers import LightningSpec, MixerSpec, SoftmaxSpec


def transfer(
    teacher_config: ModelConfig, teacher: Params, student_config: ModelConfig, key: jax.Array
) -> Params:
    """The student before any training, float32.

    Args:
      teacher_config, teacher: an all-softmax model.
      student_config: a plan with the same widths, layer by layer softmax or lightning attention.
      key: decides the new gates.
    Raises:
      ValueError: the two models differ in anything but their mixers.
    """
    _check(teacher_config, student_config)
    student = dict(jax.tree.map(_master, teacher))
    if teacher_config.tie_embeddings and not student_config.tie_embeddings:
        student["head"] = {"kernel": student["embed"]["embedding"]}
    if student_config.tie_embeddings:
        student.pop("head", None)
    for i, spec in enumerate(student_config.mixers):
        layer = student[f"layer_{i}"]
        mixer = transfer_mixer(layer["mixer"], spec, jax.random.fold_in(key, i))
        student[f"layer_{i}"] = {**layer, "mixer": mixer}
    return student


def transfer_mixer(params: Params, target: MixerSpec, key: jax.Array) -> dict[str, Any]:
    """A softmax mixer's weights for another spec.

    Queries, output map and norms are copied; keys and values of a lightning layer repeat each teacher head in place,
    head j taking key/value head j // group. The joint output norm starts at one. New gates start as in the official
    code: uniform in +-1/sqrt(D) for lightning, normal with standard deviation 0.02 for softmax.
    """
    params = jax.tree.map(_master, params)
    kept = {name: params[name] for name in ("q", "o", "q_norm", "k_norm")}
    width = params["q"]["kernel"].shape
    if isinstance(target, SoftmaxSpec):
        new = {"k": params["k"], "v": params["v"]}
        if target.output_gate:
            new["gate"] = {"kernel": Initialization().std * jax.random.normal(key, width)}
        return kept | new
    group = target.num_heads // params["k"]["kernel"].shape[1]
    new = {name: {"kernel": _repeat_heads(params[name]["kernel"], group)} for name in ("k", "v")}
    if target.output_norm:
        new["output_norm"] = {"scale": jnp.ones((target.num_heads, target.head_dim))}
    if target.output_gate:
        bound = 1.0 / math.sqrt(width[0])
        new["gate"] = {"kernel": jax.random.uniform(key, width, minval=-bound, maxval=bound)}
    return kept | new


def lightning_mixers(
    teacher_config: ModelConfig, teacher: Params, spec: LightningSpec, key: jax.Array
) -> Params:
    """A lightning mixer for EVERY layer of the teacher, stacked on axis 0: what stage 1 trains."""
    mixers = [
        transfer_mixer(teacher[f"layer_{i}"]["mixer"], spec, jax.random.fold_in(key, i))
        for i in range(teacher_config.num_layers)
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *mixers)


def with_mixers(student: Params, student_config: ModelConfig, mixers: Params) -> Params:
    """The student with its lightning layers taken from stage 1 (stacked mixers of all layers)."""
    layers = {}
    for i, spec in enumerate(student_config.mixers):
        if isinstance(spec, LightningSpec):
            aligned = jax.tree.map(lambda leaf, i=i: leaf[i], mixers)
            layers[f"layer_{i}"] = {**student[f"layer_{i}"], "mixer": aligned}
    return {**student, **layers}


def aligned_spec(teacher_config: ModelConfig) -> LightningSpec:
    """The lightning mixer that stands in for any layer of this teacher.

    Raises:
      ValueError: the teacher's mixers are not all the same softmax attention with rotary positions.
    """
    kinds = set(teacher_config.mixers)
    spec = teacher_config.mixers[0]
    if len(kinds) > 1 or not isinstance(spec, SoftmaxSpec) or spec.rope_theta is None:
        raise ValueError(
            f"stage 1 needs a teacher of equal softmax layers with rotary positions, not {kinds}"
        )
    return LightningSpec(spec.num_heads, spec.head_dim, spec.rope_theta)


def _repeat_heads(kernel: Float[Array, "D K H"], group: int) -> Float[Array, "D N H"]:
    return jnp.repeat(kernel, group, axis=1)


def _master(leaf: Array) -> Array:
    """float32: an update of 1e-5 changes nothing in a bfloat16 weight nine times out of ten."""
    return jnp.asarray(leaf, jnp.float32)


def _check(teacher: ModelConfig, student: ModelConfig) -> None:
    fields: Mapping[str, tuple[object, object]] = {
        name: (getattr(teacher, name), getattr(student, name))
        for name in ("vocab_size", "d_model", "d_mlp", "num_layers", "norm_eps")
    }
    different = {name: pair for name, pair in fields.items() if pair[0] != pair[1]}
    if different:
        raise ValueError(f"teacher and student differ in more than their mixers: {different}")
