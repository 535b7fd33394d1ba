"""Synthetic retrieval: needles with known answers inserted in ordinary text.

A needle is `marker entry`; a query is `marker class`, and its correct continuation is the entry of
that class that appeared earlier in the same row. Entries are drawn anew for every row, so guessing
from the class alone succeeds once in `entries`. One attention lookup finds the answer, so tiny
models learn it in seconds; a decaying recurrent state loses it over long distances.
"""

import dataclasses

import numpy as np
from jaxtyping import Int

from hypenet_jax.data.batch import Row, make_row

# Tokens of a query with its answer, the longest insertion.
_SLOT = 3


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Token ids from `first_id` on: one marker, `classes` classes, `classes * entries` entries."""

    first_id: int
    classes: int = 16
    entries: int = 16

    @property
    def marker(self) -> int:
        """Token that starts a needle or a query."""
        return self.first_id

    @property
    def num_ids(self) -> int:
        """Number of token ids in all."""
        return 1 + self.classes + self.classes * self.entries

    def class_id(self, c):
        """Token id of class c, a number or an array."""
        return self.first_id + 1 + c

    def entry_id(self, c, e):
        """Token id of entry e of class c, numbers or arrays."""
        return self.first_id + 1 + self.classes + c * self.entries + e

    def token_names(self) -> tuple[str, ...]:
        """Names in the order of their ids: the `reserved` tokens of a trained tokenizer."""
        classes = range(self.classes)
        entries = [f"<|entry_{c}_{e}|>" for c in classes for e in range(self.entries)]
        return ("<|marker|>", *(f"<|class_{c}|>" for c in classes), *entries)


@dataclasses.dataclass(frozen=True)
class NeedleRows:
    """Writes needles and queries over part of the text of training rows.

    Attributes:
      row_fraction: fraction of rows that get needles; such a row becomes one document. Rows with
        padding stay as they are.
      min_needles, max_needles: needles per row, of different classes; uniform in between.
      queries: per row, each about an earlier needle, drawn with replacement.
      answer_weight: loss weight of an answer. Markers, classes and the entries of needles cannot
        be predicted and weigh 0.
    """

    catalogue: Catalogue
    row_fraction: float
    min_needles: int
    max_needles: int
    queries: int
    answer_weight: float = 4.0

    def __post_init__(self):
        if not 1 <= self.min_needles <= self.max_needles <= self.catalogue.classes:
            raise ValueError(
                f"needles must satisfy 1 <= min {self.min_needles} <= max {self.max_needles} <= "
                f"classes {self.catalogue.classes}"
            )

    def check(self, context_length: int) -> None:
        """Raises ValueError if a row of this length is too short for all needles and queries."""
        needed = _SLOT * (self.max_needles + self.queries + 1)
        if context_length < needed:
            raise ValueError(
                f"{self.max_needles} needles and {self.queries} queries need rows of {needed} "
                f"tokens, not {context_length}; plant fewer or lengthen the rows"
            )

    def __call__(self, row: Row, rng: np.random.Generator) -> Row:
        """The row with needles, or unchanged; random only through `rng`."""
        if rng.random() >= self.row_fraction or row.segment_ids[-1] == 0:
            return row
        count = int(rng.integers(self.min_needles, self.max_needles + 1))
        starts, is_needle = self._places(len(row.tokens), count, rng)
        classes = rng.permutation(self.catalogue.classes)[:count]
        entries = self.catalogue.entry_id(classes, rng.integers(self.catalogue.entries, size=count))
        planted_before = np.cumsum(is_needle)[~is_needle]
        target = (rng.random(self.queries) * planted_before).astype(np.int64)

        tokens = row.tokens.copy()
        needle_starts, query_starts = starts[is_needle], starts[~is_needle]
        tokens[starts] = self.catalogue.marker
        tokens[needle_starts + 1] = entries
        tokens[query_starts + 1] = self.catalogue.class_id(classes[target])
        tokens[query_starts + 2] = entries[target]
        planted = make_row(tokens, np.ones_like(tokens))
        planted.loss_weight[starts] = 0.0
        planted.loss_weight[starts + 1] = 0.0
        planted.loss_weight[query_starts + 2] = self.answer_weight
        return planted

    def _places(self, length: int, count: int, rng: np.random.Generator):
        """Start of every insertion in order, and which of them are needles: the first always is."""
        shift = int(rng.integers(_SLOT))
        slots = rng.permutation((length - shift) // _SLOT)[: count + self.queries]
        slots.sort()
        is_needle = np.zeros(count + self.queries, bool)
        is_needle[0] = True
        is_needle[1 + rng.permutation(count + self.queries - 1)[: count - 1]] = True
        return shift + _SLOT * slots, is_needle


def stretch(
    text: Int[np.ndarray, " n"], length: int, rng: np.random.Generator
) -> Int[np.ndarray, " T"]:
    """A random stretch of text of this length; raises ValueError if there is too little."""
    if len(text) < length:
        raise ValueError(
            f"{len(text)} tokens of text cannot fill a row of {length}; give more text"
        )
    return text[int(rng.integers(len(text) - length + 1)) :][:length].astype(np.int32)


def needle_sequence(
    catalogue: Catalogue,
    text: Int[np.ndarray, " n"],
    length: int,
    num_needles: int,
    depth: float,
    rng: np.random.Generator,
) -> tuple[Int[np.ndarray, " T"], int]:
    """A test sequence of `length` tokens, and the answer: text, needles of different classes, one query at the end.

    Args:
      text: ordinary tokens, at least `length`; a random stretch of it is the haystack.
      depth: of the queried needle: 0 at the start, 1 right before the query. The others are
        anywhere.
    Raises:
      ValueError: too little text, too few classes, or too short a length.
    """
    slots = (length - 2) // 2
    if not 1 <= num_needles <= min(catalogue.classes, slots):
        raise ValueError(
            f"{num_needles} needles do not fit {catalogue.classes} classes and {length} tokens; "
            f"use 1 to {min(catalogue.classes, slots)}"
        )
    if not 0.0 <= depth <= 1.0:
        raise ValueError(f"depth {depth} is not between 0 (start) and 1 (right before the query)")
    tokens = stretch(text, length, rng)
    target_slot = round(depth * (slots - 1))
    others = rng.choice(slots - 1, num_needles - 1, replace=False)
    starts = 2 * np.append(others + (others >= target_slot), target_slot)
    classes = rng.permutation(catalogue.classes)[:num_needles]
    entries = catalogue.entry_id(classes, rng.integers(catalogue.entries, size=num_needles))
    tokens[starts], tokens[starts + 1] = catalogue.marker, entries
    tokens[-2:] = catalogue.marker, catalogue.class_id(classes[-1])
    return tokens, int(entries[-1])
