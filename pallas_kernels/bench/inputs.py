"""Inputs of the cases, and what all cases ask of the machine."""

import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels import dispatch
from pallas_kernels.bench import float64
from pallas_kernels.bench.measure import Case, Inputs, Mode

CHECKED_TOKENS = 1024  # at most, for the comparison with float64
DEFINITIONS = ("recurrent", "reference", "dense")  # at an accelerator's shapes: hours or terabytes


def on_cpu() -> bool:
    """Whether the bench runs on a CPU."""
    return dispatch.platform() == "cpu"


def dtypes() -> tuple[str, ...]:
    """The types to time. A CPU has no bfloat16 units."""
    return ("float32",) if on_cpu() else ("bfloat16", "float32")


def worth_timing(implementations: Collection[str]) -> tuple[str, ...]:
    """The implementations to time: definitions only on a CPU."""
    return tuple(name for name in implementations if on_cpu() or name not in DEFINITIONS)


def random(seed: int, dtype: str, *shapes: tuple[int, ...]) -> list[Float[Array, "..."]]:
    """Normally distributed arrays of these shapes."""
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


@jax.jit
def normed(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """Divided by its root mean square, as queries and keys are."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True))).astype(x.dtype)


def differentiable(
    *,
    op: str,
    shape: str,
    dtype: str,
    implementations: tuple[str, ...],
    function: Callable[[str], Callable[..., Any]],
    names: tuple[str, ...],
    flops: tuple[float, float],
    make_inputs: Callable[[int], Inputs],
    small: Callable[[], Inputs],
    definition: Callable[..., Any],
) -> Case:
    """A case of one output, forward and with the gradients of all arrays; `definition` is in
    jax.numpy."""

    small = functools.cache(small)

    @functools.cache
    def results() -> tuple[Any, Any]:
        return float64.value_and_gradients(definition, small().arrays, small().cotangent)

    def exact(mode: str) -> list[np.ndarray]:
        out, gradients = results()
        return [out] if mode == "forward" else [out, *gradients]

    modes = (
        Mode("forward", function, names[:1], flops[0]),
        Mode("forward+gradient", function, names, flops[1], gradient=True),
    )
    return Case(op, shape, dtype, implementations, modes, make_inputs, small, exact)
