"""Which query sees which key."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Visibility(NamedTuple):
    """Arguments of `attention` that say which query sees which key; the same meaning, None included."""

    query_slots: Int[Array, "B T"] | None
    segment_ids: Int[Array, "B T"] | None
    key_segment_ids: Int[Array, "B S"] | None

    def with_key_segment_ids(self) -> "Visibility":
        """The same, with the segment ids of the keys spelled out."""
        if self.key_segment_ids is not None:
            return self
        return self._replace(key_segment_ids=self.segment_ids)


def visible(visibility: Visibility, queries: int, keys: int) -> Bool[Array, "R T S"]:
    """True where a query sees a key; R is 1 where all rows agree, else B."""
    slots, segment_ids, key_segment_ids = visibility.with_key_segment_ids()
    if slots is None:
        slots = jnp.arange(queries, dtype=jnp.int32)[None]
    seen = jnp.arange(keys, dtype=jnp.int32)[None, None] <= slots[:, :, None]
    if segment_ids is None or key_segment_ids is None:
        return seen
    same = segment_ids[:, :, None] == key_segment_ids[:, None, :]
    return seen & same & (segment_ids != 0)[:, :, None]


def by_group(mask: Bool[Array, "R T S"], groups: int) -> Bool[Array, "R 1 GT S"]:
    """The mask of scores whose rows are (query head of the group, query)."""
    rows, queries, keys = mask.shape
    mask = jnp.broadcast_to(mask[:, None], (rows, groups, queries, keys))
    return jax.lax.reshape(mask, (rows, 1, groups * queries, keys))
