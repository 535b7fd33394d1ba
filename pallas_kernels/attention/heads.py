"""Heads before time, and the query heads of one key/value head as rows of one matrix, so no key is
repeated."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def group_queries(q: Float[Array, "B T N H"], kv_heads: int) -> Float[Array, "B K GT H"]:
    """Rows of each key/value head are (query head of its group, query)."""
    batch, length, heads, width = q.shape
    return jnp.swapaxes(q, 1, 2).reshape(batch, kv_heads, heads // kv_heads * length, width)


def ungroup_queries(rows: Float[Array, "B K GT H"], length: int) -> Float[Array, "B T N H"]:
    """Undoes `group_queries`."""
    batch, kv_heads, count, width = rows.shape
    return jnp.swapaxes(rows.reshape(batch, kv_heads * count // length, length, width), 1, 2)
