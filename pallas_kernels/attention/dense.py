"""Softmax attention that keeps all scores of a short sequence: the fastest form where they fit the caches."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.attention.heads import group_queries, ungroup_queries
from pallas_kernels.attention.masks import Visibility, by_group, visible
from pallas_kernels.products import product


def dense(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    visibility: Visibility,
    *,
    scale: float,
) -> Float[Array, "B T N H"]:
    """All scores at once, and a backward pass that reads the kept probabilities; arguments as `attention`."""
    kv_heads, length = k.shape[2], q.shape[1]
    mask = by_group(visible(visibility, length, k.shape[1]), q.shape[2] // kv_heads)
    keys, values = (jnp.swapaxes(x, 1, 2) for x in (k, v))
    return ungroup_queries(_attend(scale, mask, group_queries(q, kv_heads), keys, values), length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    scale: float,
    mask: Bool[Array, "R 1 GT S"],
    q: Float[Array, "B K GT H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
) -> Float[Array, "B K GT H"]:
    return _forward(scale, mask, q, k, v)[0]


def _forward(scale, mask, q, k, v):
    scores = jnp.where(mask, scale * product("bkth,bksh->bkts", q, k), -jnp.inf)
    top = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1.0, total)
    out = product("bkts,bksh->bkth", weights.astype(v.dtype), v).astype(q.dtype)
    return out, (weights, q, k, v)


def _backward(scale, kept, grad):
    weights, q, k, v = kept
    toward_weights = product("bkth,bksh->bkts", grad, v)
    mean = jnp.sum(toward_weights * weights, axis=-1, keepdims=True)
    toward_scores = (scale * weights * (toward_weights - mean)).astype(q.dtype)
    toward_q = product("bkts,bksh->bkth", toward_scores, k).astype(q.dtype)
    toward_k = product("bkts,bkth->bksh", toward_scores, q).astype(k.dtype)
    toward_v = product("bkts,bkth->bksh", weights.astype(grad.dtype), grad).astype(v.dtype)
    return None, toward_q, toward_k, toward_v


_attend.defvjp(_forward, _backward)

