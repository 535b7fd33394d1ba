"""Retrieval with ordinary words, for pretrained models: a code is stated somewhere and asked for at the end.

    ... The access code of Maria is 48213. ... The access code of Maria is 48213

The answer counts when every one of its tokens is the likeliest, the ones before it given.
"""

import dataclasses
import functools
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from hypenet_jax.data.synthetic import stretch
from hypenet_jax.evals.evaluator import Evaluator, Session, check_positive
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report
from hypenet_jax.evals.retrieval.needle import answered

NAMES = (
    "Maria", "Ahmed", "Ingrid", "Kenji", "Olga", "Pedro", "Fatima", "Lars",
    "Mei", "Tomas", "Amina", "Ravi", "Helen", "Yusuf", "Clara", "Igor",
)  # fmt: skip
STATEMENT = "\nThe access code of {} is {}.\n"
QUESTION = "\nThe access code of {} is"
CODES = (10_000, 100_000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PasskeyEvaluator(Evaluator):
    """Codes stated in words, hidden in the text.

    Attributes:
      lengths: context lengths: tokens that are read, which are all but the last one of the answer.
      rows: texts per length.
      statements: codes stated in each, of different names; one of them is asked for.
    """

    lengths: tuple[int, ...] = ()
    rows: int = 64
    statements: int = 4

    shown: ClassVar = (
        Presentation(
            metric="passkey",
            title="Finding a code stated in words",
            note="Share of texts at whose end the model gives a code stated somewhere in them. {counts} texts per "
            "point; whiskers are 95\u00a0% intervals (Wilson).",
            unit="share",
            label="accuracy",
        ),
    )

    def __post_init__(self) -> None:
        check_positive(self, "lengths", "rows", "statements")

    def run(self, model: EvalModel, session: Session) -> Report:
        report = Report()
        for length in self.lengths:
            measure = functools.partial(self.measure, model, length, session.seed)
            report += session.keep("passkey", measure, length)
        return report

    def measure(self, model: EvalModel, length: int, seed: int) -> Report:
        """Share of rows whose code is found; `seed` decides the rows, the same for every model.

        Returns:
          One row "passkey", and a row "failed" where the model computes NaN; see `answered`.
        Raises:
          ValueError: the statements do not fit the length, or there is not enough text.
        """
        rows, counted = self.questions(model, length, seed)
        return answered("passkey", model, rows, counted, length, by_depth=False)

    def questions(
        self, model: EvalModel, length: int, seed: int
    ) -> tuple[Int[np.ndarray, "R T"], tuple[int, ...]]:
        """Tokens of all rows, and how many of the last ones of each are the answer."""
        made = [
            self.row(model, length, np.random.default_rng((seed, length, i)))
            for i in range(self.rows)
        ]
        rows, counted = zip(*made, strict=True)
        return np.stack(rows), counted

    def row(
        self, model: EvalModel, length: int, rng: np.random.Generator
    ) -> tuple[Int[np.ndarray, " T"], int]:
        """Tokens of one row, and how many of its last ones are the answer."""
        assert model.tokenizer is not None
        names = [NAMES[i] for i in rng.permutation(len(NAMES))[: self.statements]]
        codes = [str(code) for code in rng.integers(*CODES, size=self.statements)]
        question = QUESTION.format(names[0])
        stated = [STATEMENT.format(n, c) for n, c in zip(names, codes, strict=True)]
        *stated, asked, whole = model.tokenizer.encode_all(
            [*stated, question, f"{question} {codes[0]}"]
        )
        # Tokens of the answer: what the whole has beyond its longest common start with the question.
        shared = int(np.argmin(np.append(asked == whole[: len(asked)], False)))
        room = length + 1 - sum(map(len, stated)) - len(whole)
        if room < self.statements + 1:
            raise ValueError(
                f"{self.statements} statements and a question leave {room} of {length} tokens for text; state fewer "
                "codes, or lengthen the rows"
            )
        text = stretch(model.text, room, rng)
        hay = np.split(text, np.sort(rng.integers(0, room, self.statements)))
        pieces = [hay[0]]
        for gap, i in zip(hay[1:], rng.permutation(self.statements), strict=True):
            pieces += [stated[i], gap]
        return np.concatenate([*pieces, whole]), len(whole) - shared
