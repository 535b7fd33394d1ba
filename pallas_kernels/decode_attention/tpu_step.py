"""One block of slots, as the TPU kernel of decode attention sees it."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.attention.partial_softmax import LOWEST
from pallas_kernels.decode_attention.plan import Plan
from pallas_kernels.products import contract

LANES = 128
SUBLANES = 8


class TpuPlan(Plan):
    """A block of slots of all key/value heads is one step of the grid."""

    @property
    def heads(self) -> int:
        """Query heads in whole tiles."""
        return pl.cdiv(self.kv_heads * self.group, SUBLANES) * SUBLANES

    @property
    def rows(self) -> int:
        """Rows of keys in a block."""
        return self.block * self.kv_heads

    @property
    def piece(self) -> int:
        """Slots whose segment ids are spread over the key/value heads at once."""
        return min(LANES, self.block)

    @property
    def marked(self) -> int:
        """Slots of a block of segments, in whole pieces."""
        return pl.cdiv(self.block, self.piece) * self.piece


def step(plan, begin, end, counts, segment_ids, q, keys, values, key_ids, part, bias, spread):
    """One block of slots of one row, added to the `Part` of what its split has seen."""
    row, nth = pl.program_id(0), pl.program_id(2)
    split = row * plan.splits + pl.program_id(1)
    block = begin[split] + nth

    @pl.when(nth == 0)
    def _():
        part.top[...] = jnp.full(part.top.shape, LOWEST, jnp.float32)
        part.total[...] = jnp.zeros(part.total.shape, jnp.float32)
        part.out[...] = jnp.zeros(part.out.shape, jnp.float32)
        bias[...] = _bias(plan)
        for ref in spread:
            ref[...] = _spread(plan)

    @pl.when(block < end[split])
    def _():
        left = (counts[row] - block * plan.block) * plan.kv_heads  # rows of the block that count
        scores = plan.scale * contract(q[...], keys[...], (1, 1)) + bias[...]
        mask = _index(scores.shape, 1) < left
        for ids, matrix in zip(key_ids, spread, strict=True):
            mask = mask & _by_row(ids[...] == segment_ids[row], matrix[...], plan)
        scores = jnp.where(mask, scores, -jnp.inf)
        top = part.top[:, :1]
        new_top = jnp.maximum(top, jnp.max(scores, axis=1, keepdims=True))
        weights, shrink = jnp.exp(scores - new_top), jnp.exp(top - new_top)
        total = shrink * part.total[:, :1] + jnp.sum(weights, axis=1, keepdims=True)
        out = shrink * part.out[...] + _weighted(weights, _inside(values[...], left, plan))
        part.top[...] = jnp.broadcast_to(new_top, part.top.shape)
        part.total[...] = jnp.broadcast_to(total, part.total.shape)
        part.out[...] = out


def _bias(plan: TpuPlan) -> Float[Array, "N R"]:
    """0 where a query belongs to the head of a row of keys, else -inf."""
    shape = (plan.heads, plan.rows)
    head = jax.lax.div(_index((plan.heads, 1), 0), jnp.int32(plan.group))
    return jnp.where(jax.lax.rem(_index(shape, 1), jnp.int32(plan.kv_heads)) == head, 0.0, -jnp.inf)


def _spread(plan: TpuPlan) -> Float[Array, "S R"]:
    """1 where a slot of a piece meets one of its rows of keys. A lane cannot be repeated, but
    multiplied out."""
    shape = (plan.piece, plan.piece * plan.kv_heads)
    slot = jax.lax.div(_index(shape, 1), jnp.int32(plan.kv_heads))
    return jnp.where(slot == _index(shape, 0), 1.0, 0.0).astype(jnp.bfloat16)


def _by_row(
    mask: Bool[Array, "1 S"], spread: Float[Array, "_ _"], plan: TpuPlan
) -> Bool[Array, "1 R"]:
    """What holds for a slot, for each of its rows of keys."""
    ones = jnp.where(mask, 1.0, 0.0).astype(spread.dtype)
    pieces = (ones[:, i : i + plan.piece] for i in range(0, plan.marked, plan.piece))
    rows = jnp.concatenate([contract(x, spread, (1, 0)) for x in pieces], axis=1)
    return rows[:, : plan.rows] > 0.5


def _inside(
    values: Float[Array, "R H"], left: Int[Array, ""], plan: TpuPlan
) -> Float[Array, "R H"]:
    """Past the end of the cache lies whatever was there before, and 0 times that may be NaN."""
    if plan.capacity % plan.block == 0:
        return values
    inside = _index((plan.rows, 1), 0) < left
    return jnp.where(inside, values.astype(jnp.float32), 0.0).astype(values.dtype)


def _weighted(weights: Float[Array, "N R"], values: Float[Array, "R H"]) -> Float[Array, "N H"]:
    if values.dtype == jnp.float32:
        return contract(weights, values, (1, 0))
    high = weights.astype(values.dtype).astype(jnp.float32)
    terms = jnp.concatenate([high, weights - high], axis=0).astype(values.dtype)
    both = contract(terms, values, (1, 0))
    return both[: weights.shape[0]] + both[weights.shape[0] :]


def _index(shape: tuple[int, ...], axis: int) -> Int[Array, "I J"]:
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)
