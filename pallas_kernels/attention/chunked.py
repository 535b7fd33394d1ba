"""Softmax attention in blocks with an online softmax: memory grows with the length, never with its
square."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from pallas_kernels.attention import partial_softmax
from pallas_kernels.attention.operands import Operands, group_queries, sees, ungroup_queries
from pallas_kernels.attention.partial_softmax import Part
from pallas_kernels.products import product

QUERY_BLOCK = 256
KEY_BLOCK = 512


class Queries(NamedTuple):
    """Blocks of queries, and what each query may see."""

    rows: Float[Array, "I B K GQ H"]
    slots: Int[Array, "I R Q"]  # R is 1 where all rows of the batch agree, else B
    segment_ids: Int[Array, "I B Q"] | None


class Keys(NamedTuple):
    """All slots, in the layout they came in: a block is cut out where it is read."""

    keys: Float[Array, "B S K H"]
    values: Float[Array, "B S K H"]
    segment_ids: Int[Array, "B S"] | None


def chunked(operands: Operands, *, scale: float) -> Float[Array, "B T N H"]:
    """Blocks of queries against blocks of keys; blocks of keys past a block's last visible slot
    are not computed.

    The backward pass computes the probabilities again from the saved log of each softmax's sum.
    """
    rows: Array = _attend(scale, *_blocks_and_keys(operands))
    return _unblocked(rows, operands.q)


def chunked_part(operands: Operands, *, scale: float) -> Part:
    """As `chunked`, to be joined with parts of other slots, wherever each was computed; has no gradient."""
    queries, keys = _blocks_and_keys(operands)
    part = jax.lax.map(functools.partial(_part, scale, keys), queries)
    top, total = (_unblocked(x[..., None], operands.q)[..., 0] for x in part[:2])
    return Part(top, total, _unblocked(part.out, operands.q))


def _blocks_and_keys(operands: Operands) -> tuple[Queries, Keys]:
    q, k, v, slots, segment_ids, key_segment_ids = operands.with_key_segment_ids()
    block = min(QUERY_BLOCK, q.shape[1])
    if slots is None:
        slots = jnp.arange(q.shape[1], dtype=jnp.int32)[None]
    group = functools.partial(group_queries, kv_heads=k.shape[2])
    queries = Queries(
        rows=jax.vmap(group)(_blocks(q, block, 0)),
        slots=_blocks(slots, block, -1),
        segment_ids=None if segment_ids is None else _blocks(segment_ids, block, 0),
    )
    return queries, Keys(k, v, key_segment_ids)


def _unblocked(
    rows: Float[Array, "I B K GQ W"], q: Float[Array, "B T N H"]
) -> Float[Array, "B T N W"]:
    length = q.shape[1]
    block = min(QUERY_BLOCK, length)
    out = jax.vmap(functools.partial(ungroup_queries, length=block))(rows)  # [I B Q N W]
    return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], -1, *out.shape[3:])[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(scale: float, queries: Queries, keys: Keys) -> Float[Array, "I B K GQ H"]:
    return _forward(scale, queries, keys)[0]


def _forward(scale, queries, keys):
    def one_block(block):
        part = _part(scale, keys, block)
        log_total = part.top + jnp.log(jnp.where(part.total == 0, 1.0, part.total))
        return partial_softmax.finish(part).astype(block.rows.dtype), log_total[..., None]

    out, log_total = jax.lax.map(one_block, queries)
    return out, (queries, keys, out, log_total)


def _part(scale, keys, block):
    """One block of queries against the blocks of keys that it sees."""

    def add(j, part):
        scores, _, (_, values, _) = _scores(scale, block, keys, j)

        def weigh(weights):
            return product("bkts,bskh->bkth", weights.astype(values.dtype), values)

        return partial_softmax.add(part, scores, -1, weigh)

    start = partial_softmax.nothing(block.rows.shape)
    return jax.lax.fori_loop(0, _blocks_seen(block, keys), add, start)


def _backward(scale, residuals, grad):
    queries, keys, out, log_total = residuals

    def one_block(carry, inputs):
        block, out, log_total, grad = inputs
        mean = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)

        def add(j, carry):
            d_q, d_k, d_v = carry
            scores, start, (these, values, _) = _scores(scale, block, keys, j)
            weights = jnp.exp(scores - log_total)
            d_weights = product("bkth,bskh->bkts", grad, values)
            d_scores = (scale * weights * (d_weights - mean)).astype(these.dtype)
            d_q = d_q + product("bkts,bskh->bkth", d_scores, these)
            d_k = _add_at(d_k, start, product("bkth,bkts->bkhs", block.rows, d_scores))
            weights = weights.astype(grad.dtype)
            d_v = _add_at(d_v, start, product("bkth,bkts->bkhs", grad, weights))
            return d_q, d_k, d_v

        start = (jnp.zeros(block.rows.shape), *carry)
        d_q, *carry = jax.lax.fori_loop(0, _blocks_seen(block, keys), add, start)
        return tuple(carry), d_q.astype(block.rows.dtype)

    zeros = jnp.zeros(keys.keys.shape), jnp.zeros(keys.values.shape)
    (d_k, d_v), d_q = jax.lax.scan(one_block, zeros, (queries, out, log_total, grad))
    d_k, d_v = d_k.astype(keys.keys.dtype), d_v.astype(keys.values.dtype)
    return queries._replace(rows=d_q, slots=None, segment_ids=None), Keys(d_k, d_v, None)


_attend.defvjp(_forward, _backward)


def _scores(
    scale: float, block: Queries, keys: Keys, j: Int[Array, ""]
) -> tuple[Float[Array, "B K GQ S"], Int[Array, ""], Keys]:
    """Scores of a block of queries and block j of the keys, -inf where unseen; where that starts; and itself."""
    size = _size(keys)
    # The last block starts early where the slots are not a multiple of the block; the one before
    # has seen those.
    start = jnp.minimum(j * size, keys.keys.shape[1] - size)
    these = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), keys)
    slots = start + jnp.arange(size, dtype=jnp.int32)
    seen = sees(block.slots, slots, block.segment_ids, these.segment_ids)
    seen = seen & (slots >= j * size)[None, None]
    scores = scale * product("bkth,bskh->bkts", block.rows, these.keys)
    by_head = scores.reshape(*scores.shape[:2], -1, *seen.shape[1:])
    by_head = jnp.where(seen[:, None, None], by_head, -jnp.inf)
    return by_head.reshape(scores.shape), start, these


def _blocks_seen(block: Queries, keys: Keys) -> Int[Array, ""]:
    count = -(-keys.keys.shape[1] // _size(keys))
    return jnp.clip(jnp.max(block.slots) // _size(keys) + 1, 0, count).astype(jnp.int32)


def _size(keys: Keys) -> int:
    return min(KEY_BLOCK, keys.keys.shape[1])


def _add_at(
    total: Float[Array, "B S K H"], start: Int[Array, ""], part: Float[Array, "B K H C"]
) -> Float[Array, "B S K H"]:
    part = jnp.moveaxis(part, 3, 1)
    before = jax.lax.dynamic_slice_in_dim(total, start, part.shape[1], axis=1)
    return jax.lax.dynamic_update_slice_in_dim(total, before + part, start, axis=1)


def _blocks(x: Shaped[Array, "B T ..."], block: int, fill: int) -> Shaped[Array, "I B Q ..."]:
    """Pads the time axis with `fill` and moves blocks of it to the front."""
    pad = [(0, 0)] * x.ndim
    pad[1] = (0, -x.shape[1] % block)
    x = jnp.pad(x, pad, constant_values=fill)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, block, *x.shape[2:]), 1, 0)
