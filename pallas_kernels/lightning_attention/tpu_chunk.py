"""One chunk of one head, as the TPU kernels of lightning attention see it: its decays, its
segments, its products."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from pallas_kernels.lightning_attention import segments

Refs = tuple[Any, ...]  # references to blocks; empty for what this call does without

SUBLANES = 8  # rows of a float32 tile: packed segments fill five, the rest is zero
NEVER = -1.0  # number of steps over which nothing is left


@dataclasses.dataclass(frozen=True)
class TpuPlan:
    """All that a kernel knows before it sees arrays.

    Attributes:
      scale: factor on the outputs.
      chunk: tokens per grid step.
      length: tokens per row; the last chunk may be short.
      width: of a head.
      heads: per grid step; independent, so that their products hide each other's latency.
      products: "float32", or for bfloat16 inputs "split" (float32 operands as the sum of two
        bfloat16 terms, a product each) or "one_pass" (rounded to bfloat16).
      save_states: the forward pass keeps the state before every chunk for the backward pass.
      interpret: run each step on the host.
    """

    scale: float
    chunk: int
    length: int
    width: int
    heads: int
    products: Literal["float32", "split", "one_pass"]
    save_states: bool
    interpret: bool

    @property
    def num_chunks(self) -> int:
        return pl.cdiv(self.length, self.chunk)


class Factors(NamedTuple):
    """By how much one head decays in one chunk; see `chunked.Decays`."""

    within: Float[Array, "C C"]
    entering: Float[Array, "C _"]
    leaving: Float[Array, "C _"]
    across: Float[Array, "..."]


def pack_segments(segment_ids: Int[Array, "B T"], chunk: int) -> Float[Array, "B 8 S"]:
    """Per token, all that segments change: rows of steps over which each head decays, S whole chunks
    long.

    Rows: real tokens of the chunk so far; segment, NEVER for padding; then the steps from the
    state before the chunk to the token, from the token to the state after the chunk, and from one
    state to the other, NEVER where a segment begins in between.
    """
    batch, length = segment_ids.shape
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, -length % chunk)))
    shape = (batch, -1, chunk)
    real = segments.is_real(segment_ids).reshape(shape)
    count = jnp.cumsum(real, axis=-1, dtype=jnp.float32)
    segment = jnp.cumsum(segments.starts_segment(segment_ids), axis=1, dtype=jnp.float32)
    segment = segment.reshape(shape)
    end, total = segment[..., -1:], count[..., -1:]
    before = jnp.pad(end[:, :-1], ((0, 0), (1, 0), (0, 0)))
    entering = jnp.where(real & (segment == before), count, NEVER)
    leaving = jnp.where(real & (segment == end), total - count, NEVER)
    across = jnp.broadcast_to(jnp.where(end == before, total, NEVER), count.shape)
    rows = [count, jnp.where(real, segment, NEVER), entering, leaving, across]
    rows += [jnp.zeros_like(count)] * (SUBLANES - len(rows))
    return jnp.stack(rows, axis=1).reshape(batch, SUBLANES, -1)


def decay_factor(log_decay: Float[Array, ""], steps: Float[Array, "..."]) -> Float[Array, "..."]:
    """exp(log_decay * steps), 0 for NEVER. Clamped before exp: an overflow masked afterwards is
    NaN."""
    return jnp.where(steps < 0, 0.0, jnp.exp(log_decay * jnp.maximum(steps, 0.0)))


def factors(
    plan: TpuPlan,
    log_decay: Float[Array, ""],
    index: Int[Array, ""],
    packed_refs: Refs,
    within: list[Float[Array, "C C"]],
) -> Factors:
    """Of chunk `index`: from its packed segments or, for one segment, from its place."""
    if packed_refs:
        return _factors_of_segments(plan, log_decay, packed_refs[0][...])
    size = (plan.length - index * plan.chunk).astype(jnp.float32)
    size = jnp.minimum(size, float(plan.chunk))
    row = _index((plan.chunk, plan.width), 0)
    return Factors(
        within=within[0],
        entering=decay_factor(log_decay, row + 1.0),
        leaving=decay_factor(log_decay, jnp.maximum(size - 1.0 - row, NEVER)),
        across=decay_factor(log_decay, jnp.full((1, 1), size)),
    )


def _factors_of_segments(
    plan: TpuPlan, log_decay: Float[Array, ""], rows: Float[Array, "8 C"]
) -> Factors:
    columns = jnp.transpose(rows)
    count, segment, entering, leaving = (columns[:, i : i + 1] for i in range(4))
    square = (plan.chunk, plan.chunk)
    seen = (_index(square, 0) >= _index(square, 1)) & (segment == rows[1:2])
    return Factors(
        within=decay_factor(log_decay, jnp.where(seen, count - rows[0:1], NEVER)),
        entering=decay_factor(log_decay, entering),
        leaving=decay_factor(log_decay, leaving),
        across=decay_factor(log_decay, rows[4:5, :1]),
    )


def load(
    plan: TpuPlan, index: Int[Array, ""], packed_refs: Refs, arrays: list[Float[Array, "C H"]]
) -> list[Float[Array, "C H"]]:
    """q, k, v or the cotangent of the outputs with zeros where there is no real token."""
    if packed_refs:
        real = jnp.transpose(packed_refs[0][...])[:, 1:2] >= 0
    elif plan.length % plan.chunk:  # past the end of a row lies whatever was there before
        real = _index((plan.chunk, 1), 0) < (plan.length - index * plan.chunk).astype(jnp.float32)
    else:
        return arrays
    return [jnp.where(real, x.astype(jnp.float32), 0.0).astype(x.dtype) for x in arrays]


def product(
    plan: TpuPlan, a: Float[Array, "I J"], b: Float[Array, "K L"], over: tuple[int, int]
) -> Float[Array, "_ _"]:
    """Sum over axis over[0] of a and over[1] of b, in float32.

    bfloat16 operands are exact; float32 ones become one or two bfloat16 terms by `plan.products`.
    """
    dimensions = (((over[0],), (over[1],)), ((), ()))
    if plan.products == "float32":
        highest = jax.lax.Precision.HIGHEST
        return jax.lax.dot_general(a, b, dimensions, highest, jnp.float32)
    default = jax.lax.Precision.DEFAULT
    terms = [(x, y) for x in _terms(plan, a) for y in _terms(plan, b)]
    parts = [jax.lax.dot_general(x, y, dimensions, default, jnp.float32) for x, y in terms]
    return functools.reduce(jnp.add, parts)


def _terms(plan: TpuPlan, x: Float[Array, "I J"]) -> list[Float[Array, "I J"]]:
    if x.dtype == jnp.bfloat16:
        return [x]
    high = x.astype(jnp.bfloat16)
    if plan.products == "one_pass":
        return [high]
    return [high, (x - high.astype(jnp.float32)).astype(jnp.bfloat16)]


def gaps(plan: TpuPlan) -> Float[Array, "C C"]:
    """Steps from token j to token i of a chunk of one segment, NEVER where j comes later."""
    square = (plan.chunk, plan.chunk)
    return jnp.maximum(_index(square, 0) - _index(square, 1), NEVER)


def _index(shape: tuple[int, int], axis: int) -> Float[Array, "I J"]:
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis).astype(jnp.float32)
