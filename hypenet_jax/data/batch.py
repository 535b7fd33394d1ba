"""Batch: tokens and the arrays that accompany them, which are functions of the tokens and their segments."""

import typing
from collections.abc import Sequence

import flax.struct
import numpy as np
from jaxtyping import Array, Bool, Float, Int

RowTokens = Int[np.ndarray, " T"]


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


class Row(typing.NamedTuple):
    """One row of a Batch: the same four arrays, each of shape "T"."""

    tokens: RowTokens
    segment_ids: RowTokens
    positions: RowTokens
    loss_weight: Float[np.ndarray, " T"]


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
    return Row(tokens, segment_ids, positions, (positions > 0).astype(np.float32))


def packed_row(
    text: Int[np.ndarray, " n"],
    end_id: int,
    context_length: int,
    reset_documents: bool,
    join_below: int = 0,
) -> Row:
    """The row of a stretch of documents, padded with 0 to `context_length`.

    No token is dropped: a document that is cut goes on in the next row as a segment of its own, without its state.

    Args:
      text: documents one after another, each followed by `end_id`, which none of them holds.
      reset_documents: True: one segment per document. False: one segment per row, across
        documents, with positions from the start of the row, as published.
      join_below: neighbours of which the row holds fewer tokens each than this share a segment.
    """
    tokens, segment_ids = np.zeros((2, context_length), np.int32)
    ends = (text == end_id) & reset_documents
    if join_below:
        ends = _without_short_neighbours(ends, join_below)
    tokens[: len(text)] = text
    segment_ids[: len(text)] = 1 + np.cumsum(ends) - ends
    return make_row(tokens, segment_ids)


def _without_short_neighbours(ends: Bool[np.ndarray, " n"], below: int) -> Bool[np.ndarray, " n"]:
    """The ends of documents without those between two that are shorter than `below`."""
    (last,) = np.nonzero(ends)
    bounds = np.concatenate([[0], last + 1, [len(ends)]])
    is_long = np.diff(bounds) >= below
    kept = np.zeros_like(ends)
    kept[last[is_long[:-1] | is_long[1:]]] = True
    return kept


def stack_rows(rows: Sequence[Row]) -> Batch:
    """The Batch of these rows, as numpy arrays of shape [len(rows), T]."""
    leaves: typing.Any = map(np.stack, zip(*rows, strict=True))
    return Batch(*leaves)
