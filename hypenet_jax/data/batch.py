"""Batch: tokens and the arrays that accompany them, which are functions of the tokens and their segments."""

import logging
import typing
from collections.abc import Callable, Iterable, Sequence

import flax.struct
import numpy as np
from jaxtyping import Array, Bool, Float, Int

FIRST_DOUBLING = 512
MOST_COUNTED = 1 << 21  # tokens whose positions are counted: shares hold to a per cent

RowTokens = Int[np.ndarray, " T"]

logger = logging.getLogger(__name__)


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


def shares_past(batches: Iterable[Batch], context_length: int) -> dict[int, float]:
    """Share of the tokens, without padding, with at least 512, 1024, ... earlier tokens in their segment.

    Args:
      context_length: of the longest row; the last doubling is below it.
    """
    bounds, total = doublings(context_length), 0
    past = np.zeros(len(bounds), np.int64)
    for batch in batches:
        total += np.count_nonzero(batch.segment_ids)
        past += [np.count_nonzero(np.asarray(batch.positions) >= bound) for bound in bounds]
    return {bound: int(n) / max(total, 1) for bound, n in zip(bounds, past, strict=True)}


def log_positions(
    stage: str, context_length: int, read: Callable[[int], Batch], numbers: range
) -> None:
    """Says which share of the tokens of a stage's batches stands past each doubling; nothing of rows up to 512.

    Counted in batches at equal distances that hold about MOST_COUNTED tokens, or in all.
    """
    if not len(numbers) or not doublings(context_length):
        return
    distance = max(1, len(numbers) * read(numbers[0]).tokens.size // MOST_COUNTED)
    counted = numbers[::distance]
    shares = shares_past(map(read, counted), context_length)
    words = ", ".join(f"{100 * share:.3g} % past {bound:,}" for bound, share in shares.items())
    sample = f"{len(counted)} of {len(numbers)} batches"
    logger.info("%s: of its tokens, %s (counted in %s)", stage, words, sample)


def doublings(end: int) -> list[int]:
    """512, 1024, ... below `end`."""
    powers = range(FIRST_DOUBLING.bit_length() - 1, max(end - 1, 0).bit_length())
    return [1 << power for power in powers]
