"""Decode attention on NVIDIA GPUs: every row's slots in parallel splits, so that one query fills the
chip.

A block of threads owns the queries of one key/value head and one split of a row's slots, and walks
it in tiles with an online softmax; (max, sum, outputs) of the splits are joined by XLA. How far each
split goes is read from the lengths of the rows, so a short row is spread as evenly as a long one.

Written in Pallas for Triton; `pallas_kernels.products` says why.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.cost import cost
from pallas_kernels.decode_attention import partial_softmax
from pallas_kernels.decode_attention.partial_softmax import LOWEST, Operands, Part
from pallas_kernels.products import contract_on_gpu

MAX_WIDTH = 256  # wider outputs do not fit into the registers of one block
MAX_GROUP = 64
BLOCKS = 396  # three on each of an H100's 132 multiprocessors; more would be a second round
TILE_BYTES = 16 * 2**10  # of keys; three stages of keys and values are in flight
STAGES = 3
MIN_TILES = 4  # of a split of a full cache, or its results would be much of what it reads
MATRIX_ROWS = 16  # the least the matrix units take

Ref = Any  # an array in HBM, read and written by index


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one call is cut: each row's slots into `splits` runs of tiles of `tile` slots."""

    scale: float
    batch: int
    capacity: int
    kv_heads: int
    group: int  # query heads of one key/value head
    width: int
    tile: int
    splits: int
    interpret: bool

    @property
    def rows(self) -> int:
        """Rows of a tile of queries."""
        return max(MATRIX_ROWS, pl.next_power_of_2(self.group))

    @property
    def columns(self) -> int:
        return max(16, pl.next_power_of_2(self.width))


def gpu(
    operands: Operands,
    *,
    scale: float,
) -> Part:
    """The kernel above; tiles after a row's last visible slot are neither read nor computed.

    Probabilities are multiplied with bfloat16 values as the sum of two bfloat16 terms: relative
    error 3e-6. float32 is multiplied in three TF32 products.
    Raises:
      UnsupportedError: not a data-centre GPU from Ampere on, types that are neither all bfloat16 nor
        all float32, heads too wide, groups too large, or a mesh.
    """
    dispatch.require("decode_attention", "gpu", unsupported_reason(operands), "chunked")
    return partial_softmax.join(_attend(operands, _plan(operands, scale)))


def unsupported_reason(operands: Operands) -> str | None:
    """Why the kernel cannot run these arguments here; None where it can."""
    q, keys, values = operands[:3]
    reason = dispatch.dtypes_unsupported_reason("q, keys, values", q, keys, values)
    if reason is not None:
        return reason
    if q.shape[2] > MAX_WIDTH:
        return f"takes heads up to {MAX_WIDTH} wide, and these are {q.shape[2]}"
    group = q.shape[1] // keys.shape[2]
    if group > MAX_GROUP:
        return f"takes up to {MAX_GROUP} queries per key/value head, and these are {group}"
    return dispatch.gpu_unsupported_reason(dispatch.AMPERE)


