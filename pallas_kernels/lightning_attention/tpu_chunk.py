"""What the TPU kernels of lightning attention share: one chunk of one head, its decays, its
products, and the blocks that bring it from memory.

Public arrays are seen as [B, T, N*H], so that a head is a block of lanes and no copy changes their
layout.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels.lightning_attention import documents

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
      products: "float32", or for bfloat16 inputs "split" (float32 operands as the sum of two
        bfloat16 terms, a product each) or "one_pass" (rounded to bfloat16).
      save_states: the forward pass keeps the memory before every chunk for the backward pass.
      interpret: run each step on the host.
    """

    scale: float
    chunk: int
    length: int
    width: int
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
    real = documents.is_real(segment_ids).reshape(shape)
    count = jnp.cumsum(real, axis=-1, dtype=jnp.float32)
    document = jnp.cumsum(documents.starts_document(segment_ids), axis=1, dtype=jnp.float32)
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


def start(
    plan: Plan, log_decay_ref: Any, first_ref: Any, carried_ref: Any, within_refs: Refs
) -> None:
    """At the first step of a head: what is carried from chunk to chunk, and what all chunks
    share."""
    log_decay = log_decay_ref[pl.program_id(1)]

    @pl.when(pl.program_id(2) == 0)
    def _():
        carried_ref[...] = first_ref[...]
        square = (plan.chunk, plan.chunk)
        for ref in within_refs:
            steps = jnp.maximum(_index(square, 0) - _index(square, 1), NEVER)
            ref[...] = fade(log_decay, steps)


def factors(
    plan: Plan, log_decay_ref: Any, index: Int[Array, ""], marks_refs: Refs, within_refs: Refs
) -> Factors:
    """Factors of chunk `index`, from its marks or, for one document, from its place."""
    log_decay = log_decay_ref[pl.program_id(1)]
    if marks_refs:
        return _factors_of_documents(plan, log_decay, marks_refs[0][...])
    size = (plan.length - index * plan.chunk).astype(jnp.float32)
    size = jnp.minimum(size, float(plan.chunk))
    row = _index((plan.chunk, plan.width), 0)
    return Factors(
        within=within_refs[0][...],
        entering=fade(log_decay, row + 1.0),
        leaving=fade(log_decay, jnp.maximum(size - 1.0 - row, NEVER)),
        across=fade(log_decay, jnp.full((1, 1), size)),
    )


def _factors_of_documents(
    plan: Plan, log_decay: Float[Array, ""], rows: Float[Array, "8 C"]
) -> Factors:
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
    plan: Plan, index: Int[Array, ""], marks_refs: Refs, refs: Refs
) -> list[Float[Array, "C H"]]:
    """One chunk of q, k, v or the cotangent of the outputs, zeros where there is no real token."""
    arrays = [ref[...] for ref in refs]
    if plan.products == "float32":
        arrays = [x.astype(jnp.float32) for x in arrays]
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
    return sum(
        jax.lax.dot_general(x, y, dimensions, jax.lax.Precision.DEFAULT, jnp.float32)
        for x in _terms(plan, a)
        for y in _terms(plan, b)
    )


def _terms(plan: Plan, x: Float[Array, "I J"]) -> list[Float[Array, "I J"]]:
    if x.dtype == jnp.bfloat16:
        return [x]
    high = x.astype(jnp.bfloat16)
    if plan.products == "one_pass":
        return [high]
    return [high, (x - high.astype(jnp.float32)).astype(jnp.bfloat16)]


def _index(shape: tuple[int, int], axis: int) -> Float[Array, "I J"]:
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Block specs on the grid (batch, head, chunk); `backward` walks the chunks last to first."""

    plan: Plan
    backward: bool = False

    def _chunk(self, step: Any) -> Any:
        return self.plan.num_chunks - 1 - step if self.backward else step

    @property
    def log_decay(self) -> pl.BlockSpec:
        return pl.BlockSpec(memory_space=pltpu.SMEM)

    @property
    def tokens(self) -> pl.BlockSpec:
        shape = (None, self.plan.chunk, self.plan.width)
        return pl.BlockSpec(shape, lambda b, n, c: (b, self._chunk(c), n))

    @property
    def marks(self) -> pl.BlockSpec:
        shape = (None, SUBLANES, self.plan.chunk)
        return pl.BlockSpec(shape, lambda b, n, c: (b, 0, self._chunk(c)))

    @property
    def memory(self) -> pl.BlockSpec:
        shape = (None, None, self.plan.width, self.plan.width)
        return pl.BlockSpec(shape, lambda b, n, c: (b, n, 0, 0))

    @property
    def memories(self) -> pl.BlockSpec:
        shape = (None, None, None, self.plan.width, self.plan.width)
        return pl.BlockSpec(shape, lambda b, n, c: (b, n, self._chunk(c), 0, 0))


def call(
    kernel: Callable[..., None],
    plan: Plan,
    operands: tuple[Any, ...],
    *,
    in_specs: Any,
    out_shape: Any,
    out_specs: Any,
    squares: int,
    memories: int,
    name: str,
) -> Any:
    """`pl.pallas_call` of a kernel on the grid (batch, head, chunk), the chunks in order.

    The last operand is the tuple of marks; the last reference of the kernel is the tuple of
    `within`, one of which is empty.

    Args:
      squares, memories: products per chunk over [C, C] and over [H, H], for the cost estimate.
    """
    log_decay, marks = operands[0], operands[-1]
    heads, square = log_decay.shape[0], (plan.chunk, plan.chunk)
    batch = operands[1][0].shape[0]
    steps = batch * heads * plan.num_chunks
    exponents = (steps if marks else batch * heads) * plan.chunk**2
    moved = [x.size * x.dtype.itemsize for x in jax.tree.leaves((operands, out_shape))]
    products = squares * plan.chunk + memories * plan.width
    return pl.pallas_call(
        kernel,
        grid=(batch, heads, plan.num_chunks),
        in_specs=in_specs,
        out_shape=out_shape,
        out_specs=out_specs,
        scratch_shapes=((pltpu.VMEM(square, jnp.float32),) * (not marks),),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * steps * plan.chunk * plan.width * products,
            transcendentals=exponents + 2 * steps * plan.chunk * plan.width,
            bytes_accessed=sum(moved),
        ),
        interpret=plan.interpret,
        name=name,
    )(*operands)
