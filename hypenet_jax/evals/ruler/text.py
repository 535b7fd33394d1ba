"""What questions are made of: haystacks cut to measure in tokens, and words, numbers and names drawn at random.

Pieces are tokenised one by one and joined as tokens, so a question has its length without any search, and a million
tokens cost what their text costs once.
"""

import dataclasses
import functools
import itertools
import re
import string
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from hypenet_jax.data.tokenizer import Tokenizer

NOISE = (
    "The river is wide. The hill is steep. The road is long. Off we go. Around and home again.\n"
)
SYLLABLES = [a + b for a, b in itertools.product("bdfghklmnprstvz", "aeiou")]

Piece = Int[np.ndarray, " _"]


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt that ends where the model is to write.

    Attributes:
      tokens: of the prompt.
      answers: texts that must occur in what is written.
      depth: where the answer lies in the haystack, 0 to 1; None where there are several answers.
    """

    tokens: Int[np.ndarray, " T"]
    answers: tuple[str, ...]
    depth: float | None = None


@dataclasses.dataclass(frozen=True)
class Haystacks:
    """Endless haystacks in pieces.

    Attributes:
      tokenizer: of the model.
      sentences: of the user's text, in their order.
    """

    tokenizer: Tokenizer
    sentences: Sequence[Piece]

    def noise(self) -> Iterator[Piece]:
        """One and the same line of small talk."""
        return itertools.repeat(self.tokenizer.encode(NOISE))

    def text(self, rng: np.random.Generator) -> Iterator[Piece]:
        """The user's text from a random sentence on, and from its start after its end."""
        if not self.sentences:
            raise ValueError("there is no sentence of text to hide anything in; name a text")
        start = int(rng.integers(len(self.sentences)))
        return itertools.islice(itertools.cycle(self.sentences), start, None)

    def assemble(
        self,
        head: str,
        pieces: Iterator[Piece],
        planted: Sequence[tuple[float, str]],
        tail: str,
        length: int,
    ) -> Int[np.ndarray, " T"]:
        """Head, as many pieces as fit with what is planted at each depth between them, tail: at most `length` tokens.

        Raises:
          ValueError: no piece fits.
        """
        start, end, *needles = self.tokenizer.encode_all([head, tail, *(t for _, t in planted)])
        hay = cut(pieces, length - len(start) - len(end) - sum(map(len, needles)))
        at: dict[int, list[Piece]] = {}
        for (depth, _), needle in zip(planted, needles, strict=True):
            at.setdefault(round(depth * len(hay)), []).append(needle)
        whole = [start]
        for i in range(len(hay) + 1):
            whole += [*at.get(i, ()), *hay[i : i + 1]]
        return np.concatenate([*whole, end]).astype(np.int32)


def cut(pieces: Iterator[Piece], room: int) -> list[Piece]:
    """The first pieces, as many as have together at most `room` tokens.

    Raises:
      ValueError: not even the first one fits.
    """
    taken = []
    for piece in pieces:
        room -= len(piece)
        if room < 0:
            break
        taken.append(piece)
    if not taken:
        raise ValueError(
            "the length leaves no room for a haystack besides the question and the new tokens; use one that is "
            f"longer by about {-room} tokens"
        )
    return taken


def sentences_of(text: str) -> list[str]:
    """A text cut after the ends of its sentences and lines; nothing is lost."""
    return [part for part in re.split(r"(?<=[.!?]\s)|(?<=\n)", text) if part]


def _spelled(alphabet: str | list[str], count: int, rng: np.random.Generator) -> str:
    return "".join([alphabet[i] for i in rng.choice(len(alphabet), count)])


def _word(rng: np.random.Generator) -> str:
    """A word of no language, of two parts; there are 2 * 10^9 of them."""
    spelled = _spelled(SYLLABLES, 5, rng)
    return f"{spelled[:6]}-{spelled[6:]}"


Kind = Literal["word", "number", "uuid", "short word", "coded word", "variable"]
DRAW: Mapping[Kind, Callable[[np.random.Generator], str]] = {
    "word": _word,
    "number": lambda rng: str(rng.integers(10**6, 10**7)),
    "uuid": lambda rng: str(uuid.UUID(bytes=rng.bytes(16), version=4)),
    "short word": functools.partial(_spelled, SYLLABLES, 3),
    "coded word": functools.partial(_spelled, string.ascii_lowercase, 6),
    "variable": functools.partial(_spelled, string.ascii_uppercase, 5),
}


def distinct(kind: Kind, count: int, rng: np.random.Generator) -> list[str]:
    """So many different draws."""
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn[DRAW[kind](rng)] = None
    return list(drawn)