def tile_slots(keys: Float[Array, "B S K H"]) -> int:
    """Slots per tile: a power of two."""
    columns = pl.next_power_of_2(keys.shape[3])
    return min(128, max(16, TILE_BYTES // (columns * keys.dtype.itemsize)))


def _plan(operands: Operands, scale: float) -> Plan:
    q, keys = operands[:2]
    batch, capacity, kv_heads, width = keys.shape
    tile = tile_slots(keys)
    splits = min(max(1, BLOCKS // (batch * kv_heads)), pl.cdiv(capacity, MIN_TILES * tile))
    shape = (batch, capacity, kv_heads, q.shape[1] // kv_heads, width)
    return Plan(scale, *shape, tile, splits, dispatch.interprets())


def _attend(
    operands: Operands,
    plan: Plan,
) -> Part:
    q, keys, values, _, segment_ids, key_segment_ids = operands
    counts = partial_softmax.lengths(operands)
    begin, end = partial_softmax.spans(counts, plan.tile, plan.splits)
    rows = (plan.batch, plan.kv_heads, plan.group)
    inputs = (begin, end, counts, segment_ids, key_segment_ids)
    inputs = (*inputs, q.reshape(*rows, plan.width), keys, values)
    lines = (plan.splits, *rows)
    shapes = tuple(jax.ShapeDtypeStruct((*lines, *n), jnp.float32) for n in ((), (), q.shape[2:]))
    pairs = q.shape[0] * q.shape[1] * plan.capacity
    (results,) = pl.pallas_call(
        functools.partial(_walk, plan=plan),
        grid=(plan.kv_heads, plan.splits, plan.batch),
        in_specs=_in_specs(plan, masked=segment_ids is not None),
        out_specs=(_out_specs(plan),),
        out_shape=(shapes,),
        interpret=plan.interpret,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=STAGES),
        cost_estimate=cost(4 * pairs * plan.width, pairs, (inputs, shapes)),
        name="decode_attention",
    )(*inputs)
    return Part(*(x.reshape(plan.splits, *q.shape[:2], *x.shape[4:]) for x in results))


def _in_specs(plan: Plan, *, masked: bool) -> tuple[pl.BlockSpec | None, ...]:
    """What one block of the grid (key/value heads, splits, rows) sees of each input."""
    number = pl.BlockSpec((1,), lambda k, i, b: (b,))
    boundary = pl.BlockSpec((None, plan.splits), lambda k, i, b: (b, 0))
    slots = pl.BlockSpec((None, plan.capacity), lambda k, i, b: (b, 0))
    queries = pl.BlockSpec((None, None, plan.group, plan.width), lambda k, i, b: (b, k, 0, 0))
    cache = pl.BlockSpec((None, plan.capacity, None, plan.width), lambda k, i, b: (b, 0, k, 0))
    ids = (number, slots) if masked else (None, None)
    return boundary, boundary, number, *ids, queries, cache, cache


def _out_specs(plan: Plan) -> tuple[pl.BlockSpec, ...]:
    number = pl.BlockSpec((None, None, None, plan.group), lambda k, i, b: (i, b, k, 0))
    line = pl.BlockSpec((None, None, None, plan.group, plan.width), lambda k, i, b: (i, b, k, 0, 0))
    return number, number, line


def _walk(
    begin: Ref,
    end: Ref,
    counts: Ref,
    segment_id: Ref | None,
    key_segment_ids: Ref | None,
    q: Ref,
    keys: Ref,
    values: Ref,
    results: tuple[Ref, Ref, Ref],
    *,
    plan: Plan,
) -> None:
    """One split of one row for the queries of one key/value head."""
    split, count = pl.program_id(1), counts[0]
    is_query = jnp.arange(plan.rows) < plan.group
    queries = _read(q, 0, is_query, plan)

    product = functools.partial(contract_on_gpu, interpret=plan.interpret)

    def add(j, carry):
        top, total, out = carry
        start = j * plan.tile
        inside = start + jnp.arange(plan.tile) < count
        scores = plan.scale * product(queries, _read(keys, start, inside, plan), (1, 1))
        mask = inside
        if segment_id is not None and key_segment_ids is not None:
            ids = triton.load(key_segment_ids.at[pl.ds(start, plan.tile)], mask=inside, other=0)
            mask = inside & (ids == segment_id[0])
        scores = jnp.where(mask[None, :], scores, -jnp.inf)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        weights, shrink = jnp.exp(scores - new_top[:, None]), jnp.exp(top - new_top)
        total = shrink * total + jnp.sum(weights, axis=1)
        added = _weighted(weights, _read(values, start, inside, plan), plan)
        return new_top, total, shrink[:, None] * out + added

    nothing = jnp.zeros((plan.rows,), jnp.float32)
    start = jnp.full_like(nothing, LOWEST), nothing, jnp.zeros((plan.rows, plan.columns))
    top, total, out = jax.lax.fori_loop(begin[split], end[split], add, start)
    _write(results, Part(top, total, out), is_query, plan)


def _write(refs: tuple[Ref, Ref, Ref], part: Part, is_query: Bool[Array, "R"], plan: Plan) -> None:
    rows = pl.ds(jnp.zeros((), jnp.int32), plan.rows)
    for ref, x in ((refs[0], part.top), (refs[1], part.total)):
        triton.store(ref.at[rows], x, mask=is_query)
    columns, inside = _columns(plan)
    mask = is_query[:, None] & inside[None, :]
    triton.store(refs[2].at[rows, columns], part.out, mask=mask)


def _read(
    ref: Ref, start: Int[Array, ""] | int, real: Bool[Array, "R"], plan: Plan
) -> Float[Array, "R C"]:
    columns, inside = _columns(plan)
    rows = pl.ds(jnp.asarray(start, jnp.int32), real.shape[0])
    return triton.load(ref.at[rows, columns], mask=real[:, None] & inside[None, :], other=0.0)


def _columns(plan: Plan) -> tuple[Any, Bool[Array, "C"]]:
    """Where the columns of a head are, and which of a tile's are the head's."""
    # A slice past the end is refused where its start is a Python number; the mask keeps it inside.
    start = jnp.zeros((), jnp.int32) if plan.columns > plan.width else 0
    return pl.ds(start, plan.columns), jnp.arange(plan.columns) < plan.width


def _weighted(
    weights: Float[Array, "R S"], values: Float[Array, "S C"], plan: Plan
) -> Float[Array, "R C"]:
    product = functools.partial(contract_on_gpu, over=(1, 0), interpret=plan.interpret)
    if values.dtype == jnp.float32:
        return product(weights, values)
    high = weights.astype(values.dtype)
    low = (weights - high.astype(jnp.float32)).astype(values.dtype)
    return product(high, values) + product(low, values)
