"""The arrays of an attention call, and which query sees which key."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Operands(NamedTuple):
    """Arguments of `attention` that are arrays; the same meaning, None included."""

    q: Float[Array, "B T N H"]
    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K H"]
    query_slots: Int[Array, "B T"] | None
    segment_ids: Int[Array, "B T"] | None
    key_segment_ids: Int[Array, "B S"] | None

    def with_key_segment_ids(self) -> "Operands":
        """The same, with the segment ids of the keys spelled out."""
        if self.key_segment_ids is not None:
            return self
        return self._replace(key_segment_ids=self.segment_ids)


def visible(operands: Operands) -> Bool[Array, "R T S"]:
    """True where a query sees a key; R is 1 where all rows agree, else B."""
    q, k, _, slots, segment_ids, key_segment_ids = operands.with_key_segment_ids()
    if slots is None:
        slots = jnp.arange(q.shape[1], dtype=jnp.int32)[None]
    seen = jnp.arange(k.shape[1], dtype=jnp.int32)[None, None] <= slots[:, :, None]
    if segment_ids is None or key_segment_ids is None:
        return seen
    same = segment_ids[:, :, None] == key_segment_ids[:, None, :]
    return seen & same & (segment_ids != 0)[:, :, None]


def by_group(mask: Bool[Array, "R T S"], groups: int) -> Bool[Array, "R 1 GT S"]:
    """The mask of scores whose rows are (query head of the group, query)."""
    rows, queries, keys = mask.shape
    mask = jnp.broadcast_to(mask[:, None], (rows, groups, queries, keys))
    return jax.lax.reshape(mask, (rows, 1, groups * queries, keys))
