import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.data.synthetic import Catalogue, NeedleRows
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.retrieval import needle
from hypenet_jax.evals.retrieval.needle import NeedleEvaluator, quiz, retrieval
from hypenet_jax.generation.batching import batches_by_width
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.decoder import Output
from hypenet_jax.model.mixers import SoftmaxSpec

pytestmark = pytest.mark.brief


@dataclasses.dataclass(frozen=True)
class Reader:
    """A stand-in for a decoder that answers with the entry planted in a row, or always with the same entry.

    Where a row starts with `broken` it computes NaN.
    """

    catalogue: Catalogue
    blind: bool = False
    broken: int = -1

    @property
    def config(self):
        size = self.catalogue.first_id + self.catalogue.num_ids
        return ModelConfig(
            vocab_size=size, d_model=8, d_mlp=8, mixers=(SoftmaxSpec(1, 1, 8),), tie_embeddings=True
        )

    @property
    def dtype(self):
        return jnp.dtype(jnp.float32)

    def apply(self, variables, tokens, method=None, **options):
        if method is not None:
            return tokens
        asked = tokens[:, -1:] - self.catalogue.class_id(0)
        lowest = self.catalogue.entry_id(asked, 0)
        is_choice = (tokens >= lowest) & (tokens < lowest + self.catalogue.entries)
        first = jnp.argmax(is_choice, axis=1)[:, None]
        planted = jnp.take_along_axis(tokens, first, axis=1)
        entry = jnp.broadcast_to(lowest + 5 if self.blind else planted, tokens.shape)
        hidden = jax.nn.one_hot(entry, self.config.vocab_size)
        return Output(jnp.where((tokens[:, 0] == self.broken)[:, None, None], jnp.nan, hidden))


def reader(catalogue, text, **options) -> EvalModel:
    return EvalModel("reader", Reader(catalogue, **options), {}, text=text)


def needles(catalogue, count, **options) -> NeedleEvaluator:
    return NeedleEvaluator(catalogue=catalogue, lengths=(40,), sequences=count, **options)


def test_a_reader_of_the_whole_text_is_always_right_and_a_blind_one_by_chance(catalogue, text):
    asked = needles(catalogue, 320, needles=3)
    report = asked.measure(reader(catalogue, text), 40, 0)
    assert {row.value for row in report.rows} == {1.0}
    blind = asked.measure(reader(catalogue, text, blind=True), 40, 0).value("needle", "reader")
    assert blind == pytest.approx(1 / 16, abs=0.04)


def test_the_last_needle_asked_for_may_lie_anywhere(catalogue, text):
    rows = needles(catalogue, 16, needles=1).questions(text, 40, 0)
    places = [int(np.argmax(row == catalogue.marker)) for row in rows]
    assert places == sorted(places)
    assert places[0] <= 2
    assert places[-1] >= 34


def test_every_model_is_asked_the_same(catalogue, text):
    first, second = (needles(catalogue, 6, needles=2).questions(text, 40, 3) for _ in range(2))
    assert np.array_equal(first, second)


def test_an_answer_counts_where_it_is_the_likeliest_of_all_tokens(
    student, catalogue, text, log_probs
):
    asked = needles(catalogue, 9, needles=2)
    rows = asked.questions(text, 40, 0)
    best = np.argmax(log_probs(student, rows[:, :-1])[:, -1], axis=-1)
    # Rows whose answer is what the model says, and others.
    rows[::2, -1] = best[::2]
    found = needle.final_hits(student, rows, [1] * 9)
    assert found.tolist() == (rows[:, -1] == best).tolist()
    apart = needle.final_hits(student, rows, [1] * 9, tokens_per_batch=40)
    assert apart.tolist() == found.tolist()


def test_a_random_model_finds_nothing_and_the_report_says_how_sure_that_is(
    student, catalogue, text
):
    student = dataclasses.replace(student, text=text)
    asked = needles(catalogue, 16, needles=2, long_sequences=8, long_length=64)
    report = asked.measure(student, 40, 0) + asked.measure(student, 64, 0)
    assert report.lengths == (40, 64)
    assert [row.count for row in report.select("needle").rows] == [16, 8]
    assert all(row.value < 0.3 and row.high > row.value for row in report.rows)


def test_a_quiz_asks_only_for_what_came_before(catalogue, text):
    asked = quiz(NeedleRows(catalogue, 0.5, 1, 4, queries=5), text, 64, num_rows=12, seed=0)
    assert asked.places.shape == (12, 5)
    for row, places, answers in zip(*asked, strict=True):
        for place, answer in zip(places, answers, strict=True):
            assert row[place + 1] == answer
            assert answer in row[:place]


def test_retrieval_scores_the_argmax_at_every_query(
    student, catalogue, text, log_probs, monkeypatch
):
    planted = NeedleRows(catalogue, 1.0, 4, 4, queries=5)
    asked = quiz(planted, text, 64, num_rows=7, seed=0)
    best = np.argmax(log_probs(student, asked.tokens), axis=-1)
    expected = np.mean(np.take_along_axis(best, asked.places, axis=1) == asked.answers)
    few = functools.partial(batches_by_width, tokens_per_batch=3 * 64)
    monkeypatch.setattr(needle, "batches_by_width", few)
    model = dataclasses.replace(student, text=text)
    row = retrieval(model, planted, length=64, num_rows=7, seed=0).rows[0]
    assert row.value == pytest.approx(expected)
    assert row.count == 35


def test_a_question_at_which_the_model_computes_nan_fails_alone(catalogue, text):
    asked = needles(catalogue, 8, needles=3)
    rows = asked.questions(text, 40, 0)
    rows[:, 0], rows[2, 0] = 0, 31
    model = reader(catalogue, text, broken=31)
    found = needle.final_hits(model, rows, [1] * 8, tokens_per_batch=3 * 40)
    assert np.isnan(found).tolist() == [i == 2 for i in range(8)]
    assert np.nansum(found) == 7
    (failed,) = needle.answered("needle", model, rows, [1] * 8, 40).select("failed").rows
    assert (failed.task, failed.value, failed.length) == ("needle", 1, 40)
    assert failed.label == "the model computes NaN at questions [2]"
