"""Packing: documents concatenated into rows of equal length.

No token is dropped: a document that does not fit continues in the next row, as a segment of its
own (no state crosses rows), and the last row is padded. For shorter context lengths a stored row
is split into equal parts, which gives the same rows as packing at the shorter length.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from hypenet_jax.data.batch import Row, make_row, segments_from_lengths


class PackedRow(NamedTuple):
    """Tokens without padding, and the lengths of the documents (or parts of documents) in them."""

    tokens: Int[np.ndarray, " n"]
    lengths: Int[np.ndarray, " m"]


class Packer:
    """Fills rows of `row_length` tokens with documents, in order."""

    def __init__(self, row_length: int):
        self._row_length = row_length
        self._pieces: list[np.ndarray] = []
        self._free = row_length

    def add(self, document: Int[np.ndarray, " n"]) -> Iterator[PackedRow]:
        """Adds one document (with its end token) and yields each row that becomes full."""
        start = 0
        while start < len(document):
            piece = document[start : start + self._free]
            self._pieces.append(piece)
            start += len(piece)
            self._free -= len(piece)
            if self._free == 0:
                yield from self.finish()

    def finish(self) -> Iterator[PackedRow]:
        """Yields the partly filled row, if there is one."""
        if self._pieces:
            lengths = np.asarray([len(piece) for piece in self._pieces], np.int32)
            yield PackedRow(np.concatenate(self._pieces), lengths)
        self._pieces, self._free = [], self._row_length


def pack(documents: Iterable[Int[np.ndarray, " _"]], row_length: int) -> Iterator[PackedRow]:
    """Rows of `row_length` tokens with every token of every document once, in order."""
    packer = Packer(row_length)
    for document in documents:
        yield from packer.add(document)
    yield from packer.finish()


def row_to_bytes(row: PackedRow) -> bytes:
    """One stored record, int32: number of documents, their lengths, the tokens."""
    count = np.asarray([len(row.lengths)], np.int32)
    return np.concatenate([count, row.lengths, row.tokens]).astype("<i4").tobytes()


def row_from_bytes(record: bytes) -> PackedRow:
    """Undoes row_to_bytes.

    Raises:
      ValueError: the record is inconsistent.
    """
    words = np.frombuffer(record, "<i4")
    count = int(words[0]) if len(words) else 0
    lengths, tokens = words[1 : 1 + count], words[1 + count :]
    if count < 1 or int(lengths.sum()) != len(tokens):
        raise ValueError(
            f"a stored row of {len(words)} words says {count} documents of {int(lengths.sum())} "
            f"tokens but holds {len(tokens)}; prepare the data again"
        )
    return PackedRow(tokens, lengths)


def cut_row(row: PackedRow, part: int, context_length: int, reset_documents: bool) -> Row:
    """Part number `part` of a stored row, padded with 0 to `context_length`.

    Args:
      reset_documents: True: one segment per document. False: one segment per row, across
        documents, with positions from the start of the row, as published.
    """
    start = part * context_length
    tokens = np.zeros(context_length, np.int32)
    taken = row.tokens[start : start + context_length]
    tokens[: len(taken)] = taken
    if not reset_documents:
        return make_row(tokens, (np.arange(context_length) < len(taken)).astype(np.int32))
    whole = segments_from_lengths(row.lengths, max(len(row.tokens), start + context_length))
    return make_row(tokens, whole[start : start + context_length])
