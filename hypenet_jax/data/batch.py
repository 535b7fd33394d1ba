"""The arrays that travel with the tokens, and how they follow from the documents of a row.

`segment_ids` is the only thing that packing decides. Positions and loss weights are functions of
it, written once here.
"""

import typing
from collections.abc import Sequence

import flax.struct
import numpy as np
from jaxtyping import Array, Float, Int

RowTokens = Int[np.ndarray, " T"]
RowWeights = Float[np.ndarray, " T"]


# Not checked at construction: tree functions build Batches whose leaves are shardings, shapes or
# stacked micro-batches.
@typing.no_type_check
@flax.struct.dataclass
class Batch:
    """One step's text; all leaves have the same shape "B T".

    Attributes:
      tokens: vocabulary numbers; 0 where there is padding.
      segment_ids: 0 is padding, any other number names a document of its row.
      positions: how many tokens of the same document came before in this row; 0 for padding.
      loss_weight: how much the prediction OF this token counts. 0 for padding and for the first
        token of a document.
    """

    tokens: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    loss_weight: Float[Array, "B T"]


class Row(typing.TypedDict):
    """One row of a Batch before batching: the same four names, each of shape "T"."""

    tokens: RowTokens
    segment_ids: RowTokens
    positions: RowTokens
    loss_weight: RowWeights


def segments_from_lengths(lengths: Int[np.ndarray, " n"], row_length: int) -> RowTokens:
    """Segment ids 1, 2, ... for documents of these lengths laid end to end, then 0.

    Raises:
      ValueError: the lengths need more room than the row has.
    """
    used = int(lengths.sum())
    if used > row_length:
        raise ValueError(
            f"documents of {used} tokens do not fit a row of {row_length}; "
            f"use a row of at least {used}"
        )
    segment_ids = np.zeros(row_length, np.int32)
    segment_ids[:used] = np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths)
    return segment_ids


def positions_from_segments(segment_ids: Int[np.ndarray, "*B T"]) -> Int[np.ndarray, "*B T"]:
    """positions[..., t] = t - (start of the run of equal segment ids that holds t).

    0 for padding.
    """
    index = np.arange(segment_ids.shape[-1], dtype=np.int32)
    starts = np.ones(segment_ids.shape, bool)
    starts[..., 1:] = segment_ids[..., 1:] != segment_ids[..., :-1]
    first = np.maximum.accumulate(np.where(starts, index, np.int32(0)), axis=-1)
    return np.where(segment_ids != 0, index - first, np.int32(0))


def make_row(tokens: RowTokens, segment_ids: RowTokens) -> Row:
    """The row of these tokens: all count once, but padding and first tokens of documents do not."""
    positions = positions_from_segments(segment_ids)
    loss_weight = (positions > 0).astype(np.float32)
    return Row(tokens=tokens, segment_ids=segment_ids, positions=positions, loss_weight=loss_weight)


def stack_rows(rows: Sequence[Row]) -> Batch:
    """The Batch of these rows, as numpy arrays of shape [len(rows), T]."""
    leaves: dict[str, typing.Any] = {
        name: np.stack([row[name] for row in rows])
        for name in ("tokens", "segment_ids", "positions", "loss_weight")
    }
    return Batch(**leaves)
