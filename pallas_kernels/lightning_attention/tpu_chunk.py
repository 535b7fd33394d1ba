"""What the TPU kernels of lightning attention share: one chunk of one head, its decays, its
products, and the blocks that bring it from memory.

Public arrays are seen as [B, T, N*H], so that a head is a block of lanes and no copy changes their
layout.
"""

import dataclasses
import functools
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


def _fade(log_decay: Float[Array, ""], steps: Float[Array, "..."]) -> Float[Array, "..."]:
    """exp(log_decay * steps), 0 for NEVER. Clamped before exp: an overflow masked afterwards is
    NaN."""
    return jnp.where(steps < 0, 0.0, jnp.exp(log_decay * jnp.maximum(steps, 0.0)))


def _factors(
    plan: Plan,
    log_decay: Float[Array, ""],
    index: Int[Array, ""],
    marks_refs: Refs,
    within: list[Float[Array, "C C"]],
) -> Factors:
    """Of chunk `index`: from its marks or, for one document, from its place."""
    if marks_refs:
        return _factors_of_documents(plan, log_decay, marks_refs[0][...])
    size = (plan.length - index * plan.chunk).astype(jnp.float32)
    size = jnp.minimum(size, float(plan.chunk))
    row = _index((plan.chunk, plan.width), 0)
    return Factors(
        within=within[0],
        entering=_fade(log_decay, row + 1.0),
        leaving=_fade(log_decay, jnp.maximum(size - 1.0 - row, NEVER)),
        across=_fade(log_decay, jnp.full((1, 1), size)),
    )


def _factors_of_documents(
    plan: Plan, log_decay: Float[Array, ""], rows: Float[Array, "8 C"]
) -> Factors:
    columns = jnp.transpose(rows)
    count, document, entering, leaving = (columns[:, i : i + 1] for i in range(4))
    square = (plan.chunk, plan.chunk)
    seen = (_index(square, 0) >= _index(square, 1)) & (document == rows[1:2])
    return Factors(
        within=_fade(log_decay, jnp.where(seen, count - rows[0:1], NEVER)),
        entering=_fade(log_decay, entering),
        leaving=_fade(log_decay, leaving),
        across=_fade(log_decay, rows[4:5, :1]),
    )


def _load(
    plan: Plan, index: Int[Array, ""], marks_refs: Refs, arrays: list[Float[Array, "C H"]]
) -> list[Float[Array, "C H"]]:
    """q, k, v or the cotangent of the outputs with zeros where there is no real token."""
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


def _gaps(plan: Plan) -> Float[Array, "C C"]:
    """Steps from token j to token i of a chunk of one document, NEVER where j comes later."""
    square = (plan.chunk, plan.chunk)
    return jnp.maximum(_index(square, 0) - _index(square, 1), NEVER)


def _index(shape: tuple[int, int], axis: int) -> Float[Array, "I J"]:
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis).astype(jnp.float32)


class Result(NamedTuple):
    """What a kernel gives."""

    tokens: tuple[Float[Array, "..."], ...]  # outputs, or cotangents of q, k, v
    carried: Float[Array, "..."]  # what went from chunk to chunk, after the last one
    saved: tuple[Float[Array, "..."], ...] = ()  # and before every chunk, where it was to be saved


