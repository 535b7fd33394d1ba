import jax
import numpy as np
import pytest

from hypenet_jax.evals.retrieval.needle import (
    last_logits,
    needle_accuracy,
    questions,
    quiz,
    retrieval,
    scores,
)
from hypenet_jax.generation.batching import batches_of

pytestmark = pytest.mark.brief


def _reader(catalogue, entry_of_class):
    """A stand-in for a model: logits that name one entry of the class asked for."""

    def ask(tokens):
        logits = np.zeros((len(tokens), 32 + catalogue.num_ids), np.float32)
        for i, row in enumerate(tokens):
            wanted = row[-1] - catalogue.class_id(0)
            logits[i, entry_of_class(row, catalogue.entry_id(wanted, np.arange(16)))] = 1.0
        return logits

    return ask


def _planted(row, choices):
    return int(next(token for token in row if token in choices))


def test_a_reader_of_the_whole_text_is_always_right_and_a_blind_one_by_chance(catalogue, text):
    asked = questions(catalogue, text, 40, num_needles=3, count=320, seed=0)
    assert scores(_reader(catalogue, _planted), asked).tolist() == [1.0] * 320
    blind = scores(_reader(catalogue, lambda row, choices: int(choices[5])), asked).mean()
    assert blind == pytest.approx(1 / 16, abs=0.04)


def test_the_last_needle_asked_for_may_lie_anywhere(catalogue, text):
    asked = questions(catalogue, text, 40, num_needles=1, count=16, seed=0)
    places = [int(np.argmax(row == catalogue.marker)) for row in asked.tokens]
    assert places == sorted(places)
    assert places[0] <= 2
    assert places[-1] >= 34


def test_every_model_is_asked_the_same(catalogue, text):
    first, second = (
        questions(catalogue, text, 40, num_needles=2, count=n, seed=3).tokens for n in (6, 6)
    )
    assert np.array_equal(first, second)


def test_batching_does_not_change_answers(student, catalogue, text):
    asked = questions(catalogue, text, 40, num_needles=2, count=9, seed=0)
    ask = last_logits(student)
    one, eight = (
        np.concatenate([np.asarray(ask(b))[:real] for b, real in batches_of(asked.tokens, n * 40)])
        for n in (1, 8)
    )
    np.testing.assert_allclose(one, eight, atol=1e-4)
    assert np.array_equal(np.argmax(one, axis=-1), np.argmax(eight, axis=-1))


def test_last_logits_are_the_last_of_all_logits(student, catalogue, text, log_probs):
    asked = questions(catalogue, text, 40, num_needles=2, count=2, seed=0)
    last = jax.nn.log_softmax(last_logits(student)(asked.tokens), axis=-1)
    np.testing.assert_allclose(last, log_probs(student, asked.tokens)[:, -1], atol=1e-5)


def test_a_random_model_finds_nothing_and_the_report_says_how_sure_that_is(
    student, catalogue, text
):
    report = needle_accuracy(student, catalogue, text, [40, 64], num_needles=2, count=16, seed=0)
    assert report.lengths == (40, 64)
    assert all(row.value < 0.3 and row.high > row.value for row in report.rows)


def test_a_quiz_asks_only_for_what_came_before(catalogue, text):
    asked = quiz(catalogue, text, 64, num_rows=12, num_needles=4, queries=5, seed=0)
    assert asked.places.shape == (12, 5)
    for row, places, answers in zip(*asked, strict=True):
        for place, answer in zip(places, answers, strict=True):
            assert row[place + 1] == answer
            assert answer in row[:place]


def test_retrieval_scores_the_argmax_at_every_query(student, catalogue, text, log_probs):
    sizes = {"length": 64, "num_rows": 7, "num_needles": 4, "queries": 5, "seed": 0}
    asked = quiz(catalogue, text, **sizes)
    best = np.argmax(log_probs(student, asked.tokens), axis=-1)
    expected = np.mean(np.take_along_axis(best, asked.places, axis=1) == asked.answers)
    row = retrieval(student, catalogue, text, **sizes, tokens_per_batch=3 * 64).rows[0]
    assert row.value == pytest.approx(expected)
    assert row.count == 35


def test_a_question_at_which_the_model_computes_nan_fails_alone(catalogue, text):
    asked = questions(catalogue, text, 40, num_needles=3, count=8, seed=0)
    reader = _reader(catalogue, _planted)

    def ask(tokens):
        logits = reader(tokens)
        logits[(tokens == asked.tokens[2]).all(axis=1)] = np.nan
        return logits

    found = scores(ask, asked, tokens_per_batch=3 * 40)
    assert np.isnan(found).tolist() == [i == 2 for i in range(8)]
    assert np.nansum(found) == 7
