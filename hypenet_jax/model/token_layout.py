"""Segment, position and cache slot of every token, computed once per call of a decoder.

`segment_ids`: 0 is padding; neighbours of one other number are a segment, a changed number starts the next.
`positions`: how many real tokens of the same segment came before, across calls; given positions win.
A cache slot is the count of tokens written, never the position, so padding takes no slot.
"""

import dataclasses
from typing import no_type_check

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from hypenet_jax import axes
from hypenet_jax.axes import CacheSlots, Mask, Positions, SegmentIds, SlotSegmentIds
from hypenet_jax.sharding import constrain


# Not checked at construction: tree functions build states of shapes, shardings and stacked layers.
@no_type_check
@flax.struct.dataclass
class CachePosition:
    """Where each row of a `DecodeState` stopped.

    Attributes:
      written: real tokens so far, which is the next free cache slot.
      next_position: position of the next token if it continues the open segment.
      segment_id: the caller's number of the open segment; 0 before the first token.
      num_segments: segments begun so far: our own number of the open one, unique where the caller repeats a number.
      slot_segment_ids: our number of the segment in every cache slot; 0 is free.
    """

    written: Int[Array, "B"]
    next_position: Int[Array, "B"]
    segment_id: Int[Array, "B"]
    num_segments: Int[Array, "B"]
    slot_segment_ids: SlotSegmentIds

    @property
    def capacity(self) -> int:
        """Cache slots of each row."""
        return self.slot_segment_ids.shape[1]

    @property
    def overflow(self) -> Bool[Array, "B"]:
        """Rows that were given more tokens than their cache has slots."""
        return self.written > self.capacity

    def with_capacity(self, capacity: int) -> "CachePosition":
        slots = with_slots(self.slot_segment_ids, capacity)
        return dataclasses.replace(self, slot_segment_ids=slots)

    def rewound(self, mark: "CachePosition") -> "CachePosition":
        later = jnp.arange(self.capacity)[None] >= mark.written[:, None]
        slots = jnp.where(later, 0, self.slot_segment_ids)
        return dataclasses.replace(mark, slot_segment_ids=slots)


def with_slots(per_slot: Shaped[Array, "B S *rest"], capacity: int) -> Shaped[Array, "B _ *rest"]:
    """An array of one entry per cache slot, with more slots of zeros or without its last ones."""
    kept = per_slot[:, :capacity]
    return jnp.pad(kept, ((0, 0), (0, capacity - kept.shape[1]), *((0, 0),) * (kept.ndim - 2)))


@flax.struct.dataclass
class TokenLayout:
    """Segment, position and cache slot of the tokens of one call.

    Attributes:
      segment_ids: 0 for padding, else a number that grows with each new segment; None: one segment, no padding.
      single_segment: known to be so without looking at `segment_ids`, which spares a recurrent mixer the masks.
      reset_state: rows whose first segment is new, so that a recurrent state from before must not reach it.
      cache_slots: cache slot of each token; the capacity, which is out of range, for padding. None without a cache.
      slot_segment_ids: segment of every slot once the tokens of this call are written.
    """

    positions: Positions
    segment_ids: SegmentIds | None
    single_segment: bool = flax.struct.field(pytree_node=False, default=False)
    reset_state: Bool[Array, "B"] | None = None
    cache_slots: CacheSlots | None = None
    slot_segment_ids: SlotSegmentIds | None = None


def start_position(batch: int, capacity: int) -> CachePosition:
    """The cache position of `batch` rows before their first token, with capacity for this many tokens each."""
    # Four arrays, not one four times: a caller may donate the state, and each buffer only once.
    counts = (jnp.zeros((batch,), jnp.int32) for _ in range(4))
    return CachePosition(*counts, slot_segment_ids=jnp.zeros((batch, capacity), jnp.int32))


def layout_tokens(
    batch: int,
    time: int,
    positions: Positions | None = None,
    segment_ids: SegmentIds | None = None,
    cache_position: CachePosition | None = None,
) -> tuple[TokenLayout, CachePosition | None]:
    """The layout of a call, and the cache position after it."""
    if cache_position is None and segment_ids is None:
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(time, dtype=jnp.int32)[None], (batch, time))
        return TokenLayout(positions, None, single_segment=True), None
    before = start_position(batch, 0) if cache_position is None else cache_position
    single_segment = segment_ids is None
    if segment_ids is None:
        open_segment = jnp.maximum(before.segment_id, 1)
        segment_ids = jnp.broadcast_to(open_segment[:, None], (batch, time))
    # Counts run over whole rows, also where devices hold parts of them: the numbers are few.
    segment_ids = constrain(segment_ids, (axes.BATCH, None))
    real, starts = segment_ids != 0, _segment_starts(segment_ids, before.segment_id)
    unique_ids = before.num_segments[:, None] + jnp.cumsum(starts, axis=1, dtype=jnp.int32)
    earlier = jnp.cumsum(real, axis=1, dtype=jnp.int32) - real.astype(jnp.int32)
    if positions is None:
        positions = _positions(earlier, starts, before.next_position)
    layout = TokenLayout(positions, jnp.where(real, unique_ids, 0), single_segment)
    if cache_position is None:
        return layout, None
    return _with_cache(layout, segment_ids, unique_ids, earlier, starts, cache_position)


def _segment_starts(segment_ids: SegmentIds, open_segment: Int[Array, "B"]) -> Mask:
    """True at each real token whose number differs from that of the real token before it."""
    time = segment_ids.shape[1]
    index = jnp.where(segment_ids != 0, jnp.arange(time, dtype=jnp.int32)[None], -1)
    latest = jax.lax.cummax(index, axis=1)
    before = jnp.pad(latest[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    known = jnp.take_along_axis(segment_ids, jnp.maximum(before, 0), axis=1)
    previous = jnp.where(before >= 0, known, open_segment[:, None])
    return (segment_ids != 0) & (segment_ids != previous)


def _positions(
    earlier: Int[Array, "B T"], starts: Mask, next_position: Int[Array, "B"]
) -> Positions:
    """Real tokens of the same segment before each token; a continued segment goes on from `next_position`."""
    origin = jax.lax.cummax(jnp.where(starts, earlier, -1), axis=1)
    return jnp.where(origin >= 0, earlier - origin, earlier + next_position[:, None])


def _with_cache(
    layout: TokenLayout,
    segment_ids: SegmentIds,
    unique_ids: SegmentIds,
    earlier: Int[Array, "B T"],
    starts: Mask,
    before: CachePosition,
) -> tuple[TokenLayout, CachePosition]:
    """The layout with the slots of `earlier` real tokens before each, and the cache position after the call."""
    real, rows = segment_ids != 0, jnp.arange(len(segment_ids))
    cache_slots = jnp.where(real, before.written[:, None] + earlier, before.capacity)
    slots = before.slot_segment_ids.at[rows[:, None], cache_slots].set(unique_ids, mode="drop")
    first = jnp.argmax(real, axis=1)
    last = real.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
    some = jnp.any(real, axis=1)
    after = CachePosition(
        written=before.written + jnp.sum(real, axis=1, dtype=jnp.int32),
        next_position=jnp.where(some, layout.positions[rows, last] + 1, before.next_position),
        segment_id=jnp.where(some, segment_ids[rows, last], before.segment_id),
        num_segments=jnp.where(some, unique_ids[rows, last], before.num_segments),
        slot_segment_ids=slots,
    )
    reset = some & starts[rows, first]
    cache = {"reset_state": reset, "cache_slots": cache_slots, "slot_segment_ids": slots}
    return dataclasses.replace(layout, **cache), after
