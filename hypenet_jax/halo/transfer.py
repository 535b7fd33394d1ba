"""Stage 0: teacher weights to student weights. Each mixer's file says what it takes from softmax attention.

- Embedding, head, MLPs, norms of the stream, W_q, W_o: the teacher's.
- W_k, W_v: the teacher's; in a recurrent layer each head once for every query head that reads it, so any numbers of
  heads will do.
- Biases of queries, keys and values (Qwen2): the teacher's, repeated likewise; W_q and W_k were trained with them.
- Norms of queries and keys: the teacher's (Qwen3). Where it has none (Llama), recurrent layers get new ones of ones: no
  softmax bounds what large keys write into their state, and students without them aligned no better (relative error
  0.770 against 0.778 after 17K tokens). Kept layers get none: a norm would change what they compute.
- Output gates and the norm of a recurrent layer's outputs: new.

Options of the plan (`MixerOptions`) change which of these a layer has.

All trees here are in single layers (`unstack_layers`).
Source: arXiv 2601.22156, official `halo` conversion; it has no teacher without norms or with biases.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from hypenet_jax.axes import Params
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.mixers import MixerSpec, SoftmaxSpec


def transfer(
    teacher_config: ModelConfig, teacher: Params, student_config: ModelConfig, key: jax.Array
) -> Params:
    """The student before any training, float32.

    Args:
      teacher_config, teacher: an all-softmax model.
      student_config: a model of the same widths.
      key: decides the parameters that are new.
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
        mixer = spec.params_from_softmax(layer["mixer"], jax.random.fold_in(key, i))
        student[f"layer_{i}"] = {**layer, "mixer": mixer}
    return student


def transfer_mixers(
    teacher_config: ModelConfig, teacher: Params, spec: MixerSpec, key: jax.Array
) -> Params:
    """A mixer of this spec for EVERY layer of the teacher, float32, stacked on axis 0: what stage 1 trains."""
    mixers = []
    for i in range(teacher_config.num_layers):
        attention = jax.tree.map(_master, teacher[f"layer_{i}"]["mixer"])
        mixers.append(spec.params_from_softmax(attention, jax.random.fold_in(key, i)))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *mixers)


def with_mixers(student: Params, student_config: ModelConfig, mixers: Params) -> Params:
    """The student whose replaced layers have the mixers of stage 1 (stacked mixers of all layers)."""
    layers = {}
    for i, spec in enumerate(student_config.mixers):
        if not isinstance(spec, SoftmaxSpec):
            aligned = jax.tree.map(lambda leaf, i=i: leaf[i], mixers)
            layers[f"layer_{i}"] = {**student[f"layer_{i}"], "mixer": aligned}
    return {**student, **layers}


def with_neutral_gates(student: Params, student_config: ModelConfig) -> Params:
    """The student whose kept layers have gates of one half everywhere, and output projections that undo it."""
    layers = {}
    for i in student_config.softmax_layers:
        mixer = student[f"layer_{i}"]["mixer"]
        if "gate" in mixer:
            gate, o = jax.tree.map(jnp.zeros_like, mixer["gate"]), mixer["o"]
            mixer = {**mixer, "gate": gate, "o": jax.tree.map(lambda kernel: 2 * kernel, o)}
        layers[f"layer_{i}"] = {**student[f"layer_{i}"], "mixer": mixer}
    return {**student, **layers}


def _master(leaf: Array) -> Array:
    """float32: an update of 1e-5 changes nothing in a bfloat16 weight nine times out of ten."""
    return jnp.asarray(leaf, jnp.float32)


def _check(teacher: ModelConfig, student: ModelConfig) -> None:
    names = ("vocab_size", "d_model", "d_mlp", "num_layers", "norm_eps")
    pairs = {name: (getattr(teacher, name), getattr(student, name)) for name in names}
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if different:
        raise ValueError(f"teacher and student differ in more than their mixers: {different}")
