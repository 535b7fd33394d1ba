"""Losses over a large vocabulary."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels import (
    linear_cross_entropy,
    linear_distillation,
    linear_kl,
    linear_kl_top_k,
)
from pallas_kernels.bench.op import Inputs, Op, Shape, forward_and_gradient, random
from pallas_kernels.linear_loss import CROSS_ENTROPY, DISTILLATION, KL, KL_TOP_K

# The head of the 2B model; on a CPU the quickstart's, and one of a large vocabulary.
SHAPES: tuple[Shape, ...] = ((8192, 2048, 151936),)
CPU_SHAPES: tuple[Shape, ...] = ((4096, 128, 4096), (256, 512, 32768))
K, LISTED = 64, 0.9  # tokens that a top-k teacher lists, and their share of its mass


def _labels(hidden, head):
    return (jnp.arange(hidden.shape[0]) % head.shape[0],)


def _top_k(hidden, head, log_probs):
    first = 997 * jnp.arange(hidden.shape[0])
    return log_probs, (first[:, None] + jnp.arange(log_probs.shape[1])[None]) % head.shape[0]


def _loss(op, target):
    """Every token with weight 1; a teacher is an argument: as a constant, the compiler would fold it for minutes."""

    def call(hidden, head, *given, implementation):
        weights = jnp.ones(hidden.shape[0])
        targets = target(hidden, head, *given)
        return op(hidden, head, *targets, weights, implementation=implementation)

    return call


def _log_probs(hidden, head):
    return jax.nn.log_softmax(hidden @ head.T, axis=-1)


def _cross_entropy_definition(hidden, head):
    (labels,) = _labels(hidden, head)
    return -jnp.sum(jnp.take_along_axis(_log_probs(hidden, head), labels[:, None], axis=1))


def _kl_definition(hidden, head, teacher, teacher_head):
    target = jax.lax.stop_gradient(_log_probs(teacher, teacher_head))
    return jnp.sum(jnp.exp(target) * (target - _log_probs(hidden, head)))


def _distillation(hidden, head, teacher, teacher_head, *, implementation):
    """KL and cross entropy, each with weight 1."""
    labels, weights = _labels(hidden, head)[0], jnp.ones((len(hidden), 2))
    return linear_distillation(
        hidden, head, teacher, teacher_head, labels, weights, implementation=implementation
    )


def _distillation_definition(hidden, head, teacher, teacher_head):
    divergence = _kl_definition(hidden, head, teacher, teacher_head)
    return divergence + _cross_entropy_definition(hidden, head)


def _kl_top_k_definition(hidden, head, log_probs):
    log_probs, indices = _top_k(hidden, head, jax.lax.stop_gradient(log_probs))
    kept = jnp.take_along_axis(_log_probs(hidden, head), indices, axis=-1)
    tail, rest = (1 - jnp.sum(jnp.exp(x), axis=-1) for x in (log_probs, kept))
    listed = jnp.sum(jnp.exp(log_probs) * (log_probs - kept), axis=-1)
    return jnp.sum(listed + tail * (jnp.log(tail) - jnp.log(rest)))


def _model(seed, dtype, tokens, width, vocabulary):
    """Hidden states and a head whose logits are of size one, as those of a trained model."""
    hidden, head = random(seed, dtype, (tokens, width), (vocabulary, width))
    return hidden, head * width**-0.5


def _cross_entropy_inputs(seed, dtype, *shape):
    return Inputs(_model(seed, dtype, *shape), (jnp.ones(()),))


def _kl_inputs(seed, dtype, *shape):
    both = *_model(2 * seed, dtype, *shape), *_model(2 * seed + 1, dtype, *shape)
    return Inputs(both, (jnp.ones(()),))


def _kl_top_k_inputs(seed, dtype, tokens, width, vocabulary, k):
    (values,) = random(seed, dtype, (tokens, k))
    log_probs = jax.nn.log_softmax(values.astype(jnp.float32)) + jnp.log(LISTED)
    return Inputs((*_model(seed, dtype, tokens, width, vocabulary), log_probs), (jnp.ones(()),))


def _logits(tokens, width, vocabulary, *_):
    """Operations of one product of hidden states and head."""
    return 2.0 * tokens * width * vocabulary


CROSS_ENTROPY_LOSS = Op(
    name="linear_cross_entropy",
    axes="T D V",
    shapes=SHAPES,
    cpu_shapes=CPU_SHAPES,
    implementations=CROSS_ENTROPY,
    call=_loss(linear_cross_entropy, _labels),
    definition=_cross_entropy_definition,
    inputs=_cross_entropy_inputs,
    modes=forward_and_gradient("total", "dhidden dhead", _logits, 1, 3),
    checked={"T": 64},  # of all of the vocabulary
    # The definition takes at least as long as the chunks, and for KL 5 times their scratch.
    cpu_bar=((4096, 512, 151936), ("chunked", "reference")),
)
KL_LOSS = dataclasses.replace(
    CROSS_ENTROPY_LOSS,
    name="linear_kl",
    implementations=KL,
    call=_loss(linear_kl, lambda hidden, head, *teacher: teacher),
    definition=_kl_definition,
    inputs=_kl_inputs,
    modes=forward_and_gradient("total", "dhidden dhead dteacher dteacher_head", _logits, 2, 4),
)
KL_TOP_K_LOSS = dataclasses.replace(
    CROSS_ENTROPY_LOSS,
    name="linear_kl_top_k",
    axes="T D V k",
    shapes=tuple((*shape, K) for shape in SHAPES),
    cpu_shapes=tuple((*shape, K) for shape in CPU_SHAPES),
    implementations=KL_TOP_K,
    call=_loss(linear_kl_top_k, _top_k),
    definition=_kl_top_k_definition,
    inputs=_kl_top_k_inputs,
    modes=forward_and_gradient("total", "dhidden dhead dlog_probs", _logits, 1, 3),
    cpu_bar=None,
)
DISTILLATION_LOSS = dataclasses.replace(
    KL_LOSS,
    name="linear_distillation",
    implementations=DISTILLATION,
    call=_distillation,
    definition=_distillation_definition,
    cpu_bar=None,
)
