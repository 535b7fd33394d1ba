"""Softmax over some of the keys as (max, sum, outputs), and how such parts are joined."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.mesh import AxisNames

# Finite: a part that has seen nothing subtracts it from itself, or from -inf, without a NaN.
LOWEST = float(jnp.finfo(jnp.float32).min)


class Part(NamedTuple):
    """Softmax over some keys, not yet divided by its sum; LOWEST and zeros where none is seen."""

    top: Float[Array, "*Q"]  # the largest score of every query
    total: Float[Array, "*Q"]  # sum of exp(score - top)
    out: Float[Array, "*Q H"]  # sum of exp(score - top) * value


def nothing(shape: tuple[int, ...]) -> Part:
    """The part that has seen no key, its outputs of this shape."""
    numbers = jnp.zeros(shape[:-1], jnp.float32)
    return Part(jnp.full_like(numbers, LOWEST), numbers, jnp.zeros(shape, jnp.float32))


def add(
    part: Part,
    scores: Float[Array, "..."],
    axis: int,
    weigh: Callable[[Float[Array, "..."]], Float[Array, "*Q H"]],
) -> Part:
    """The part with more keys, along an axis of the scores: -inf where a query does not see one.

    `weigh` sums their values, each times a weight for every query.
    """
    top = jnp.maximum(part.top, jnp.max(scores, axis=axis))
    weights, shrink = jnp.exp(scores - jnp.expand_dims(top, axis)), jnp.exp(part.top - top)
    total = shrink * part.total + jnp.sum(weights, axis=axis)
    return Part(top, total, shrink[..., None] * part.out + weigh(weights))


def join(parts: Part) -> Part:
    """One part of several along their leading axis."""
    top = jnp.max(parts.top, axis=0)
    shrink = jnp.exp(parts.top - top[None])
    total = jnp.sum(shrink * parts.total, axis=0)
    return Part(top, total, jnp.sum(shrink[..., None] * parts.out, axis=0))


def join_over(part: Part, axes: AxisNames) -> Part:
    """One part of those that the devices along mesh axes hold, the same on each."""
    top = jax.lax.pmax(part.top, axes)
    shrink = jnp.exp(part.top - top)
    total, out = jax.lax.psum((shrink * part.total, shrink[..., None] * part.out), axes)
    return Part(top, total, out)


def finish(part: Part) -> Float[Array, "*Q H"]:
    """The softmax's outputs; zeros where nothing was seen."""
    return part.out / jnp.where(part.total == 0, 1.0, part.total)[..., None]
