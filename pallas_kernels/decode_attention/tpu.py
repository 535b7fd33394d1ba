"""Decode attention on TPU: one Pallas kernel that reads the cache once, where it lies.

All heads of a block of slots are one matrix, [slots * K, H]: the rows of the cache as they are in
HBM, so no copy changes its layout. Every query meets every key/value head's rows, and a bias hides
the heads of others. That wastes no time in the matrix unit, through which the keys pass row by row,
however many queries wait there; a block of one head would be strided rows.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.attention import partial_softmax
from pallas_kernels.attention.operands import Operands
from pallas_kernels.attention.partial_softmax import Part
from pallas_kernels.cost import cost
from pallas_kernels.decode_attention.plan import lengths, spans
from pallas_kernels.decode_attention.tpu_step import LANES, SUBLANES, TpuPlan, step

# Of keys per grid step, and as many of values; a power of two, as capacities are. Two blocks of each are in VMEM: a
# step asks for the next before it waits for its own. So memory never rests where a step's bytes, 1.05 MB, take longer
# to arrive than the way from memory and the step's products together. The way is 0.5 us on v4, where it was measured
# (github.com/ayaka14732/tpu-v4-latency-numbers); were it so on all, then for each core, of two on v4, v5p and 7x, these
# must be on their way at any time: v4 0.31 MB, v5e 0.41, v5p 0.69, v6e 0.82, and 7x 1.85, which is not reached there.
BLOCK_BYTES = 2**19
INTERPRETED_CORES = 2


def tpu(operands: Operands, *, scale: float) -> Part:
    """The kernel above; blocks after a row's last visible slot are neither fetched nor computed.

    Probabilities are multiplied with bfloat16 values as the sum of two bfloat16 terms: relative
    error 3e-6, at the price of more queries in the matrix unit. float32 is float32 throughout.
    """
    dispatch.require("decode_attention", "tpu", unsupported_reason(operands), "chunked")
    block = min(block_slots(operands.k), operands.k.shape[1])
    cores = INTERPRETED_CORES if dispatch.interprets() else pltpu.get_tpu_info().num_cores
    part = _parts(TpuPlan.of(operands, scale, block=block, splits=cores), operands)
    return jax.tree.map(lambda x: x[:, : operands.q.shape[2]], partial_softmax.join(part))


def unsupported_reason(operands: Operands) -> str | None:
    """Why the kernel cannot run these arguments here; None where it can."""
    q, keys, values = operands[:3]
    reason = dispatch.dtypes_unsupported_reason("q, keys, values", q, keys, values)
    reason = reason or dispatch.tpu_unsupported_reason(keys.shape[3])
    if reason is not None or dispatch.interprets():
        return reason
    if keys.shape[1] < LANES:
        return f"needs at least {LANES} slots, and the cache has {keys.shape[1]}"
    if keys.shape[2] % SUBLANES and keys.shape[2] not in (1, 2, 4):
        return f"would copy a cache of {keys.shape[2]} key/value heads, not 1, 2, 4 or 8 n"
    return None


def block_slots(keys: Float[Array, "B S K H"]) -> int:
    """Slots per grid step, in whole rows of lanes."""
    slots = BLOCK_BYTES // (keys.shape[2] * keys.shape[3] * keys.dtype.itemsize)
    return max(slots // LANES, 1) * LANES


def _parts(plan: TpuPlan, operands: Operands) -> Part:
    q, keys, values, _, segment_ids, key_segment_ids = operands
    q, counts = q[:, 0], lengths(operands)
    begin, end = spans(counts, plan.block, plan.splits)
    # The grid ends with the longest row; one step at least, or nothing would be written.
    steps = jnp.maximum(jnp.max(end - begin), 1)
    segment_ids = jnp.zeros_like(counts) if segment_ids is None else segment_ids[:, 0]
    ids = () if key_segment_ids is None else (key_segment_ids[:, None],)
    q = jnp.pad(q, ((0, 0), (0, plan.heads - q.shape[1]), (0, 0)))
    rows = (plan.batch, plan.capacity * plan.kv_heads, plan.width)
    arrays = (q, keys.reshape(rows), values.reshape(rows), ids)
    scalars = (begin.reshape(-1), end.reshape(-1), counts, segment_ids)
    lines = (plan.splits, plan.batch, plan.heads)
    numbers: Any = jax.ShapeDtypeStruct((*lines, LANES), jnp.float32)
    outputs: Any = jax.ShapeDtypeStruct((*lines, plan.width), jnp.float32)
    shapes = Part(numbers, numbers, outputs)
    pairs = plan.batch * plan.capacity * plan.kv_heads * plan.heads
    (part,) = pl.pallas_call(
        functools.partial(step, plan),
        grid_spec=_grid(plan, steps, masked=bool(ids)),
        out_shape=(shapes,),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        # Of a full cache; how full it is, the compiler cannot know.
        cost_estimate=cost(4 * pairs * plan.width, pairs, (arrays, shapes)),
        interpret=plan.interpret,
        name="decode_attention",
    )(*scalars, *arrays)
    return Part(part.top[..., 0], part.total[..., 0], part.out)


def _grid(plan: TpuPlan, steps: Int[Array, ""], *, masked: bool) -> pltpu.PrefetchScalarGridSpec:
    """Over (rows, splits, blocks of a split), each split on a core of its own where there are
    two."""

    def block(b, i, j, begin, end, *_):
        # A step past the end asks for the block that is there already, which fetches nothing.
        at = b * plan.splits + i
        return jnp.maximum(jnp.minimum(begin[at] + j, end[at] - 1), 0)

    def result(columns: int) -> Any:
        # A single number per query fills a row of lanes.
        shape = (None, None, plan.heads, columns)
        return pl.BlockSpec(shape, lambda b, i, *_: (i, b, 0, 0))

    cache = pl.BlockSpec((None, plan.rows, plan.width), lambda b, *at: (b, block(b, *at), 0))
    of_slots = pl.BlockSpec((None, 1, plan.marked), lambda b, *at: (b, 0, block(b, *at)))
    spread = pltpu.VMEM((plan.piece, plan.piece * plan.kv_heads), jnp.bfloat16)
    return pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=4,
        grid=(plan.batch, plan.splits, steps),
        in_specs=(
            pl.BlockSpec((None, plan.heads, plan.width), lambda b, *_: (b, 0, 0)),
            cache,
            cache,
            (of_slots,) * masked,
        ),
        out_specs=(Part(result(LANES), result(LANES), result(plan.width)),),
        scratch_shapes=(pltpu.VMEM((plan.heads, plan.rows), jnp.float32), (spread,) * masked),
    )
