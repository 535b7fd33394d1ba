"""Questions about long texts in the manner of RULER: needles, variables, words, at any length, made here and offline.

Every question is made with the tokenizer of the model and random numbers of its own, so neither batching nor the
number of questions changes it. Prompts are worded here: scores compare models measured here, not published tables.
Its tasks about given documents (QA) need data sets and are left to the harness.

Source of the tasks and of their numbers: arXiv 2404.06654.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from hypenet_jax.evals.ruler.text import DRAW, Haystacks, Kind, Question, distinct
from hypenet_jax.evals.ruler.words import common_words, frequent_words

# Variables of a chain, which all have the value of the first.
CHAIN = 5


class Task(NamedTuple):
    """A kind of question, made of at most so many tokens at a depth; `budget` tokens may be written to answer it."""

    budget: int
    question: Callable[[Haystacks, int, float, np.random.Generator], Question]


def needles(
    haystacks: Haystacks,
    length: int,
    depth: float,
    rng: np.random.Generator,
    *,
    haystack: Literal["noise", "text", "needles"],
    keys: Kind = "word",
    values: Kind = "number",
    num_keys: int = 1,
    num_values: int = 1,
    num_queries: int = 1,
) -> Question:
    """Sentences that state a value of a key, hidden in a haystack; the question is for all values of some keys.

    Args:
      haystack: the same line again and again, the user's text, or other needles.
      keys, values: what they look like.
      num_keys, num_values, num_queries: keys hidden, values of each, keys in the question.
    """

    def state(key: str, value: str) -> str:
        return f"One of the secret {values}s of {key} is: {value}.\n"

    hidden = distinct(keys, num_keys, rng)
    known = distinct(values, num_keys * num_values, rng)
    owners = [key for key in hidden for _ in range(num_values)]
    depths = [depth, *rng.random(len(known) - 1)]
    planted = list(zip(depths, map(state, owners, known), strict=True))
    answers = tuple(known[: num_queries * num_values])
    plural, verb = ("s", "are") if len(answers) > 1 else ("", "is")
    which = f"secret {values}{plural} of {', '.join(hidden[:num_queries])}"
    head = (
        f"Secret {values}s are hidden in the following text. Keep them in mind: afterwards you will be asked "
        "for some.\n"
    )
    tail = f"\nWhat {verb} the {which} in the text above? The {which} in the text above {verb}"
    if haystack == "needles":
        others = (state(DRAW[keys](rng), DRAW[values](rng)) for _ in itertools.count())
        hay = map(haystacks.tokenizer.encode, others)
    else:
        hay = haystacks.noise() if haystack == "noise" else haystacks.text(rng)
    tokens = haystacks.assemble(head, hay, planted, tail, length)
    return Question(tokens, answers, depth if len(answers) == 1 else None)


def variable_tracking(
    haystacks: Haystacks, length: int, depth: float, rng: np.random.Generator
) -> Question:
    """A value assigned from variable to variable; the answer is all that have it. A solved example goes before."""
    names = distinct("variable", 2 * CHAIN, rng)
    example, chain = names[:CHAIN], names[CHAIN:]
    shown, value = (str(rng.integers(10_000, 100_000)) for _ in range(2))
    depths = np.sort(rng.random(CHAIN)).tolist()
    task = "Follow the assignments of variables in the text below.\n"
    solved = f"{task}{''.join(_assigned(example, shown))}{_who_has(shown)} {' '.join(example)}"
    planted = list(zip(depths, _assigned(chain, value), strict=True))
    head, tail = f"{solved}\n\n{task}", _who_has(value)
    tokens = haystacks.assemble(head, haystacks.noise(), planted, tail, length)
    return Question(tokens, tuple(chain))


def _assigned(names: Sequence[str], value: str) -> list[str]:
    steps = [f"VAR {name} = VAR {before}\n" for before, name in itertools.pairwise(names)]
    return [f"VAR {names[0]} = {value}\n", *steps]


def _who_has(value: str) -> str:
    return (
        f"\nWhich variables have the value {value} in the text above? "
        f"By the assignments above, these {CHAIN} variables have the value {value}:"
    )


def _needles(haystack: Literal["noise", "text", "needles"], **options: Any) -> Task:
    return Task(128, functools.partial(needles, haystack=haystack, **options))


TASKS: Mapping[str, Task] = {
    "niah_single_1": _needles("noise"),
    "niah_single_2": _needles("text"),
    "niah_single_3": _needles("text", values="uuid"),
    "niah_multikey_1": _needles("text", num_keys=4),
    "niah_multikey_2": _needles("needles"),
    "niah_multikey_3": _needles("needles", keys="uuid", values="uuid"),
    "niah_multivalue": _needles("text", num_values=4),
    "niah_multiquery": _needles("text", num_keys=4, num_queries=4),
    "vt": Task(30, variable_tracking),
    "cwe": Task(120, common_words),
    "fwe": Task(50, frequent_words),
}


def questions(
    task: str, haystacks: Haystacks, length: int, *, count: int, seed: int
) -> list[Question]:
    """`count` questions whose tokens and budget are at most `length`; question i asks at depth (i + 1/2) / count.

    Raises:
      ValueError: a length without room for them.
    """
    budget, question = TASKS[task]
    name = int.from_bytes(task.encode(), "big")
    draws = (np.random.default_rng((seed, name, length, i)) for i in range(count))
    return [
        question(haystacks, length - budget, (i + 0.5) / count, rng) for i, rng in enumerate(draws)
    ]


def match_all(written: str, answers: Sequence[str]) -> float:
    """Share of the answers that occur in a text, in any case: RULER's `string_match_all`."""
    return sum(answer.lower() in written.lower() for answer in answers) / len(answers)
