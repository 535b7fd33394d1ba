"""Decode attention on TPU: one Pallas kernel that reads the cache once, where it lies.

All heads of a block of slots are one matrix, [slots * K, H]: the rows of the cache as they are in
HBM, so no copy changes its layout. Every query meets every key/value head's rows, and a bias hides
the heads of others. That wastes no time in the matrix unit, through which the keys pass row by row,
however many queries wait there; a block of one head would be strided rows.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.decode_attention import parts
from pallas_kernels.decode_attention.parts import LOWEST, Part, Visible

INSTEAD = "'chunked', or None to let it choose"
LANES = 128
SUBLANES = 8
BLOCK_BYTES = 2**20  # of keys per grid step, and as many of values
INTERPRETED_CORES = 2

Ref = Any  # a block in VMEM, read and written by index
Scalars = tuple[Int[Array, "_"], ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one call is cut: each row's slots into `splits` runs of blocks of `block` slots."""

    scale: float
    batch: int
    capacity: int
    kv_heads: int
    group: int  # query heads of one key/value head
    width: int
    block: int
    splits: int
    interpret: bool

    @property
    def heads(self) -> int:
        """Query heads in whole tiles."""
        return pl.cdiv(self.kv_heads * self.group, SUBLANES) * SUBLANES

    @property
    def rows(self) -> int:
        """Rows of keys in a block."""
        return self.block * self.kv_heads


