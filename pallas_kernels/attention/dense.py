"""Softmax attention that keeps the probabilities of a short sequence: the fastest where they fit.

Written for what XLA on CPU does well. Key/value heads are batch dimensions in front, and the query
heads of a group are rows, so no key is repeated. The mask is added, not selected, so that it fuses
with the softmax. No product contracts the rows of its left side: `bkts,bkth->bksh` takes twice the
time of `bkth,bkts->bkhs`.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.attention.operands import Operands, group_queries, ungroup_queries, visible
from pallas_kernels.products import product

UNSEEN = -1e30
BLOCKS = 4
SMALLEST_BLOCK = 32


def dense(operands: Operands, *, scale: float) -> Float[Array, "B T N H"]:
    """A few blocks of queries, each against the keys up to its end."""
    q, k, v = operands[:3]
    length, mask = q.shape[1], visible(operands)
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    if operands.query_slots is not None:
        return _block(q, k, v, mask, scale)
    size = max(SMALLEST_BLOCK, -(-length // BLOCKS))
    spans = ((start, min(start + size, length)) for start in range(0, length, size))
    blocks = (
        _block(q[:, start:end], k[:, :, :end], v[:, :, :end], mask[:, start:end, :end], scale)
        for start, end in spans
    )
    return jnp.concatenate(list(blocks), axis=1)


def _block(q, k, v, mask, scale):
    kv_heads, length, (rows, *shape) = k.shape[1], q.shape[1], mask.shape
    # The mask of scores whose rows are (query head of the group, query).
    mask = jnp.broadcast_to(mask[:, None], (rows, q.shape[2] // kv_heads, *shape))
    mask = mask.reshape(rows, 1, -1, shape[1])
    bias = jnp.where(mask, 0.0, UNSEEN)
    sees_any = jnp.any(mask, axis=-1, keepdims=True).astype(jnp.float32)
    rows = group_queries(q, kv_heads)
    return ungroup_queries(_attend(scale, bias, sees_any, rows, k, v), length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    scale: float,
    bias: Float[Array, "R 1 GT S"],
    sees_any: Float[Array, "R 1 GT 1"],
    q: Float[Array, "B K GT H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
) -> Float[Array, "B K GT H"]:
    return _forward(scale, bias, sees_any, q, k, v)[0]


def _forward(scale, bias, sees_any, q, k, v):
    q = (scale * q).astype(q.dtype)
    scores = product("bkth,bksh->bkts", q, k) + bias
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    # A row that sees nothing is uniform here; the factor makes it zeros, and its gradients with it.
    weights = weights * (sees_any / jnp.sum(weights, axis=-1, keepdims=True))
    out = product("bkts,bksh->bkth", weights.astype(v.dtype), v).astype(q.dtype)
    return out, (weights, q, k, v)


def _backward(scale, residuals, grad):
    weights, q, k, v = residuals
    d_weights = product("bkth,bksh->bkts", grad, v)
    mean = jnp.sum(d_weights * weights, axis=-1, keepdims=True)
    d_scores = (weights * (d_weights - mean)).astype(q.dtype)
    d_q = scale * product("bkts,bksh->bkth", d_scores, k)
    d_k = product("bkth,bkts->bkhs", q, d_scores)
    d_v = product("bkth,bkts->bkhs", grad, weights.astype(grad.dtype))
    d_k, d_v = (jnp.swapaxes(x, 2, 3).astype(k.dtype) for x in (d_k, d_v))
    return None, None, d_q.astype(q.dtype), d_k, d_v


_attend.defvjp(_forward, _backward)
