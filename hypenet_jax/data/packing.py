"""How documents come to lie in blocks: text end to end, conversations whole."""

import dataclasses
from typing import TypeAlias

import numpy as np
from jaxtyping import Int

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
