"""Questions that need all of the text: which words are common in a list, and which are frequent in a coded text."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from hypenet_jax.evals.ruler.text import (
    Haystacks,
    Piece,
    Question,
    coded_word,
    distinct,
    short_word,
)

# Below this length a list has room for fewer repetitions, as in RULER.
SHORT = 4096


@dataclasses.dataclass(frozen=True)
class CommonWords:
    """A numbered list in which a few words come often and all others seldom. A solved example goes before.

    Attributes:
      common: words that come often.
      often, seldom: how many times, in lists of at least SHORT tokens; 6 and 1 in shorter ones.
    """

    common: int = 10
    often: int = 30
    seldom: int = 3
    budget: int = 120

    def question(
        self, haystacks: Haystacks, length: int, depth: float, rng: np.random.Generator
    ) -> Question:
        often, seldom = (6, 1) if length + self.budget < SHORT else (self.often, self.seldom)
        # Each line takes two tokens at least: more words than these never fit.
        drawn = distinct(short_word, 3 * self.common + length // (2 * seldom), rng)
        example, words = drawn[: 2 * self.common], drawn[2 * self.common :]
        encode = haystacks.tokenizer.encode_all
        head, tail = encode([f"{self._solved(example, rng)}\n\n{HEAD}", TAIL])
        pieces, marks = (
            encode(texts)
            for texts in ([f" {w}" for w in words], [f" {i + 1}." for i in range(length // 2)])
        )
        room = length - len(head) - len(tail)
        rare = self._fitting(pieces, marks, room, often, seldom)
        counts = [often] * self.common + [seldom] * rare
        order = rng.permutation(np.repeat(np.arange(self.common + rare), counts))
        listed = [part for i, w in enumerate(order) for part in (marks[i], pieces[w])]
        tokens = np.concatenate([head, *listed, tail]).astype(np.int32)
        return Question(tokens, tuple(words[: self.common]))

    def _fitting(
        self, pieces: Sequence[Piece], marks: Sequence[Piece], room: int, often: int, seldom: int
    ) -> int:
        """How many seldom words fit beside the common ones, the numbers of all lines counted."""
        sizes = np.asarray([len(piece) for piece in pieces])
        numbered = np.cumsum([len(mark) for mark in marks])
        lines = often * self.common + seldom * np.arange(1, len(sizes) - self.common + 1) - 1
        lines = lines[lines < len(numbered)]
        rare = np.cumsum(sizes[self.common :])[: len(lines)] * seldom
        fits = often * sizes[: self.common].sum() + rare + numbered[lines] <= room
        if not fits.any():
            raise ValueError(
                f"{max(room, 0)} tokens have no room for {self.common} words {often} times each; use a longer length"
            )
        return int(fits.sum())

    def _solved(self, example: Sequence[str], rng: np.random.Generator) -> str:
        """The first half of these words comes three times, the other once."""
        often, once = list(example[: self.common]), list(example[self.common :])
        shown = rng.permutation([*often * 3, *once])
        listed = " ".join(f"{i + 1}. {word}" for i, word in enumerate(shown))
        return f"{HEAD} {listed}{TAIL} {' '.join(example[: self.common])}"


HEAD = "This is a numbered list in which some words come more often than others:"
TAIL = "\nWhich 10 words are the most common in the list above? The 10 most common words are:"


@dataclasses.dataclass(frozen=True)
class FrequentWords:
    """A text of coded words whose frequencies fall as rank^-alpha: the first is dots, the answer is the next three.

    Attributes:
      alpha: exponent of the frequencies.
      tokens_per_word: the vocabulary has one word for so many tokens of the length.
    """

    alpha: float = 2.0
    tokens_per_word: int = 50
    budget: int = 50

    def question(
        self, haystacks: Haystacks, length: int, depth: float, rng: np.random.Generator
    ) -> Question:
        size = max(8, length // self.tokens_per_word)
        words = ["...", *distinct(coded_word, size - 1, rng)]
        encode = haystacks.tokenizer.encode_all
        head, tail = encode(
            [
                "Count how often each coded word comes in the following text; dots do not count.\n",
                "\nWhich three coded words are the most frequent in the text above? The three most frequent words are:",
            ]
        )
        pieces = encode([f" {word}" for word in words])
        sizes = np.asarray([len(piece) for piece in pieces])
        counts = self._counts(sizes, length - len(head) - len(tail))
        order = rng.permutation(np.repeat(np.arange(size), counts))
        tokens = np.concatenate([head, *(pieces[i] for i in order), tail]).astype(np.int32)
        return Question(tokens, tuple(words[1:4]))

    def _counts(self, sizes: np.ndarray, room: int) -> np.ndarray:
        """How often each word comes in the longest text that fits."""
        shares = np.arange(1.0, len(sizes) + 1) ** -self.alpha
        shares /= shares.sum()
        low, high = 0, max(room, 1)
        while high - low > 1:
            middle = (low + high) // 2
            fits = int((np.floor(middle * shares) * sizes).sum()) <= room
            low, high = (middle, high) if fits else (low, middle)
        counts = np.floor(low * shares).astype(np.int64)
        if counts[3] <= counts[4]:
            raise ValueError(
                f"{max(room, 0)} tokens are too few for three words to stand out from the others; use a longer length"
            )
        return counts
