"""Retrieval: does a model find, at the end of a long text, what was planted somewhere in it?

Chance is one in `catalogue.entries` for a model that knows the class alone. Every model is asked the same questions.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Bool, Int

from hypenet_jax import axes
from hypenet_jax.axes import Params, Tokens
from hypenet_jax.data.batch import make_row
from hypenet_jax.data.synthetic import Catalogue, NeedleRows, needle_sequence, stretch
from hypenet_jax.evals.evaluator import Evaluator, Session, check_positive
from hypenet_jax.evals.language.predictions import final_hits, token_scores
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, failure, scored, share
from hypenet_jax.generation.batching import batches_by_width
from hypenet_jax.generation.model import Model
from hypenet_jax.sharding import constrain


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleEvaluator(Evaluator):
    """Needles of a catalogue whose tokens the models were trained on.

    Attributes:
      catalogue: its tokens.
      lengths: context lengths, the query included.
      needles: planted in each sequence, one of them asked for.
      sequences: per length, and the fewer of lengths from `long_length` on.
    """

    catalogue: Annotated[Catalogue, tyro.conf.Fixed]
    lengths: tuple[int, ...]
    needles: int = 4
    sequences: int = 256
    long_sequences: int = 32
    long_length: int = 512

    shown: ClassVar = (
        Presentation(
            metric="needle",
            title="Finding a needle",
            note="Share of questions at the end of a text that are answered with what was planted in it. {counts} "
            "texts per point, the same for every model; whiskers are 95\u00a0% intervals (Wilson).",
            unit="share",
            label="accuracy",
        ),
        Presentation(
            metric="needle_by_depth",
            title="Needles by depth",
            note="Accuracy by context length and by where in it the needle lies; the deepest is nearest to the "
            "question.",
            unit="share",
            kind="heat map",
        ),
    )

    def __post_init__(self) -> None:
        check_positive(self, "lengths", "needles", "sequences", "long_sequences")

    @property
    def presentations(self) -> tuple[Presentation, ...]:
        chance = (1 / self.catalogue.entries, "chance")
        return (dataclasses.replace(self.shown[0], reference=chance), *self.shown[1:])

    def run(self, model: EvalModel, session: Session) -> Report:
        report = Report()
        for length in self.lengths:
            measure = functools.partial(self.measure, model, length, session.seed)
            report += session.keep("needle", measure, length)
        return report

    def measure(self, model: EvalModel, length: int, seed: int) -> Report:
        """Share of questions at the end of a context that the model answers.

        The answer is the argmax over the whole vocabulary, not over the entries of the class; only the logits of the
        last position are formed. Depths are spread evenly. One compilation per model and length.

        Args:
          seed: decides the questions, the same for every model.
        Returns:
          Rows "needle", and "needle_by_depth" for each of DEPTHS parts of the context; see `answered`.
        Raises:
          ValueError: the model's text is shorter than the context, or the needles do not fit in.
        """
        rows = self.questions(model.text, length, seed)
        return answered("needle", model, rows, [1] * len(rows), length)

    def questions(
        self, text: Int[np.ndarray, " n"], length: int, seed: int
    ) -> Int[np.ndarray, "R T"]:
        """Rows of `length` tokens that end in a query, and the one right token after them.

        Question i lies at depth (i + 1/2) / n; each has random numbers of its own, so batching cannot change it.
        """
        count = self.sequences if length < self.long_length else self.long_sequences
        rows = []
        for i in range(count):
            rng = np.random.default_rng((seed, length, i))
            depth = (i + 0.5) / count
            tokens, answer = needle_sequence(self.catalogue, text, length, self.needles, depth, rng)
            rows.append(np.append(tokens, np.int32(answer)))
        return np.stack(rows)


def answered(
    metric: str,
    model: EvalModel,
    rows: Int[np.ndarray, "R T"],
    counted: Sequence[int],
    length: int,
    *,
    by_depth: bool = True,
) -> Report:
    """Share of the rows at whose end the model gives the right answer, which is their last `counted` tokens.

    Returns:
      Rows `metric` and, where `by_depth`, `metric`_by_depth, with Wilson intervals of 95 %. Questions at which the
      model computes NaN stand in a row "failed" and do not count.
    """
    found = final_hits(model, rows, counted)
    report = scored(metric, model.name, found, length=length, by_depth=by_depth)
    broken = np.flatnonzero(np.isnan(found)).tolist()
    if broken:
        why = f"the model computes NaN at questions {broken}"
        report = report.add(failure(model.name, metric, why, length, len(broken)))
    return report


class Quiz(NamedTuple):
    """Rows with several queries each: answer q of a row is what the token at `places` q should be followed by."""

    tokens: Int[np.ndarray, "R T"]
    places: Int[np.ndarray, "R Q"]
    answers: Int[np.ndarray, "R Q"]


def retrieval(
    model: EvalModel, needles: NeedleRows, *, length: int, num_rows: int, seed: int
) -> Report:
    """Share of all queries in short rows that a model answers, near ones included: the score that selects layers.

    Args:
      needles: how they are planted in rows of the model's text; `max_needles` in each.
    Returns:
      One row "retrieval"; its count is that of all queries.
    """
    found = retrieved(model, needles, length=length, num_rows=num_rows, seed=seed)
    return Report((share("retrieval", model.name, int(found.sum()), found.size, length=length),))


def retrieved(
    model: EvalModel, needles: NeedleRows, *, length: int, num_rows: int, seed: int
) -> Bool[np.ndarray, "R Q"]:
    """Which queries of short rows a model answers; arguments as `retrieval` has them."""
    asked = quiz(needles, model.text, length, num_rows, seed)
    found = np.zeros(asked.answers.shape, bool)
    for batch in batches_by_width([length] * num_rows, width=length):
        tokens, places, answers = (rows[batch.order] for rows in asked)
        hits = _hits(model.decoder, model.params, tokens, places, answers)
        found[[*batch.rows]] = np.asarray(hits)[: len(batch.rows)]
    return found


def quiz(
    needles: NeedleRows, text: Int[np.ndarray, " n"], length: int, num_rows: int, seed: int
) -> Quiz:
    """Rows of text drawn from `text`, with needles and queries planted as in training."""
    plant = dataclasses.replace(needles, row_fraction=1.0, min_needles=needles.max_needles)
    plant.check(length)
    rows = []
    for i in range(num_rows):
        rng = np.random.default_rng((seed, length, i))
        row = make_row(stretch(text, length, rng), np.ones(length, np.int32))
        rows.append(plant(row, rng).tokens)
    tokens, catalogue = np.stack(rows), needles.catalogue
    is_class = (tokens >= catalogue.class_id(0)) & (tokens < catalogue.class_id(catalogue.classes))
    places = np.nonzero(is_class)[1].reshape(num_rows, needles.queries)
    return Quiz(tokens, places, np.take_along_axis(tokens, places + 1, axis=1))


@functools.partial(jax.jit, static_argnums=0)
def _hits(
    decoder: Model,
    params: Params,
    tokens: Tokens,
    places: Int[Array, "B Q"],
    answers: Int[Array, "B Q"],
) -> Bool[Array, "B Q"]:
    tokens = constrain(tokens, (axes.BATCH, axes.TIME))
    hidden = decoder.apply({"params": params}, tokens).hidden
    asked = jnp.take_along_axis(hidden, places[:, :, None], axis=1)
    return token_scores(decoder, params, asked, answers, jnp.ones_like(answers, bool))[1]
