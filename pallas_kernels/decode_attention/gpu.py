"""Decode attention on NVIDIA GPUs: every row's slots in parallel splits, so that one query fills the
chip.

A block of threads owns the queries of one key/value head and one split of a row's slots, and walks
it in tiles with an online softmax; (max, sum, outputs) of the splits are joined by XLA. How far each
split goes is read from the lengths of the rows, so a short row is spread as evenly as a long one.

Written in Pallas for Triton; `pallas_kernels.products` says why.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.attention import partial_softmax
from pallas_kernels.attention.operands import Operands
from pallas_kernels.attention.partial_softmax import Part
from pallas_kernels.blocks import block_specs
from pallas_kernels.cost import cost
from pallas_kernels.decode_attention.plan import Plan, lengths, spans
from pallas_kernels.products import contract_on_gpu

MAX_WIDTH = 256  # wider outputs do not fit into the registers of one block
MAX_GROUP = 64
BLOCKS = 396  # three on each of an H100's 132 multiprocessors; more would be a second round
TILE_BYTES = 16 * 2**10  # of keys; three stages of keys and values are in flight
STAGES = 3
MIN_TILES = 4  # of a split of a full cache, or its results would be much of what it reads
MATRIX_ROWS = 16  # the least the matrix units take

GRID = "K I B"  # key/value heads, splits, rows
INPUTS = ("B I", "B I", "B", "B", "B S", "B K G H", "B S K H", "B S K H")
PARTS = "I B K G", "I B K G", "I B K G H"

Ref = Any  # an array in HBM, read and written by index


class GpuPlan(Plan):
    """A block of slots is a tile, walked through by one block of threads after the other."""

    @property
    def rows(self) -> int:
        """Rows of a tile of queries."""
        return max(MATRIX_ROWS, pl.next_power_of_2(self.group))

    @property
    def columns(self) -> int:
        return max(16, pl.next_power_of_2(self.width))


def gpu(operands: Operands, *, scale: float) -> Part:
    """The kernel above; tiles after a row's last visible slot are neither read nor computed.

    Probabilities are multiplied with bfloat16 values as the sum of two bfloat16 terms: relative
    error 3e-6. float32 is multiplied in three TF32 products.
    """
    dispatch.require("decode_attention", "gpu", unsupported_reason(operands), "chunked")
    (batch, capacity, kv_heads, _), tile = operands.k.shape, tile_slots(operands.k)
    splits = min(max(1, BLOCKS // (batch * kv_heads)), pl.cdiv(capacity, MIN_TILES * tile))
    plan = GpuPlan.of(operands, scale, block=tile, splits=splits)
    return partial_softmax.join(_parts(plan, operands))


def unsupported_reason(operands: Operands) -> str | None:
    """Why the kernel cannot run these arguments here; None where it can."""
    q, keys, values = operands[:3]
    if q.shape[3] > MAX_WIDTH:
        return f"takes heads up to {MAX_WIDTH} wide, and these are {q.shape[3]}"
    group = q.shape[2] // keys.shape[2]
    if group > MAX_GROUP:
        return f"takes up to {MAX_GROUP} queries per key/value head, and these are {group}"
    reason = dispatch.dtypes_unsupported_reason("q, keys, values", q, keys, values)
    return reason or dispatch.gpu_unsupported_reason(dispatch.AMPERE)


def tile_slots(keys: Float[Array, "B S K H"]) -> int:
    """Slots per tile: a power of two."""
    columns = pl.next_power_of_2(keys.shape[3])
    return min(128, max(16, TILE_BYTES // (columns * keys.dtype.itemsize)))


def _parts(plan: GpuPlan, operands: Operands) -> Part:
    q, keys, values, _, segment_ids, key_segment_ids = operands
    q, counts = q[:, 0], lengths(operands)
    begin, end = spans(counts, plan.block, plan.splits)
    rows = (plan.batch, plan.kv_heads, plan.group)
    segment_ids = None if segment_ids is None else segment_ids[:, 0]
    inputs = (begin, end, counts, segment_ids, key_segment_ids)
    inputs = (*inputs, q.reshape(*rows, plan.width), keys, values)
    lines = (plan.splits, *rows)
    numbers: Any = jax.ShapeDtypeStruct(lines, jnp.float32)
    outputs: Any = jax.ShapeDtypeStruct((*lines, plan.width), jnp.float32)
    shapes = Part(numbers, numbers, outputs)
    pairs = q.shape[0] * q.shape[1] * plan.capacity
    (results,) = pl.pallas_call(
        functools.partial(_walk, plan),
        grid=(plan.kv_heads, plan.splits, plan.batch),
        in_specs=block_specs(GRID, INPUTS, inputs),
        out_specs=(block_specs(GRID, Part._make(PARTS), shapes),),
        out_shape=(shapes,),
        interpret=plan.interpret,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=STAGES),
        cost_estimate=cost(4 * pairs * plan.width, pairs, (inputs, shapes)),
        name="decode_attention",
    )(*inputs)
    return jax.tree.map(lambda x: x.reshape(plan.splits, *q.shape[:2], *x.shape[4:]), results)


def _walk(plan, begin, end, counts, segment_id, key_segment_ids, q, keys, values, results):
    """One split of one row for the queries of one key/value head; a `Part` of arrays in HBM results."""
    count = counts[...]
    is_query = jnp.arange(plan.rows) < plan.group
    queries = _read(plan, q, 0, is_query)

    def add(j, part):
        start = j * plan.block
        inside = start + jnp.arange(plan.block) < count
        these = _read(plan, keys, start, inside)
        scores = contract_on_gpu(queries, these, (1, 1), interpret=plan.interpret)
        mask = inside
        if segment_id is not None:
            ids = triton.load(key_segment_ids.at[pl.ds(start, plan.block)], mask=inside, other=0)
            mask = inside & (ids == segment_id[...])
        scores = jnp.where(mask[None, :], plan.scale * scores, -jnp.inf)
        return partial_softmax.add(
            part, scores, 1, lambda x: _weighted(plan, x, _read(plan, values, start, inside))
        )

    start = partial_softmax.nothing((plan.rows, plan.columns))
    part = jax.lax.fori_loop(begin[...], end[...], add, start)
    rows = pl.ds(jnp.zeros((), jnp.int32), plan.rows)
    for ref, x in ((results.top, part.top), (results.total, part.total)):
        triton.store(ref.at[rows], x, mask=is_query)
    columns, inside = _columns(plan)
    mask = is_query[:, None] & inside[None, :]
    triton.store(results.out.at[rows, columns], part.out, mask=mask)


def _read(
    plan: GpuPlan, ref: Ref, start: Int[Array, ""] | int, real: Bool[Array, "R"]
) -> Float[Array, "R C"]:
    columns, inside = _columns(plan)
    rows = pl.ds(jnp.asarray(start, jnp.int32), real.shape[0])
    return triton.load(ref.at[rows, columns], mask=real[:, None] & inside[None, :], other=0.0)


def _columns(plan: GpuPlan) -> tuple[Any, Bool[Array, "C"]]:
    """Where the columns of a head are, and which of a tile's are the head's."""
    # A slice past the end is refused where its start is a Python number; the mask keeps it inside.
    start = jnp.zeros((), jnp.int32) if plan.columns > plan.width else 0
    return pl.ds(start, plan.columns), jnp.arange(plan.columns) < plan.width


def _weighted(
    plan: GpuPlan, weights: Float[Array, "R S"], values: Float[Array, "S C"]
) -> Float[Array, "R C"]:
    product = functools.partial(contract_on_gpu, over=(1, 0), interpret=plan.interpret)
    if values.dtype == jnp.float32:
        return product(weights, values)
    high = weights.astype(values.dtype)
    low = (weights - high.astype(jnp.float32)).astype(values.dtype)
    return product(high, values) + product(low, values)
