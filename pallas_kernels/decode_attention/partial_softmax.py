"""Softmax over some of the slots as (max, sum, outputs), and how such parts are joined."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.mesh import AxisNames

# Finite: a part that has seen nothing subtracts it from itself without a NaN.
LOWEST = float(jnp.finfo(jnp.float32).min)


class Operands(NamedTuple):
    """Arguments of `decode_attention` that are arrays; the same meaning, None included."""

    q: Float[Array, "B N H"]
    keys: Float[Array, "B S K H"]
    values: Float[Array, "B S K H"]
    slots: Int[Array, "B"]
    segment_ids: Int[Array, "B"] | None
    key_segment_ids: Int[Array, "B S"] | None


class Part(NamedTuple):
    """Softmax over some slots, not yet divided by its sum; LOWEST and zeros where none is seen.

    Several parts of the same queries have a leading axis I.
    """

    top: Float[Array, "*I B N"]  # the largest score
    total: Float[Array, "*I B N"]  # sum of exp(score - top)
    out: Float[Array, "*I B N H"]  # sum of exp(score - top) * value


def lengths(operands: Operands) -> Int[Array, "B"]:
    """How many slots of each row can be seen at all: none of those after is ever read."""
    count = jnp.clip(operands.slots + 1, 0, operands.keys.shape[1]).astype(jnp.int32)
    if operands.segment_ids is None:
        return count
    return jnp.where(operands.segment_ids == 0, 0, count)


def seen(operands: Operands, start: Int[Array, ""] | int, size: int) -> Bool[Array, "B S"]:
    """Which of the slots from `start` on each row sees."""
    slots = start + jnp.arange(size, dtype=jnp.int32)[None]
    mask = slots <= operands.slots[:, None]
    if operands.segment_ids is None or operands.key_segment_ids is None:
        return mask
    key_ids = jax.lax.dynamic_slice_in_dim(operands.key_segment_ids, start, size, axis=1)
    segment_ids = operands.segment_ids[:, None]
    return mask & (key_ids == segment_ids) & (segment_ids != 0)


def spans(
    counts: Int[Array, "B"], block: int, splits: int
) -> tuple[Int[Array, "B I"], Int[Array, "B I"]]:
    """First block of each split, and the block after its last: as many each as the row's own
    length allows, so that no split idles because a row is short."""
    blocks = -(-counts[:, None] // block)
    share = -(-blocks // splits)
    split = jnp.arange(splits, dtype=jnp.int32)[None]
    return jnp.minimum(split * share, blocks), jnp.minimum((split + 1) * share, blocks)


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


def finish(part: Part) -> Float[Array, "B N H"]:
    """The softmax's outputs; zeros where nothing was seen."""
    return part.out / jnp.where(part.total == 0, 1.0, part.total)[..., None]
