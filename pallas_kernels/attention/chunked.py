"""Softmax attention in blocks with an online softmax: memory grows with the length, never with its
square."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from pallas_kernels.attention.heads import group_queries, ungroup_queries
from pallas_kernels.attention.operands import Operands
from pallas_kernels.products import product

QUERY_BLOCK = 256
KEY_BLOCK = 512
LOWEST = jnp.finfo(
    jnp.float32
).min  # finite: a row that has seen nothing subtracts it from -inf without a NaN


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


def chunked(
    operands: Operands,
    *,
    scale: float,
) -> Float[Array, "B T N H"]:
    """Blocks of queries against blocks of keys; blocks of keys past a block's last visible slot
    are not computed.

    The backward pass computes the probabilities again from the saved log of each softmax's sum.
    Arguments as `attention`.
    """
    rows: Array = _attend(scale, _query_blocks(operands), _keys(operands))
    return _unblocked(rows, operands.q)


def with_log_totals(
    operands: Operands,
    *,
    scale: float,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N 1"]]:
    """As `chunked`, and the log of each softmax's sum of exp(score), LOWEST where none is seen; has no gradient.

    Such parts of all slots can be joined, wherever each was computed.
    """
    rows, (_, _, _, log_totals) = _forward(scale, _query_blocks(operands), _keys(operands))
    return _unblocked(rows, operands.q), _unblocked(log_totals, operands.q)


def _keys(operands: Operands) -> Keys:
    return Keys(operands.k, operands.v, operands.with_key_segment_ids().key_segment_ids)


def _query_blocks(operands: Operands) -> Queries:
    q, k, _, slots, segment_ids, _ = operands
    length = q.shape[1]
    block = min(QUERY_BLOCK, length)
    if slots is None:
        slots = jnp.arange(length, dtype=jnp.int32)[None]
    return Queries(
        rows=jax.vmap(functools.partial(group_queries, kv_heads=k.shape[2]))(_blocks(q, block, 0)),
        slots=_blocks(slots, block, -1),
        segment_ids=None if segment_ids is None else _blocks(segment_ids, block, 0),
    )


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
        def add(j, carry):
            top, total, out = carry
            scores, _, values = _scores(scale, block, keys, j)
            new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
            weights = jnp.exp(scores - new_top)
            shrink = jnp.exp(top - new_top)
            total = shrink * total + jnp.sum(weights, axis=-1, keepdims=True)
            out = shrink * out + product("bkts,bskh->bkth", weights.astype(values.dtype), values)
            return new_top, total, out

        column = (*block.rows.shape[:-1], 1)
        start = jnp.full(column, LOWEST), jnp.zeros(column), jnp.zeros(block.rows.shape)
        top, total, out = jax.lax.fori_loop(0, _blocks_seen(block, keys), add, start)
        total = jnp.where(total == 0, 1.0, total)
        return (out / total).astype(block.rows.dtype), top + jnp.log(total)

    out, log_total = jax.lax.map(one_block, queries)
    return out, (queries, keys, out, log_total)


def _backward(scale, residuals, grad):
    queries, keys, out, log_total = residuals

    def one_block(carry, inputs):
        block, out, log_total, grad = inputs
        mean = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)

        def add(j, carry):
            d_q, d_k, d_v = carry
            scores, these, values = _scores(scale, block, keys, j)
            weights = jnp.exp(scores - log_total)
            d_weights = product("bkth,bskh->bkts", grad, values)
            d_scores = (scale * weights * (d_weights - mean)).astype(these.dtype)
            d_q = d_q + product("bkts,bskh->bkth", d_scores, these)
            start = _start(keys, j)
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
    return (
        queries._replace(rows=d_q, slots=None, segment_ids=None),
        keys._replace(keys=d_k, values=d_v, segment_ids=None),
    )


_attend.defvjp(_forward, _backward)


def _scores(
    scale: float, block: Queries, keys: Keys, j: Int[Array, ""]
) -> tuple[Float[Array, "B K GQ S"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Scores of one block of queries and one of keys, -inf where unseen, and that block's keys and
    values."""
    size, start = _size(keys), _start(keys, j)
    these = jax.lax.dynamic_slice_in_dim(keys.keys, start, size, axis=1)
    values = jax.lax.dynamic_slice_in_dim(keys.values, start, size, axis=1)
    scores = scale * product("bkth,bskh->bkts", block.rows, these)
    batch, kv_heads, rows, _ = scores.shape
    mask = _seen(block, keys, j)[:, None, None]
    by_head = scores.reshape(batch, kv_heads, -1, mask.shape[3], size)
    return jnp.where(mask, by_head, -jnp.inf).reshape(batch, kv_heads, rows, size), these, values


def _seen(block: Queries, keys: Keys, j: Int[Array, ""]) -> Bool[Array, "R Q S"]:
    size, start = _size(keys), _start(keys, j)
    slots = start + jnp.arange(size, dtype=jnp.int32)[None, None]
    # The last block starts early where the slots are not a multiple of the block; the one before
    # has seen those.
    seen = (slots >= j * size) & (slots <= block.slots[:, :, None])
    if block.segment_ids is None or keys.segment_ids is None:
        return seen
    segment_ids = jax.lax.dynamic_slice_in_dim(keys.segment_ids, start, size, axis=1)
    return (
        seen
        & (block.segment_ids[:, :, None] == segment_ids[:, None])
        & (block.segment_ids != 0)[:, :, None]
    )


def _blocks_seen(block: Queries, keys: Keys) -> Int[Array, ""]:
    count = -(-keys.keys.shape[1] // _size(keys))
    return jnp.clip(jnp.max(block.slots) // _size(keys) + 1, 0, count).astype(jnp.int32)


def _size(keys: Keys) -> int:
    return min(KEY_BLOCK, keys.keys.shape[1])


def _start(keys: Keys, j: Int[Array, ""]) -> Int[Array, ""]:
    return jnp.minimum(j * _size(keys), keys.keys.shape[1] - _size(keys))


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
