"""The arrays of an attention call, which query sees which key, and the layout of grouped heads."""

from typing import NamedTuple

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


def check(op: str, heads: int, kv_heads: int, *, lone_ids: bool) -> None:
    """Refuses head counts that do not divide, and segment ids of queries or keys alone."""
    if heads % kv_heads:
        raise ValueError(
            f"{op} has {heads} query heads, not a multiple of its {kv_heads} key/value heads"
        )
    if lone_ids:
        raise ValueError(f"{op} has segment ids of queries or of keys alone; give both or neither")


def visible(operands: Operands) -> Bool[Array, "R T S"]:
    """True where a query sees a key; R is 1 where all rows agree, else B."""
    q, k, _, slots, *ids = operands.with_key_segment_ids()
    if slots is None:
        slots = jnp.arange(q.shape[1], dtype=jnp.int32)[None]
    return sees(slots, jnp.arange(k.shape[1], dtype=jnp.int32), *ids)


def sees(
    last: Int[Array, "R T"],
    slots: Int[Array, "S"],
    segment_ids: Int[Array, "B T"] | None,
    key_segment_ids: Int[Array, "B S"] | None,
) -> Bool[Array, "_ T S"]:
    """True where a query, by the last slot it sees and its segment, sees one of these slots."""
    seen = slots[None, None] <= last[:, :, None]
    if segment_ids is None or key_segment_ids is None:
        return seen
    same = segment_ids[:, :, None] == key_segment_ids[:, None]
    return seen & same & (segment_ids != 0)[:, :, None]


def group_queries(q: Float[Array, "B T N H"], kv_heads: int) -> Float[Array, "B K GT H"]:
    """Rows of each key/value head are (query head of its group, query), so no key is repeated."""
    batch, length, heads, width = q.shape
    return jnp.swapaxes(q, 1, 2).reshape(batch, kv_heads, heads // kv_heads * length, width)


def ungroup_queries(rows: Float[Array, "B K GT H"], length: int) -> Float[Array, "B T N H"]:
    """Undoes `group_queries`."""
    batch, kv_heads, count, width = rows.shape
    return jnp.swapaxes(rows.reshape(batch, kv_heads * count // length, length, width), 1, 2)