def call(
    kernel: Callable[..., tuple[tuple[Float[Array, "C H"], ...], Float[Array, "H H"]]],
    plan: Plan,
    log_decay: Float[Array, "N"],
    tokens: tuple[Float[Array, "B T W"], ...],
    first: Float[Array, "B N H H"],
    marks: tuple[Float[Array, "B 8 S"], ...],
    saved: tuple[Float[Array, "B N M H H"], ...] = (),
    *,
    gives: int,
    save: bool = False,
    backward: bool = False,
    squares: int,
    memories: int,
    name: str,
) -> Result:
    """Runs a kernel over the grid (batch, heads, chunk), each core over its chunks in order.

    Args:
      kernel: `(plan, factors, tokens, carried, *saved)` of one head and chunk to arrays like the
        tokens, and what the next chunk is to carry. It touches no references: all heads of a step
        are loaded before any is stored, which leaves the compiler free to interleave them.
      first: what the first chunk carries.
      gives: number of arrays like the tokens.
      save: give what each chunk carried, in the tokens' dtype.
      backward: walk the chunks last to first.
      squares, memories: products per chunk over [C, C] and over [H, H], for the cost estimate.
    """
    batch, heads = first.shape[:2]
    like, square = tokens[0], (plan.heads, plan.chunk, plan.chunk)
    memory_of_chunks = (batch, heads, plan.num_chunks, *first.shape[2:])
    operands = (log_decay, tokens, first, marks, saved)
    results = Result(
        tokens=(jax.ShapeDtypeStruct(like.shape, like.dtype),) * gives,
        carried=jax.ShapeDtypeStruct(first.shape, jnp.float32),
        saved=(jax.ShapeDtypeStruct(memory_of_chunks, like.dtype),) * save,
    )
    scalars, *blocks = _blocks(plan, backward)
    of_tokens, of_memory, of_marks, of_saved = blocks
    counts = (len(tokens), len(marks), len(saved))
    (result,) = pl.pallas_call(
        functools.partial(_step, kernel, plan, backward),
        grid=(batch, heads // plan.heads, plan.num_chunks),
        in_specs=(
            scalars,
            (of_tokens,) * counts[0],
            of_memory,
            (of_marks,) * counts[1],
            (of_saved,) * counts[2],
        ),
        out_specs=(Result((of_tokens,) * gives, of_memory, (of_saved,) * save),),
        out_shape=(results,),
        scratch_shapes=((pltpu.VMEM(square, jnp.float32),) * (not marks),),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=_cost(plan, batch * heads, (operands, results), squares, memories),
        interpret=plan.interpret,
        name=name,
    )(*operands)
    return result


def _step(
    kernel: Callable[..., Any],
    plan: Plan,
    backward: bool,
    log_decay_ref: Any,
    tokens_refs: Refs,
    first_ref: Any,
    marks_refs: Refs,
    saved_refs: Refs,
    result_refs: Result,
    within_refs: Refs,
) -> None:
    """One chunk of all heads of a grid step."""
    step = pl.program_id(2)
    index = plan.num_chunks - 1 - step if backward else step
    heads = range(plan.heads)
    log_decays = [log_decay_ref[pl.program_id(1) * plan.heads + head] for head in heads]

    @pl.when(step == 0)
    def _():
        result_refs.carried[...] = first_ref[...]
        for ref in within_refs:
            for head in heads:
                ref[head] = _fade(log_decays[head], _gaps(plan))

    stores = []
    for head in heads:
        lanes = pl.ds(head * plan.width, plan.width)
        within = [ref[head] for ref in within_refs]
        factors = _factors(plan, log_decays[head], index, marks_refs, within)
        tokens = _load(plan, index, marks_refs, [ref[:, lanes] for ref in tokens_refs])
        carried = result_refs.carried[head]
        saved = [ref[head] for ref in saved_refs]
        out, next_carried = kernel(plan, factors, tokens, carried, *saved)
        stores += [
            (ref, (slice(None), lanes), x) for ref, x in zip(result_refs.tokens, out, strict=True)
        ]
        stores += [(ref, head, carried) for ref in result_refs.saved]
        stores += [(result_refs.carried, head, next_carried)]
    for ref, place, x in stores:
        ref[place] = x.astype(ref.dtype)


def _blocks(plan: Plan, backward: bool) -> tuple[pl.BlockSpec, ...]:
    """Where a grid step finds log decays, tokens, a memory, marks and a memory of each chunk."""

    def chunk(step):
        return plan.num_chunks - 1 - step if backward else step

    square = (plan.width, plan.width)
    return (
        pl.BlockSpec(memory_space=pltpu.SMEM),
        pl.BlockSpec((None, plan.chunk, plan.heads * plan.width), lambda b, n, c: (b, chunk(c), n)),
        pl.BlockSpec((None, plan.heads, *square), lambda b, n, c: (b, n, 0, 0)),
        pl.BlockSpec((None, SUBLANES, plan.chunk), lambda b, n, c: (b, 0, chunk(c))),
        pl.BlockSpec((None, plan.heads, None, *square), lambda b, n, c: (b, n, chunk(c), 0, 0)),
    )


def _cost(plan: Plan, heads: int, arrays: Any, squares: int, memories: int) -> pl.CostEstimate:
    """Each array is moved once; a product counts once however many passes its precision takes."""
    numbers = heads * plan.num_chunks * plan.chunk * plan.width
    return pl.CostEstimate(
        flops=2 * numbers * (squares * plan.chunk + memories * plan.width),
        transcendentals=2 * numbers + heads * plan.chunk**2,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays)),
    )
