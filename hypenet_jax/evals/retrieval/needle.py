"""Retrieval: does a model find, at the end of a long text, what was planted somewhere in it?

Chance is one in `catalogue.entries` for a model that knows the class alone. Every model is asked
the same questions.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Int

from hypenet_jax import axes
from hypenet_jax.axes import Params, Tokens
from hypenet_jax.data.batch import make_row
from hypenet_jax.data.synthetic import Catalogue, NeedleRows, needle_sequence, stretch
from hypenet_jax.evals.evaluator import Evaluator, Session, check_positive
from hypenet_jax.evals.language.chunked_forward import last_hidden
from hypenet_jax.evals.language.predictions import top_tokens
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, failure, scored, share
from hypenet_jax.generation.batching import TOKENS_PER_BATCH, batches_of
from hypenet_jax.generation.model import Model
from hypenet_jax.sharding import constrain

PRESENTATIONS = (
    Presentation(
        metric="needle",
        title="Finding a needle",
        note="Share of questions at the end of a text that are answered with what was planted in it. {counts} texts "
        "per point, the same for every model; whiskers are 95\u00a0% intervals (Wilson).",
        unit="share",
        label="accuracy",
    ),
    Presentation(
        metric="needle_by_depth",
        title="Needles by depth",
        note="Accuracy by context length and by where in it the needle lies; the deepest is nearest to the question.",
        unit="share",
        kind="heat map",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleEvaluator(Evaluator):
    """Needles of a catalogue whose tokens the models were trained on.

    Attributes:
      catalogue: its tokens.
      lengths: context lengths.
      needles: planted in each sequence, one of them asked for.
      sequences: per length, and the fewer of lengths from `long_length` on.
    """

    catalogue: Annotated[Catalogue, tyro.conf.Fixed]
    lengths: tuple[int, ...]
    needles: int = 4
    sequences: int = 256
    long_sequences: int = 32
    long_length: int = 512

    def __post_init__(self) -> None:
        check_positive(self, "lengths", "needles", "sequences", "long_sequences")

    @property
    def presentations(self) -> tuple[Presentation, ...]:
        chance = (1 / self.catalogue.entries, "chance")
        return (dataclasses.replace(PRESENTATIONS[0], reference=chance), *PRESENTATIONS[1:])

    def run(self, model: EvalModel, session: Session) -> Report:
        report = Report()
        for length in self.lengths:
            measure = functools.partial(
                needle_accuracy,
                model,
                self.catalogue,
                model.text,
                [length],
                num_needles=self.needles,
                count=self.sequences if length < self.long_length else self.long_sequences,
                seed=session.seed,
            )
            report += session.keep("needle", measure, length)
        return report


LastLogits = Callable[[Int[np.ndarray, "B T"]], Float[Array, "B V"]]
"""Rows of tokens to the logits of what follows each row's last token."""


class Questions(NamedTuple):
    """Rows that each end in a query, and the one right next token of each."""

    tokens: Int[np.ndarray, "R T"]
    answers: Int[np.ndarray, " R"]


class Quiz(NamedTuple):
    """Rows with several queries each: answer q of a row is what the token at `places` q should be
    followed by.
    """

    tokens: Int[np.ndarray, "R T"]
    places: Int[np.ndarray, "R Q"]
    answers: Int[np.ndarray, "R Q"]


