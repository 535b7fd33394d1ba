"""Which query sees which key."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Visibility(NamedTuple):
    """Arguments of `attention` that say what is seen; the same meaning, None included."""

    query_slots: Int[Array, "B T"] | None
    query_segments: Int[Array, "B T"] | None
    key_segments: Int[Array, "B S"] | None


def visible(visibility: Visibility, queries: int, keys: int) -> Bool[Array, "R T S"]:
    """True where a query sees a key; R is 1 where all rows agree, else B."""
    slots, query_segments, key_segments = visibility
    if slots is None:
        slots = jnp.arange(queries, dtype=jnp.int32)[None]
    seen = jnp.arange(keys, dtype=jnp.int32)[None, None] <= slots[:, :, None]
    if query_segments is None or key_segments is None:
        return seen
    same = query_segments[:, :, None] == key_segments[:, None, :]
    return seen & same & (query_segments != 0)[:, :, None]


def by_group(mask: Bool[Array, "R T S"], groups: int) -> Bool[Array, "R 1 GT S"]:
    """The mask of scores whose rows are (query head of the group, query)."""
    rows, queries, keys = mask.shape
    mask = jnp.broadcast_to(mask[:, None], (rows, groups, queries, keys))
    return jax.lax.reshape(mask, (rows, 1, groups * queries, keys))
