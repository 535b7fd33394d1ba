"""Completions are scored; a question that cannot be answered is a row and the others are as without it."""

import dataclasses

import numpy as np
import pytest

from hypenet_jax.data.tokenizer import TrainedTokenizer, train_tokenizer
from hypenet_jax.evals.ruler import evaluator
from hypenet_jax.evals.ruler.evaluator import task_scores
from hypenet_jax.evals.ruler.text import Question
from hypenet_jax.generation import Continuation


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat. " * 9], TrainedTokenizer(262))


@pytest.fixture
def writer(student, tokenizer):
    return dataclasses.replace(student, tokenizer=tokenizer)


def test_scores_count_what_was_answered_and_failures_stand_apart(writer, tokenizer, monkeypatch):
    asked = [
        Question(np.zeros(5, np.int32), (text,), (i + 0.5) / 4) for i, text in enumerate("abca")
    ]
    nothing = tokenizer.encode("")
    outcomes = [Continuation(tokenizer.encode(text)) for text in ("A b", "b", "a", "x")]
    outcomes[2] = Continuation(nothing, ValueError("bad"))
    monkeypatch.setattr(evaluator, "generate_batches", lambda *_, **__: [dict(enumerate(outcomes))])
    report = task_scores(writer, "niah_single_1", asked, 256)
    row = report.select("ruler").rows[0]
    assert (row.value, row.count, row.task, row.length) == (
        pytest.approx(2 / 3),
        3,
        "niah_single_1",
        256,
    )
    (failed,) = report.select("failed").rows
    assert failed.label == "question 2: bad"
    depths = [(r.depth, r.value) for r in report.select("ruler_by_depth").rows]
    assert depths == [(0.125, 1.0), (0.375, 1.0), (0.875, 0.0)]


def test_parts_of_several_answers_count_in_part(writer, tokenizer, monkeypatch):
    asked = [Question(np.zeros(5, np.int32), ("cat", "dog", "mat", "cow"))]
    written = Continuation(tokenizer.encode("Cat and mat, cow"))
    monkeypatch.setattr(evaluator, "generate_batches", lambda *_, **__: [{0: written}])
    report = task_scores(writer, "niah_multivalue", asked, 256)
    assert report.value("ruler", "student", 256) == 0.75
    assert not report.select("ruler_by_depth").rows


def test_a_device_that_is_too_small_fails_the_whole_task(writer, tokenizer, monkeypatch):
    asked = [Question(np.zeros(5, np.int32), ("cat",), 0.5)]
    failed = Continuation(tokenizer.encode(""), MemoryError("too small"))
    monkeypatch.setattr(evaluator, "generate_batches", lambda *_, **__: [{0: failed}])
    with pytest.raises(MemoryError, match="too small"):
        task_scores(writer, "niah_single_1", asked, 256)
