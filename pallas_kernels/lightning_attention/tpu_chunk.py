"""The kernels of lightning attention on TPU, as functions of one head and one chunk: its decays, its
segments, its products, forward and backward.

With P = q k^T * within, D = scale * do v^T * within, S the state before the chunk and G the
cotangent of the state after it:

  o  = scale * (P v + (q S) * entering)            S' = across * S + (k * leaving)^T v
  dq = D k + scale * (do S^T) * entering           dk = D^T q + (v G^T) * leaving
  dv = scale * P^T do + (k G) * leaving            G' = across * G + scale * (q * entering)^T do

S is made with the chunks and G against them.
"""

import dataclasses
import functools
import itertools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from pallas_kernels.lightning_attention import segments
from pallas_kernels.lightning_attention.segments import NEVER, decay_factor
from pallas_kernels.products import Precision, contract

Chunk = Float[Array, "C H"]
State = Float[Array, "H H"]
Ref = Any  # reference to a block; None for what this call does without

SUBLANES = 8  # rows of a float32 tile: packed segments fill five, the rest is zero


@dataclasses.dataclass(frozen=True)
class TpuPlan:
    """All that a kernel knows before it sees arrays."""

    scale: float  # factor on the outputs
    chunk: int  # tokens per grid step
    length: int  # tokens per row; the last chunk may be short
    width: int  # of a head
    heads: int  # per grid step; independent, so that their products hide each other's latency
    products: Literal["float32"] | Precision  # the latter for bfloat16 inputs
    interpret: bool

    @property
    def num_chunks(self) -> int:
        return pl.cdiv(self.length, self.chunk)


class Factors(NamedTuple):
    """By how much one head decays in one chunk, over `segments.Steps`."""

    within: Float[Array, "C C"]  # from token j to token i; 0 where i must not see j
    entering: Float[Array, "C _"]
    leaving: Float[Array, "C _"]
    across: Float[Array, "1 1"]


def pack_segments(segment_ids: Int[Array, "B T"], chunk: int) -> Float[Array, "B 8 S"]:
    """`segments.Steps` as rows, with a column per token, S whole chunks."""
    *steps, across = segments.steps_of_segments(segment_ids, chunk)
    rows = [*steps, jnp.broadcast_to(across, steps[0].shape)]
    rows += [jnp.zeros_like(steps[0])] * (SUBLANES - len(rows))
    return jnp.stack(rows, axis=1).reshape(segment_ids.shape[0], SUBLANES, -1)


def factors(
    plan: TpuPlan,
    log_decay: Float[Array, ""],
    index: Int[Array, ""],
    packed: Ref,
    within: Float[Array, "C C"] | None,
) -> Factors:
    """Of chunk `index`: from its packed segments or, for one segment, from its place."""
    if within is None:
        return _factors_of_segments(plan, log_decay, packed[...])
    size = (plan.length - index * plan.chunk).astype(jnp.float32)
    size = jnp.minimum(size, float(plan.chunk))
    row = _index((plan.chunk, plan.width), 0)
    return Factors(
        within=within,
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


def load(plan: TpuPlan, index: Int[Array, ""], packed: Ref, arrays: list[Chunk]) -> list[Chunk]:
    """q, k, v or the cotangent of the outputs with zeros where there is no real token."""
    if packed is not None:
        real = jnp.transpose(packed[...])[:, 1:2] >= 0
    elif plan.length % plan.chunk:  # past the end of a row lies whatever was there before
        real = _index((plan.chunk, 1), 0) < (plan.length - index * plan.chunk).astype(jnp.float32)
    else:
        return arrays
    return [jnp.where(real, x.astype(jnp.float32), 0.0).astype(x.dtype) for x in arrays]


def forward(
    plan: TpuPlan, factors: Factors, tokens: list[Chunk], state: State
) -> tuple[tuple[Chunk], State]:
    """Outputs, and the state after the chunk, from q, k, v and the state before it."""
    q, k, v = tokens
    scores = _product(plan, q, k, (1, 1)) * factors.within
    through_state = _product(plan, q, state, (1, 0)) * factors.entering
    out = plan.scale * (_product(plan, scores, v, (1, 0)) + through_state)
    return (out,), state * factors.across + _product(plan, k * factors.leaving, v, (0, 0))


def backward(
    plan: TpuPlan, factors: Factors, tokens: list[Chunk], cotangent: State, state: State
) -> tuple[tuple[Chunk, Chunk, Chunk], State]:
    """Cotangents of q, k, v and the state before the chunk, from q, k, v, do, that of the state after
    it, and the state before it."""
    q, k, v, do = tokens
    within, entering, leaving, across = factors
    through_state = plan.scale * _product(plan, do, state, (1, 1)) * entering
    dscores = plan.scale * _product(plan, do, v, (1, 1)) * within
    dq = _product(plan, dscores, k, (1, 0)) + through_state
    scores = plan.scale * _product(plan, q, k, (1, 1)) * within
    dk = _product(plan, dscores, q, (0, 0)) + _product(plan, v, cotangent, (1, 1)) * leaving
    dv = _product(plan, scores, do, (0, 0)) + _product(plan, k, cotangent, (1, 0)) * leaving
    read = _product(plan, q * (plan.scale * entering), do, (0, 0))
    return (dq, dk, dv), cotangent * across + read


def _product(
    plan: TpuPlan, a: Float[Array, "I J"], b: Float[Array, "K L"], over: tuple[int, int]
) -> Float[Array, "_ _"]:
    """Sum over axis over[0] of a and over[1] of b, in float32.

    bfloat16 operands are exact; float32 ones may become one or two bfloat16 terms by `plan.products`.
    """
    terms = itertools.product(_terms(plan, a), _terms(plan, b))
    return functools.reduce(jnp.add, [contract(x, y, over) for x, y in terms])


def _terms(plan: TpuPlan, x: Float[Array, "I J"]) -> list[Float[Array, "I J"]]:
    if x.dtype == jnp.bfloat16 or plan.products == "float32":
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
