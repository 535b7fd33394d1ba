"""Batch: tokens and the arrays that accompany them.

Packing decides `segment_ids` alone; positions and loss weights are functions of it, defined here.
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
    """The text of one step; all leaves have the same shape "B T".

    Attributes:
      tokens: token ids; 0 for padding.
      segment_ids: 0 is padding, any other number identifies a document of its row.
      positions: number of earlier tokens of the same document in this row; 0 for padding.
      loss_weight: weight of the loss of predicting this token. 0 for padding and for the first
        token of a document.
    """

    tokens: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    loss_weight: Float[Array, "B T"]


class Row(typing.TypedDict):
    """One row of a Batch: the same four arrays, each of shape "T"."""

    tokens: RowTokens
    segment_ids: RowTokens
    positions: RowTokens
    loss_weight: RowWeights


def segments_from_lengths(lengths: Int[np.ndarray, " n"], row_length: int) -> RowTokens:
    """Segment ids 1, 2, ... of concatenated documents of these lengths, then 0 to the row's end.

    Raises:
      ValueError: the documents are longer than the row.
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
    """positions[..., t] = t - (start of the block of equal segment ids that contains t).

    0 for padding.
    """
    index = np.arange(segment_ids.shape[-1], dtype=np.int32)
    starts = np.ones(segment_ids.shape, bool)
    starts[..., 1:] = segment_ids[..., 1:] != segment_ids[..., :-1]
    first = np.maximum.accumulate(np.where(starts, index, np.int32(0)), axis=-1)
    return np.where(segment_ids != 0, index - first, np.int32(0))


def make_row(tokens: RowTokens, segment_ids: RowTokens) -> Row:
    """The row of these tokens, with loss weight 1 except for padding and first tokens of documents."""
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
