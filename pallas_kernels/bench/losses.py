"""Losses over a large vocabulary."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels import linear_cross_entropy, linear_kl, linear_kl_top_k
from pallas_kernels.bench import inputs
from pallas_kernels.bench.measure import Case, Inputs
from pallas_kernels.linear_loss import CROSS_ENTROPY, KL, KL_TOP_K

# T D V: the head of the 2B model; on a CPU the quickstart's, and one of a large vocabulary.
SHAPES = ((8192, 2048, 151936),)
SHAPES_ON_CPU = ((4096, 128, 4096), (256, 512, 32768))
BAR_ON_CPU = (4096, 512, 151936)
CHECKED_TOKENS = 64  # all of the vocabulary is checked, in float64
K, LISTED = 64, 0.9  # tokens of the top-k teacher, and their share of its mass


def cross_entropy_cases() -> list[Case]:
    """Every shape and dtype of `linear_cross_entropy`."""
    return [_cross_entropy(dtype, *shape) for shape in _shapes() for dtype in inputs.dtypes()]


def kl_cases() -> list[Case]:
    """Every shape and dtype of `linear_kl`."""
    return [_kl(dtype, *shape) for shape in _shapes() for dtype in inputs.dtypes()]


def kl_top_k_cases() -> list[Case]:
    """Every shape and dtype of `linear_kl` with the teacher's top k."""
    return [_kl_top_k(dtype, *shape) for shape in _shapes() for dtype in inputs.dtypes()]


def kl_cpu_bar() -> list[Case]:
    """On a CPU the definition takes at least as long as the chunks, and 5 times their scratch."""
    return [_chunked_first(_kl("float32", *BAR_ON_CPU))]


def cross_entropy_cpu_bar() -> list[Case]:
    """On a CPU the definition takes at least as long as the chunks."""
    return [_chunked_first(_cross_entropy("float32", *BAR_ON_CPU))]


def _chunked_first(case: Case) -> Case:
    names = ("chunked", "reference")
    return dataclasses.replace(case, implementations=names, modes=case.modes[-1:])


def _shapes() -> tuple[tuple[int, int, int], ...]:
    return SHAPES_ON_CPU if inputs.on_cpu() else SHAPES


def _cross_entropy(dtype: str, tokens: int, width: int, vocabulary: int) -> Case:
    def labels(hidden):
        return jnp.arange(hidden.shape[0]) % vocabulary

    def function(name):
        return lambda hidden, head: linear_cross_entropy(
            hidden, head, labels(hidden), jnp.ones(hidden.shape[0]), implementation=name
        )[0]

    def make_inputs(seed, tokens=tokens):
        arrays = inputs.random(seed, dtype, (tokens, width), (vocabulary, width))
        return Inputs((arrays[0], _head(arrays[1])), jnp.ones(()))

    def definition(hidden, head):
        log_probs = jax.nn.log_softmax(hidden @ head.T, axis=-1)
        return -jnp.sum(jnp.take_along_axis(log_probs, labels(hidden)[:, None], axis=1))

    unit = 2.0 * tokens * width * vocabulary
    return inputs.differentiable(
        op="linear_cross_entropy",
        shape=f"T{tokens} D{width} V{vocabulary}",
        dtype=dtype,
        implementations=inputs.worth_timing(CROSS_ENTROPY),
        function=function,
        names=("total", "dhidden", "dhead"),
        flops=(unit, 3 * unit),
        make_inputs=make_inputs,
        small=lambda: make_inputs(0, min(tokens, CHECKED_TOKENS)),
        definition=definition,
    )


def _kl(dtype: str, tokens: int, width: int, vocabulary: int) -> Case:
    """The teacher is an argument: as a constant, the compiler would spend minutes folding it."""

    def function(name):
        return lambda hidden, head, teacher, teacher_head: linear_kl(
            *(hidden, head, teacher, teacher_head, jnp.ones(hidden.shape[0])),
            implementation=name,
        )[0]

    def make_inputs(seed, tokens=tokens):
        shapes = (tokens, width), (vocabulary, width)
        arrays = inputs.random(seed, dtype, *shapes, *shapes)
        return Inputs((arrays[0], _head(arrays[1]), arrays[2], _head(arrays[3])), jnp.ones(()))

    def definition(hidden, head, teacher, teacher_head):
        student = jax.nn.log_softmax(hidden @ head.T, axis=-1)
        target = jax.lax.stop_gradient(jax.nn.log_softmax(teacher @ teacher_head.T, axis=-1))
        return jnp.sum(jnp.exp(target) * (target - student))

    unit = 2.0 * tokens * width * vocabulary
    return inputs.differentiable(
        op="linear_kl",
        shape=f"T{tokens} D{width} V{vocabulary}",
        dtype=dtype,
        implementations=inputs.worth_timing(KL),
        function=function,
        names=("total", "dhidden", "dhead", "dteacher", "dteacher_head"),
        flops=(2 * unit, 4 * unit),
        make_inputs=make_inputs,
        small=lambda: make_inputs(0, min(tokens, CHECKED_TOKENS)),
        definition=definition,
    )


def _kl_top_k(dtype: str, tokens: int, width: int, vocabulary: int) -> Case:
    def indices(hidden):
        first = 997 * jnp.arange(hidden.shape[0])
        return (first[:, None] + jnp.arange(K)[None]) % vocabulary

    def function(name):
        return lambda hidden, head, log_probs: linear_kl_top_k(
            *(hidden, head, log_probs, indices(hidden), jnp.ones(hidden.shape[0])),
            implementation=name,
        )[0]

    def make_inputs(seed, tokens=tokens):
        shapes = (tokens, width), (vocabulary, width), (tokens, K)
        hidden, head, values = inputs.random(seed, dtype, *shapes)
        log_probs = jax.nn.log_softmax(values.astype(jnp.float32)) + jnp.log(LISTED)
        return Inputs((hidden, _head(head), log_probs), jnp.ones(()))

    def definition(hidden, head, log_probs):
        log_probs = jax.lax.stop_gradient(log_probs)
        student = jax.nn.log_softmax(hidden @ head.T, axis=-1)
        kept = jnp.take_along_axis(student, indices(hidden), axis=-1)
        tail, rest = (1 - jnp.sum(jnp.exp(x), axis=-1) for x in (log_probs, kept))
        listed = jnp.sum(jnp.exp(log_probs) * (log_probs - kept), axis=-1)
        return jnp.sum(listed + tail * (jnp.log(tail) - jnp.log(rest)))

    unit = 2.0 * tokens * width * vocabulary
    return inputs.differentiable(
        op="linear_kl_top_k",
        shape=f"T{tokens} D{width} V{vocabulary} k{K}",
        dtype=dtype,
        implementations=inputs.worth_timing(KL_TOP_K),
        function=function,
        names=("total", "dhidden", "dhead", "dlog_probs"),
        flops=(unit, 3 * unit),
        make_inputs=make_inputs,
        small=lambda: make_inputs(0, min(tokens, CHECKED_TOKENS)),
        definition=definition,
    )


def _head(x: jax.Array) -> jax.Array:
    """Logits of size one, as those of a trained model's hidden states and head."""
    return x * x.shape[1] ** -0.5
