"""One chunk of one head, as the TPU kernels of lightning attention see it: its decays, its
documents, its products."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from pallas_kernels.lightning_attention import segments

Refs = tuple[Any, ...]  # references to blocks; empty for what this call does without

SUBLANES = 8  # rows of a float32 tile: marks fill five, the rest is zero
NEVER = -1.0  # number of steps over which nothing is left


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a kernel knows before it sees arrays.

    Attributes:
      scale: factor on the outputs.
      chunk: tokens per grid step.
      length: tokens per row; the last chunk may be short.
      width: of a head.
      heads: per grid step; independent, so that their products hide each other's latency.
      products: "float32", or for bfloat16 inputs "split" (float32 operands as the sum of two
        bfloat16 terms, a product each) or "one_pass" (rounded to bfloat16).
      save_states: the forward pass keeps the memory before every chunk for the backward pass.
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
    """By how much one head fades in one chunk; see `chunked.Decays`."""

    within: Float[Array, "C C"]
    entering: Float[Array, "C _"]
    leaving: Float[Array, "C _"]
    across: Float[Array, "..."]


def marks(segment_ids: Int[Array, "B T"], chunk: int) -> Float[Array, "B 8 S"]:
    """Per token, all that documents change: rows of numbers that each head fades by, S whole chunks
    long.

    Rows: real tokens of the chunk so far; document, NEVER for padding; then the steps from the
    memory before the chunk to the token, from the token to the memory after the chunk, and from one
    memory to the other, NEVER where a document begins in between.
    """
    batch, length = segment_ids.shape
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, -length % chunk)))
    shape = (batch, -1, chunk)
    real = segments.is_real(segment_ids).reshape(shape)
    count = jnp.cumsum(real, axis=-1, dtype=jnp.float32)
    document = jnp.cumsum(segments.starts_segment(segment_ids), axis=1, dtype=jnp.float32)
    document = document.reshape(shape)
    end, total = document[..., -1:], count[..., -1:]
    before = jnp.pad(end[:, :-1], ((0, 0), (1, 0), (0, 0)))
    entering = jnp.where(real & (document == before), count, NEVER)
    leaving = jnp.where(real & (document == end), total - count, NEVER)
    across = jnp.broadcast_to(jnp.where(end == before, total, NEVER), count.shape)
    rows = [count, jnp.where(real, document, NEVER), entering, leaving, across]
    rows += [jnp.zeros_like(count)] * (SUBLANES - len(rows))
    return jnp.stack(rows, axis=1).reshape(batch, SUBLANES, -1)


def fade(log_decay: Float[Array, ""], steps: Float[Array, "..."]) -> Float[Array, "..."]:
    """exp(log_decay * steps), 0 for NEVER. Clamped before exp: an overflow masked afterwards is
    NaN."""
    return jnp.where(steps < 0, 0.0, jnp.exp(log_decay * jnp.maximum(steps, 0.0)))


def factors(
    plan: Plan,
    log_decay: Float[Array, ""],
    index: Int[Array, ""],
    marks_refs: Refs,
    within: list[Float[Array, "C C"]],
) -> Factors:
    """Of chunk `index`: from its marks or, for one document, from its place."""
    if marks_refs:
        return _of_documents(plan, log_decay, marks_refs[0][...])
    size = (plan.length - index * plan.chunk).astype(jnp.float32)
    size = jnp.minimum(size, float(plan.chunk))
    row = _index((plan.chunk, plan.width), 0)
    return Factors(
        within=within[0],
        entering=fade(log_decay, row + 1.0),
        leaving=fade(log_decay, jnp.maximum(size - 1.0 - row, NEVER)),
        across=fade(log_decay, jnp.full((1, 1), size)),
    )


def _of_documents(plan: Plan, log_decay: Float[Array, ""], rows: Float[Array, "8 C"]) -> Factors:
    columns = jnp.transpose(rows)
    count, document, entering, leaving = (columns[:, i : i + 1] for i in range(4))
    square = (plan.chunk, plan.chunk)
    seen = (_index(square, 0) >= _index(square, 1)) & (document == rows[1:2])
    return Factors(
        within=fade(log_decay, jnp.where(seen, count - rows[0:1], NEVER)),
        entering=fade(log_decay, entering),
        leaving=fade(log_decay, leaving),
        across=fade(log_decay, rows[4:5, :1]),
    )


def load(
    plan: Plan, index: Int[Array, ""], marks_refs: Refs, arrays: list[Float[Array, "C H"]]
) -> list[Float[Array, "C H"]]:
    """q, k, v or the cotangent of the outputs with zeros where there is no real token."""
    if marks_refs:
        real = jnp.transpose(marks_refs[0][...])[:, 1:2] >= 0
    elif plan.length % plan.chunk:  # past the end of a row lies whatever was there before
        real = _index((plan.chunk, 1), 0) < (plan.length - index * plan.chunk).astype(jnp.float32)
    else:
        return arrays
    return [jnp.where(real, x.astype(jnp.float32), 0.0).astype(x.dtype) for x in arrays]


def product(
    plan: Plan, a: Float[Array, "I J"], b: Float[Array, "K L"], over: tuple[int, int]
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


def _terms(plan: Plan, x: Float[Array, "I J"]) -> list[Float[Array, "I J"]]:
    if x.dtype == jnp.bfloat16:
        return [x]
    high = x.astype(jnp.bfloat16)
    if plan.products == "one_pass":
        return [high]
    return [high, (x - high.astype(jnp.float32)).astype(jnp.bfloat16)]


def gaps(plan: Plan) -> Float[Array, "C C"]:
    """Steps from token j to token i of a chunk of one document, NEVER where j comes later."""
    square = (plan.chunk, plan.chunk)
    return jnp.maximum(_index(square, 0) - _index(square, 1), NEVER)


def _index(shape: tuple[int, int], axis: int) -> Float[Array, "I J"]:
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis).astype(jnp.float32)
