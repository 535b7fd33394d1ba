"""How documents come to lie in blocks, text end to end and conversations whole, and how long they are."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int

from hypenet_jax.data.batch import doublings
from hypenet_jax.data.conversations import PADDING, Words, learned

OPEN_BLOCKS = 64


class EndToEnd:
    """Documents of text one after another, across blocks."""

    @property
    def counts(self) -> dict[str, int]:
        """Nothing beside documents and tokens."""
        return {}

    def add(self, tokens: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, " _"]]:
        """What is stored next once this document is there."""
        return [tokens]

    def rest(self) -> list[Int[np.ndarray, " _"]]:
        """What is stored at the end."""
        return []


@dataclasses.dataclass
class BestFit:
    """Packs conversations into blocks of one length, each into the open block that it leaves the least room in.

    Attributes:
      length: of a block.
      counts: "learned" tokens that were added, and "padding" of closed blocks.
    """

    length: int
    counts: dict[str, int] = dataclasses.field(default_factory=lambda: {"learned": 0, "padding": 0})
    _open: list[Words] = dataclasses.field(default_factory=list)

    def add(self, words: Words) -> list[Words]:
        """Packs a conversation of at most `length` words; returns the blocks that were closed for it."""
        self.counts["learned"] += int(learned(words).sum())
        fitting = [block for block in self._open if len(block) + len(words) <= self.length]
        fullest = max(fitting, key=len, default=words[:0])
        self._open = [block for block in self._open if block is not fullest]
        self._open.append(np.concatenate([fullest, words]))
        return [self._closed()] if len(self._open) > OPEN_BLOCKS else []

    def rest(self) -> list[Words]:
        """Closes all blocks."""
        return [self._closed() for _ in range(len(self._open))]

    def _closed(self) -> Words:
        """The fullest block, which is open no longer, filled up."""
        fullest = max(range(len(self._open)), key=lambda i: len(self._open[i]))
        block = self._open.pop(fullest)
        self.counts["padding"] += self.length - len(block)
        return np.pad(block, (0, self.length - len(block)), constant_values=PADDING)


Packing: TypeAlias = EndToEnd | BestFit


@dataclasses.dataclass
class DocumentLengths:
    """Counts of documents and of their tokens by length, in classes [2^k, 2^(k+1)) that are named by 2^k.

    Attributes:
      longest: tokens of the longest document; 0 where there is none.
    """

    longest: int = 0
    documents: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    tokens: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)

    def add(self, length: int) -> None:
        """Counts a document of so many tokens."""
        power = 1 << (length.bit_length() - 1)
        self.documents[power] += 1
        self.tokens[power] += length
        self.longest = max(self.longest, length)

    def as_json(self) -> dict[str, Any]:
        """{"longest": ..., "documents": {"512": ...}, "tokens": {"512": ...}}, shortest first."""
        counted = {"documents": self.documents, "tokens": self.tokens}
        by_power = {
            name: {str(power): count[power] for power in sorted(count)}
            for name, count in counted.items()
        }
        return {"longest": self.longest, **by_power}


def counts_in_words(counts: Mapping[str, Any]) -> str:
    """What the manifest says of a split, and which share of its tokens lies in documents of at least 512, 1024, ..."""
    words = [f"{number:,} {name}" for name, number in counts.items() if isinstance(number, int)]
    if left_out := counts.get("left_out", {}).get("documents"):
        words.append(f"{sum(left_out.values()):,} shorter documents left out")
    lengths = counts["lengths"]
    tokens = {int(power): number for power, number in lengths["tokens"].items()}
    for bound in doublings(lengths["longest"] + 1):
        share = sum(n for power, n in tokens.items() if power >= bound) / sum(tokens.values())
        words.append(f"{100 * share:.3g} % in documents of {bound:,} tokens or more")
    return ", ".join(words)