def tpu(
    q: Float[Array, "B N H"],
    keys: Float[Array, "B S K H"],
    values: Float[Array, "B S K H"],
    visible: Visible,
    *,
    scale: float,
) -> Part:
    """The kernel above; blocks after a row's last visible slot are neither fetched nor computed.

    Probabilities are multiplied with bfloat16 values as the sum of two bfloat16 terms: relative
    error 3e-6, at the price of more queries in the matrix unit. float32 is float32 throughout.
    Raises:
      UnsupportedError: not a TPU, types that are neither all bfloat16 nor all float32, a head width
        or number of heads for which the cache would be copied, a short cache, or a mesh.
    """
    why = tpu_refusal(q, keys, values)
    if why is not None:
        raise dispatch.unsupported("decode_attention", "tpu", why, INSTEAD)
    batch, capacity, kv_heads, width = keys.shape
    plan = Plan(
        *(scale, batch, capacity, kv_heads, q.shape[1] // kv_heads, width),
        block=min(block_slots(keys), capacity),
        splits=INTERPRETED_CORES if dispatch.interprets() else pltpu.get_tpu_info().num_cores,
        interpret=dispatch.interprets(),
    )
    part = _attend(q, keys, values, visible, plan)
    return jax.tree.map(lambda x: x[:, : q.shape[1]], parts.join(part))


def tpu_refusal(
    q: Float[Array, "B N H"], keys: Float[Array, "B S K H"], values: Float[Array, "B S K H"]
) -> str | None:
    """Why the kernel cannot run these arguments here; None where it can."""
    types = sorted({str(x.dtype) for x in (q, keys, values)})
    if types not in (["bfloat16"], ["float32"]):
        return f"takes q, keys, values all bfloat16 or all float32, not {', '.join(types)}"
    refusal = dispatch.platform_refusal("tpu")
    if refusal is not None or dispatch.interprets():
        return refusal
    if keys.shape[3] % LANES:
        return f"needs a head width that is a multiple of {LANES}, and it is {keys.shape[3]}"
    if keys.shape[1] < LANES:
        return f"needs at least {LANES} slots, and the cache has {keys.shape[1]}"
    if keys.shape[2] % SUBLANES and keys.shape[2] not in (1, 2, 4):
        return f"would copy a cache of {keys.shape[2]} key/value heads, not 1, 2, 4 or 8 n"
    return dispatch.mesh_refusal()


def block_slots(keys: Float[Array, "B S K H"]) -> int:
    """Slots per grid step: enough bytes to hide the cost of a step behind their arrival."""
    slots = BLOCK_BYTES // (keys.shape[2] * keys.shape[3] * keys.dtype.itemsize)
    return max(slots // LANES, 1) * LANES


def _attend(
    q: Float[Array, "B N H"],
    keys: Float[Array, "B S K H"],
    values: Float[Array, "B S K H"],
    visible: Visible,
    plan: Plan,
) -> Part:
    counts = parts.lengths(visible, plan.capacity)
    begin, end = parts.spans(counts, plan.block, plan.splits)
    # The grid ends with the longest row; one step at least, or nothing would be written.
    steps = jnp.maximum(jnp.max(end - begin), 1)
    segments, hidden = jnp.zeros_like(counts), ()
    if visible.query_segments is not None and visible.key_segments is not None:
        segments = visible.query_segments
        hidden = (jnp.repeat(visible.key_segments, plan.kv_heads, axis=1)[:, None],)
    q = jnp.pad(q, ((0, 0), (0, plan.heads - q.shape[1]), (0, 0)))
    rows = (plan.batch, plan.capacity * plan.kv_heads, plan.width)
    arrays = (q, keys.reshape(rows), values.reshape(rows), hidden)
    scalars = (begin.reshape(-1), end.reshape(-1), counts, segments)
    lines = (plan.splits, plan.batch, plan.heads)
    shapes = tuple(jax.ShapeDtypeStruct((*lines, n), jnp.float32) for n in _columns(plan))
    ((top, total, out),) = pl.pallas_call(
        functools.partial(_step, plan=plan),
        grid_spec=_grid(plan, steps, masked=bool(hidden)),
        out_shape=(shapes,),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=_cost(plan, (arrays, shapes)),
        interpret=plan.interpret,
        name="decode_attention",
    )(*scalars, *arrays)
    return Part(top[..., 0], total[..., 0], out)


def _columns(plan: Plan) -> tuple[int, int, int]:
    """Of (max, sum, outputs): a single number per query fills a row of lanes."""
    return LANES, LANES, plan.width


def _grid(plan: Plan, steps: Int[Array, ""], *, masked: bool) -> pltpu.PrefetchScalarGridSpec:
    """Over (rows, splits, blocks of a split), each split on a core of its own where there are
    two."""

    def block(b, i, j, begin, end, *_):
        # A step past the end asks for the block that is there already, which fetches nothing.
        at = b * plan.splits + i
        return jnp.maximum(jnp.minimum(begin[at] + j, end[at] - 1), 0)

    def result(columns):
        shape = (None, None, plan.heads, columns)
        return pl.BlockSpec(shape, lambda b, i, *_: (i, b, 0, 0))

    cache = pl.BlockSpec((None, plan.rows, plan.width), lambda b, *at: (b, block(b, *at), 0))
    hidden = pl.BlockSpec((None, 1, plan.rows), lambda b, *at: (b, 0, block(b, *at)))
    return pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=4,
        grid=(plan.batch, plan.splits, steps),
        in_specs=(
            pl.BlockSpec((None, plan.heads, plan.width), lambda b, *_: (b, 0, 0)),
            cache,
            cache,
            (hidden,) * masked,
        ),
        out_specs=(tuple(map(result, _columns(plan))),),
        scratch_shapes=(pltpu.VMEM((plan.heads, plan.rows), jnp.float32),),
    )


def _step(
    begin: Ref,
    end: Ref,
    counts: Ref,
    segments: Ref,
    q: Ref,
    keys: Ref,
    values: Ref,
    hidden: tuple[Ref, ...],
    results: tuple[Ref, Ref, Ref],
    bias: Ref,
    *,
    plan: Plan,
) -> None:
    """One block of slots of one row, added to what its split has seen."""
    part = Part(*results)
    row, step = pl.program_id(0), pl.program_id(2)
    split = row * plan.splits + pl.program_id(1)
    block = begin[split] + step

    @pl.when(step == 0)
    def _():
        part.top[...] = jnp.full(part.top.shape, LOWEST, jnp.float32)
        part.total[...] = jnp.zeros(part.total.shape, jnp.float32)
        part.out[...] = jnp.zeros(part.out.shape, jnp.float32)
        bias[...] = _bias(plan)

    @pl.when(block < end[split])
    def _():
        left = (counts[row] - block * plan.block) * plan.kv_heads  # rows of the block that count
        scores = plan.scale * _product(q[...], keys[...], (1, 1)) + bias[...]
        mask = _index(scores.shape, 1) < left
        for ref in hidden:
            mask = mask & (ref[...] == segments[row])
        scores = jnp.where(mask, scores, -jnp.inf)
        top = part.top[:, :1]
        new_top = jnp.maximum(top, jnp.max(scores, axis=1, keepdims=True))
        weights, shrink = jnp.exp(scores - new_top), jnp.exp(top - new_top)
        total = shrink * part.total[:, :1] + jnp.sum(weights, axis=1, keepdims=True)
        out = shrink * part.out[...] + _weighted(weights, _inside(values[...], left, plan))
        part.top[...] = jnp.broadcast_to(new_top, part.top.shape)
        part.total[...] = jnp.broadcast_to(total, part.total.shape)
        part.out[...] = out


def _bias(plan: Plan) -> Float[Array, "N R"]:
    """0 where a query belongs to the head of a row of keys, else -inf."""
    shape = (plan.heads, plan.rows)
    head = jax.lax.div(_index((plan.heads, 1), 0), jnp.int32(plan.group))
    return jnp.where(jax.lax.rem(_index(shape, 1), jnp.int32(plan.kv_heads)) == head, 0.0, -jnp.inf)


def _inside(values: Float[Array, "R H"], left: Int[Array, ""], plan: Plan) -> Float[Array, "R H"]:
    """Past the end of the cache lies whatever was there before, and 0 times that may be NaN."""
    if plan.capacity % plan.block == 0:
        return values
    inside = _index((plan.rows, 1), 0) < left
    return jnp.where(inside, values.astype(jnp.float32), 0.0).astype(values.dtype)


def _weighted(weights: Float[Array, "N R"], values: Float[Array, "R H"]) -> Float[Array, "N H"]:
    if values.dtype == jnp.float32:
        return _product(weights, values, (1, 0))
    high = weights.astype(values.dtype).astype(jnp.float32)
    terms = jnp.concatenate([high, weights - high], axis=0).astype(values.dtype)
    both = _product(terms, values, (1, 0))
    return both[: weights.shape[0]] + both[weights.shape[0] :]


def _product(
    a: Float[Array, "I J"], b: Float[Array, "L M"], over: tuple[int, int]
) -> Float[Array, "_ _"]:
    """Sum over axis over[0] of a and over[1] of b, in float32; bfloat16 operands are exact."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, exact, jnp.float32)


def _index(shape: tuple[int, ...], axis: int) -> Int[Array, "I J"]:
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def _cost(plan: Plan, arrays: Any) -> pl.CostEstimate:
    """Of a full cache; how full it is, the compiler cannot know."""
    pairs = plan.batch * plan.capacity * plan.kv_heads * plan.heads
    return pl.CostEstimate(
        flops=4 * pairs * plan.width,
        transcendentals=pairs,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays)),
    )