def needle_accuracy(
    model: EvalModel,
    catalogue: Catalogue,
    text: Int[np.ndarray, " n"],
    lengths: Sequence[int],
    *,
    num_needles: int,
    count: int,
    seed: int,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Report:
    """Share of questions at the end of a context that a model answers, by context length.

    The answer is the argmax over the whole vocabulary, not over the entries of the class; only the
    logits of the last position are formed. Depths are spread evenly. One compilation per model and
    length.

    Args:
      catalogue: the planted tokens.
      text: held-out tokens that the needles are hidden in; at least the longest length.
      lengths: tokens per sequence, the query included.
      count: sequences per length.
      seed: decides the sequences, the same for every model.
    Returns:
      Rows "needle", and "needle_by_depth" for each of DEPTHS parts of the context, with Wilson intervals of 95 %.
      Questions at which the model computes NaN stand in a row "failed" and do not count.
    """
    ask = last_logits(model)
    report = Report()
    for length in lengths:
        asked = questions(catalogue, text, length, num_needles=num_needles, count=count, seed=seed)
        found = scores(ask, asked, tokens_per_batch)
        report += scored("needle", model.name, found, length=length)
        broken = np.flatnonzero(np.isnan(found))
        if len(broken):
            why = f"the model computes NaN at questions {broken.tolist()}"
            report = report.add(failure(model.name, "needle", why, length, len(broken)))
    return report


def questions(
    catalogue: Catalogue,
    text: Int[np.ndarray, " n"],
    length: int,
    *,
    num_needles: int,
    count: int,
    seed: int,
) -> Questions:
    """Question i lies at depth (i + 1/2) / count; each has random numbers of its own, so batching
    cannot change it.
    """
    asked = [
        needle_sequence(
            catalogue,
            text,
            length,
            num_needles,
            (i + 0.5) / count,
            np.random.default_rng((seed, length, i)),
        )
        for i in range(count)
    ]
    tokens, answers = zip(*asked, strict=True)
    return Questions(np.stack(tokens), np.asarray(answers))


def scores(
    ask: LastLogits, asked: Questions, tokens_per_batch: int = TOKENS_PER_BATCH
) -> Float[np.ndarray, " R"]:
    """1 for each question that is answered right, 0 for one that is not, NaN where the logits hold one."""
    found = []
    for batch, real in batches_of(asked.tokens, tokens_per_batch):
        logits = np.asarray(ask(batch))[:real]
        found.append(np.where(np.isnan(logits).any(axis=-1), np.nan, np.argmax(logits, axis=-1)))
    tokens = np.concatenate(found)
    return np.where(np.isnan(tokens), np.nan, tokens == asked.answers)


def last_logits(model: EvalModel) -> LastLogits:
    """The model as a function from rows to the logits after their last token."""
    return lambda tokens: _logits(model.decoder, model.params, last_hidden(model, tokens, 1))


@functools.partial(jax.jit, static_argnums=0)
def _logits(decoder: Model, params: Params, hidden: Float[Array, "B 1 D"]) -> Float[Array, "B V"]:
    logits = decoder.apply({"params": params}, hidden, method="logits")
    return constrain(logits[:, 0], (None, None))


def retrieval(
    model: EvalModel,
    catalogue: Catalogue,
    text: Int[np.ndarray, " n"],
    *,
    length: int,
    num_rows: int,
    num_needles: int = 8,
    queries: int = 8,
    seed: int,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Report:
    """Share of all queries in short rows that a model answers, near ones included: the score that
    selects layers.

    Returns:
      One row "retrieval"; its count is num_rows * queries.
    """
    asked = quiz(catalogue, text, length, num_rows, num_needles, queries, seed)
    hits, start = 0, 0
    for batch, real in batches_of(asked.tokens, tokens_per_batch):
        places = np.resize(asked.places[start : start + real], (len(batch), queries))
        guesses = np.asarray(_guesses(model.decoder, model.params, batch, places))[:real]
        hits += int(np.sum(guesses == asked.answers[start : start + real]))
        start += real
    return Report((share("retrieval", model.name, hits, num_rows * queries, length=length),))


def quiz(
    catalogue: Catalogue,
    text: Int[np.ndarray, " n"],
    length: int,
    num_rows: int,
    num_needles: int,
    queries: int,
    seed: int,
) -> Quiz:
    """Rows of text drawn from `text`, with needles and queries planted as in training."""
    plant = NeedleRows(catalogue, 1.0, num_needles, num_needles, queries)
    plant.check(length)
    rows = []
    for i in range(num_rows):
        rng = np.random.default_rng((seed, length, i))
        row = make_row(stretch(text, length, rng), np.ones(length, np.int32))
        rows.append(plant(row, rng).tokens)
    tokens = np.stack(rows)
    is_class = (tokens >= catalogue.class_id(0)) & (tokens < catalogue.class_id(catalogue.classes))
    places = np.nonzero(is_class)[1].reshape(num_rows, queries)
    return Quiz(tokens, places, np.take_along_axis(tokens, places + 1, axis=1))


@functools.partial(jax.jit, static_argnums=0)
def _guesses(
    decoder: Model, params: Params, tokens: Tokens, places: Int[Array, "B Q"]
) -> Int[Array, "B Q"]:
    tokens = constrain(tokens, (axes.BATCH, axes.TIME))
    hidden = decoder.apply({"params": params}, tokens).hidden
    asked = jnp.take_along_axis(hidden, places[:, :, None], axis=1)
    return constrain(top_tokens(decoder, params, asked), (None, None))
