"""Where every token stands: its document, its position there, its cache slot. Computed once per call.

`segment_ids`: 0 is padding; a run of one other number is a document, and a changed number starts the next one.
`positions`: how many real tokens of the same document came before, across calls; given positions win.
A cache slot is the count of tokens written, never the position, so padding costs no slot.
"""

import dataclasses
from typing import no_type_check

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from hypenet_jax import axes
from hypenet_jax.axes import Mask, Positions, Segments, Slots, SlotSegments
from hypenet_jax.sharding import constrain


# Not checked at construction: tree functions build states of shapes, shardings and stacked layers.
@no_type_check
@flax.struct.dataclass
class CachePosition:
    """Where each row of a `DecodeState` stopped.

    Attributes:
      written: tokens written so far, which is the next free cache slot.
      position: position of the next token if it continues the open document.
      segment: the caller's number of the open document; 0 before the first token.
      document: our own count of documents, which tells runs of a repeated number apart.
      slot_documents: the document of every cache slot; 0 is free.
    """

    written: Int[Array, "B"]
    position: Int[Array, "B"]
    segment: Int[Array, "B"]
    document: Int[Array, "B"]
    slot_documents: SlotSegments


@flax.struct.dataclass
class TokenLayout:
    """Placement of the tokens of one call.

    Attributes:
      positions: of every token in its document.
      documents: 0 for padding, else a number that grows with each new document; None: one document, no padding.
      reset_state: rows whose first document is new, so that a recurrent state from before must be forgotten.
      single_segment: no segment ids were given, so all tokens of a row are real and of one document; known without
        looking at `documents`, which spares a recurrent mixer the masks.
      slots: cache slot of each token; the capacity, which is out of range, for padding. None without a cache.
      slot_documents: document of every slot once the tokens of this call are written.
    """

    positions: Positions
    documents: Segments | None
    single_segment: bool = flax.struct.field(pytree_node=False, default=False)
    reset_state: Bool[Array, "B"] | None = None
    slots: Slots | None = None
    slot_documents: SlotSegments | None = None


def start_position(batch: int, capacity: int) -> CachePosition:
    """The cursor of `batch` rows before their first token, with room for `capacity` tokens each."""
    # Four arrays, not one four times: a caller may donate the state, and each buffer only once.
    counts = (jnp.zeros((batch,), jnp.int32) for _ in range(4))
    return CachePosition(*counts, slot_documents=jnp.zeros((batch, capacity), jnp.int32))


def layout_tokens(
    batch: int,
    time: int,
    positions: Positions | None,
    segment_ids: Segments | None,
    cursor: CachePosition | None,
) -> tuple[TokenLayout, CachePosition | None]:
    """The layout of a call, and the cursor after it."""
    if cursor is None and segment_ids is None:
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(time, dtype=jnp.int32)[None], (batch, time))
        return TokenLayout(positions, None, single_segment=True), None
    before = start_position(batch, 0) if cursor is None else cursor
    single_segment = segment_ids is None
    if segment_ids is None:
        open_segment = jnp.maximum(before.segment, 1)
        segment_ids = jnp.broadcast_to(open_segment[:, None], (batch, time))
    # Counts run over whole rows, also where devices hold parts of them: the numbers are few.
    segment_ids = constrain(segment_ids, (axes.BATCH, None))
    real = segment_ids != 0
    starts = _document_starts(segment_ids, before.segment)
    documents = before.document[:, None] + jnp.cumsum(starts, axis=1, dtype=jnp.int32)
    if positions is None:
        positions = _count(real, starts, before.position)
    layout = TokenLayout(positions, jnp.where(real, documents, 0), single_segment)
    if cursor is None:
        return layout, None
    return _with_cache(layout, segment_ids, documents, starts, cursor)


def overflow(cursor: CachePosition) -> Bool[Array, "B"]:
    """Rows that were given more tokens than their cache has slots."""
    return cursor.written > cursor.slot_documents.shape[1]


def _document_starts(segment_ids: Segments, open_segment: Int[Array, "B"]) -> Mask:
    """True at each real token whose number differs from that of the real token before it."""
    time = segment_ids.shape[1]
    index = jnp.where(segment_ids != 0, jnp.arange(time, dtype=jnp.int32)[None], -1)
    latest = jax.lax.cummax(index, axis=1)
    before = jnp.pad(latest[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    known = jnp.take_along_axis(segment_ids, jnp.maximum(before, 0), axis=1)
    previous = jnp.where(before >= 0, known, open_segment[:, None])
    return (segment_ids != 0) & (segment_ids != previous)


def _count(real: Mask, starts: Mask, position: Int[Array, "B"]) -> Positions:
    """Real tokens of the same document before each token; a continued document goes on from `position`."""
    earlier = jnp.cumsum(real, axis=1, dtype=jnp.int32) - real.astype(jnp.int32)
    origin = jax.lax.cummax(jnp.where(starts, earlier, -1), axis=1)
    return jnp.where(origin >= 0, earlier - origin, earlier + position[:, None])


def _with_cache(
    layout: TokenLayout,
    segment_ids: Segments,
    documents: Segments,
    starts: Mask,
    cursor: CachePosition,
) -> tuple[TokenLayout, CachePosition]:
    capacity = cursor.slot_documents.shape[1]
    rows = jnp.arange(segment_ids.shape[0])
    real = segment_ids != 0
    earlier = jnp.cumsum(real, axis=1, dtype=jnp.int32) - real.astype(jnp.int32)
    slots = jnp.where(real, cursor.written[:, None] + earlier, capacity)
    slot_documents = cursor.slot_documents.at[rows[:, None], slots].set(documents, mode="drop")
    first = jnp.argmax(real, axis=1)
    last = segment_ids.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
    some = jnp.any(real, axis=1)
    placed = dataclasses.replace(
        layout, reset_state=some & starts[rows, first], slots=slots, slot_documents=slot_documents
    )
    after = CachePosition(
        written=cursor.written + jnp.sum(real, axis=1, dtype=jnp.int32),
        position=jnp.where(some, layout.positions[rows, last] + 1, cursor.position),
        segment=jnp.where(some, segment_ids[rows, last], cursor.segment),
        document=jnp.where(some, documents[rows, last], cursor.document),
        slot_documents=slot_documents,
    )
    return placed, after
