"""Questions about long texts in the manner of RULER: needles, variables, words, at any length, made here and offline.

Every question is made with the tokenizer of the model and random numbers of its own, so neither batching nor the
number of questions changes it. Prompts are worded here: scores compare models measured here, not published tables.
Its tasks about given documents (QA) need data sets and are left to the harness.

Source of the tasks and of their numbers: arXiv 2404.06654.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np

from hypenet_jax.evals.ruler.text import (
    Haystacks,
    Piece,
    Question,
    distinct,
    identifier,
    number,
    variable,
    word,
)
from hypenet_jax.evals.ruler.words import CommonWords, FrequentWords

Kind = Literal["word", "number", "uuid"]
DRAW: Mapping[Kind, Callable[[np.random.Generator], str]] = {
    "word": word,
    "number": number,
    "uuid": identifier,
}


class Task(Protocol):
    """A kind of question; `budget` tokens may be written to answer it."""

    @property
    def budget(self) -> int: ...

    def question(
        self, haystacks: Haystacks, length: int, depth: float, rng: np.random.Generator
    ) -> Question:
        """A question of at most `length` tokens."""
        ...


@dataclasses.dataclass(frozen=True)
class Needles:
    """Sentences that state a value of a key, hidden in a haystack; the question is for all values of some keys.

    Attributes:
      haystack: the same line again and again, the user's text, or other needles.
      keys, values: what they look like.
      num_keys, num_values, num_queries: keys hidden, values of each, keys in the question.
    """

    haystack: Literal["noise", "text", "needles"]
    keys: Kind = "word"
    values: Kind = "number"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1
    budget: int = 128

    def question(
        self, haystacks: Haystacks, length: int, depth: float, rng: np.random.Generator
    ) -> Question:
        keys = distinct(DRAW[self.keys], self.num_keys, rng)
        values = distinct(DRAW[self.values], self.num_keys * self.num_values, rng)
        owners = [key for key in keys for _ in range(self.num_values)]
        stated = [self._state(key, value) for key, value in zip(owners, values, strict=True)]
        depths = [depth, *rng.random(len(stated) - 1)]
        queried = keys[: self.num_queries]
        head, tail = self._frame(queried)
        planted = list(zip(depths, stated, strict=True))
        tokens = haystacks.assemble(head, self._hay(haystacks, rng), planted, tail, length)
        answers = tuple(values[: len(queried) * self.num_values])
        return Question(tokens, answers, depth if len(answers) == 1 else None)

    def _state(self, key: str, value: str) -> str:
        return f"One of the secret {self.values}s of {key} is: {value}.\n"

    def _frame(self, keys: Sequence[str]) -> tuple[str, str]:
        """What stands before and after the haystack."""
        many = self.num_values * len(keys) > 1
        which = f"secret {self.values}{'s' if many else ''} of {', '.join(keys)}"
        verb = "are" if many else "is"
        head = (
            f"Secret {self.values}s are hidden in the following text. Keep them in mind: afterwards you will be asked "
            "for some.\n"
        )
        tail = f"\nWhat {verb} the {which} in the text above? The {which} in the text above {verb}"
        return head, tail

    def _hay(self, haystacks: Haystacks, rng: np.random.Generator) -> Iterator[Piece]:
        if self.haystack == "noise":
            return haystacks.noise()
        return haystacks.text(rng) if self.haystack == "text" else self._others(haystacks, rng)

    def _others(self, haystacks: Haystacks, rng: np.random.Generator) -> Iterator[Piece]:
        while True:
            key, value = DRAW[self.keys](rng), DRAW[self.values](rng)
            yield haystacks.tokenizer.encode(self._state(key, value))


@dataclasses.dataclass(frozen=True)
class VariableTracking:
    """A value assigned from variable to variable; the answer is all that have it. A solved example goes before."""

    hops: int = 4
    budget: int = 30

    def question(
        self, haystacks: Haystacks, length: int, depth: float, rng: np.random.Generator
    ) -> Question:
        names = distinct(variable, 2 * (self.hops + 1), rng)
        example, chain = names[: self.hops + 1], names[self.hops + 1 :]
        solved = self._solved(example, str(rng.integers(10_000, 100_000)))
        value = str(rng.integers(10_000, 100_000))
        depths = np.sort(rng.random(len(chain)))
        planted = list(zip(depths.tolist(), self._lines(chain, value), strict=True))
        head = f"{solved}\n\nFollow the assignments of variables in the text below.\n"
        tail = self._question(value)
        tokens = haystacks.assemble(head, haystacks.noise(), planted, tail, length)
        return Question(tokens, tuple(chain))

    def _solved(self, names: Sequence[str], value: str) -> str:
        lines = "".join(self._lines(names, value))
        return (
            f"Follow the assignments of variables in the text below.\n{lines}{self._question(value)} "
            f"{' '.join(names)}"
        )

    def _lines(self, names: Sequence[str], value: str) -> list[str]:
        steps = [f"VAR {name} = VAR {before}\n" for before, name in itertools.pairwise(names)]
        return [f"VAR {names[0]} = {value}\n", *steps]

    def _question(self, value: str) -> str:
        return (
            f"\nWhich variables have the value {value} in the text above? "
            f"By the assignments above, these {self.hops + 1} variables have the value {value}:"
        )


TASKS: Mapping[str, Task] = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles("text"),
    "niah_single_3": Needles("text", values="uuid"),
    "niah_multikey_1": Needles("text", num_keys=4),
    "niah_multikey_2": Needles("needles"),
    "niah_multikey_3": Needles("needles", keys="uuid", values="uuid"),
    "niah_multivalue": Needles("text", num_values=4),
    "niah_multiquery": Needles("text", num_keys=4, num_queries=4),
    "vt": VariableTracking(),
    "cwe": CommonWords(),
    "fwe": FrequentWords(),
}


def questions(
    task: str, haystacks: Haystacks, length: int, *, count: int, seed: int
) -> list[Question]:
    """`count` questions whose tokens and budget are at most `length`; question i asks at depth (i + 1/2) / count.

    Raises:
      ValueError: an unknown task, or a length without room for it.
    """
    if task not in TASKS:
        raise ValueError(f"no task {task!r}; there are {', '.join(TASKS)}")
    name = int.from_bytes(task.encode(), "big")
    room = length - TASKS[task].budget
    return [
        TASKS[task].question(
            haystacks, room, (i + 0.5) / count, np.random.default_rng((seed, name, length, i))
        )
        for i in range(count)
    ]


def match_all(written: str, answers: Sequence[str]) -> float:
    """Share of the answers that occur in a text, in any case: RULER's `string_match_all`."""
    return sum(answer.lower() in written.lower() for answer in answers) / len(answers)
