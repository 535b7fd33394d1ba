"""Answers are written and scored; a question that cannot be answered is a row and the others are as without it."""

import dataclasses

import numpy as np
import pytest

from hypenet_jax.data.tokenizer import TrainedTokenizer, train_tokenizer
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.ruler import scoring as answering
from hypenet_jax.evals.ruler.scoring import task_scores, write
from hypenet_jax.evals.ruler.text import Question
from hypenet_jax.generation.decode import generate

LENGTH, BUDGET = 32, 6


@pytest.fixture(scope="module")
def prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 32, size).astype(np.int32) for size in (26, 9, 20, 14, 26)]


def test_prompts_of_any_length_write_what_they_write_alone(student, prompts):
    together = write(student, prompts, LENGTH, BUDGET, stop=(0,), tokens_per_batch=3 * 26)
    for row, tokens in zip(prompts[1:3], together[1:3], strict=True):
        alone = generate(
            student.decoder, student.params, row[None], max_new_tokens=BUDGET, stop_token=(0,)
        )
        assert np.array_equal(tokens, alone[0])


def test_a_bad_prompt_fails_alone_and_says_why(student, prompts):
    good = write(student, prompts, LENGTH, BUDGET, stop=(0,), tokens_per_batch=3 * 26)
    spoiled = [*prompts[:2], np.full(12, 10_000, np.int32), *prompts[2:], np.zeros(27, np.int32)]
    spoiled.append(np.zeros(0, np.int32))
    found = write(student, spoiled, LENGTH, BUDGET, stop=(0,), tokens_per_batch=3 * 26)
    unknown, long, empty = found.pop(2), found.pop(5), found.pop(5)
    assert "not all in the vocabulary" in str(unknown)
    assert "27 tokens of prompt and 6 new ones exceed the maximum length 32" in str(long)
    assert "empty" in str(empty)
    assert all(map(np.array_equal, found, good))


def test_nan_of_one_row_is_its_own(student, prompts):
    """A model that computes NaN wherever it reads token 7; its head is a matrix of its own, without NaN."""
    config = dataclasses.replace(student.decoder.config, tie_embeddings=False)
    embedding = student.params["embed"]["embedding"]
    params = {
        **student.params,
        "embed": {"embedding": embedding.at[7].set(np.nan)},
        "head": {"kernel": embedding},
    }
    spoiled = EvalModel("spoiled", student.decoder.clone(config=config), params)
    rows = [np.where(row == 7, 8, row) for row in prompts]
    rows[3][5] = 7
    good = write(student, rows, LENGTH, BUDGET, stop=(0,), tokens_per_batch=5 * 26)
    found = write(spoiled, rows, LENGTH, BUDGET, stop=(0,), tokens_per_batch=5 * 26)
    assert [isinstance(one, FloatingPointError) for one in found] == [i == 3 for i in range(5)]
    assert not any(7 in good[i] for i in (0, 1, 2, 4))
    assert all(np.array_equal(found[i], good[i]) for i in (0, 1, 2, 4))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat. " * 9], TrainedTokenizer(262))


def test_scores_count_what_was_answered_and_failures_stand_apart(student, tokenizer, monkeypatch):
    asked = [
        Question(np.zeros(5, np.int32), (text,), (i + 0.5) / 4) for i, text in enumerate("abca")
    ]
    outcomes = [
        tokenizer.encode("A b"),
        tokenizer.encode("b"),
        ValueError("bad"),
        tokenizer.encode("x"),
    ]
    monkeypatch.setattr(answering, "write", lambda *args, **options: outcomes)
    report = task_scores(student, tokenizer, "niah_single_1", asked, 64, stop=(0,))
    row = report.select("ruler").rows[0]
    assert (row.value, row.count, row.task, row.length) == (
        pytest.approx(2 / 3),
        3,
        "niah_single_1",
        64,
    )
    (failed,) = report.select("failed").rows
    assert failed.label == "question 2: bad"
    depths = [(r.depth, r.value) for r in report.select("ruler_by_depth").rows]
    assert depths == [(0.125, 1.0), (0.375, 1.0), (0.875, 0.0)]


def test_parts_of_several_answers_count_in_part(student, tokenizer, monkeypatch):
    asked = [Question(np.zeros(5, np.int32), ("cat", "dog", "mat", "cow"))]
    monkeypatch.setattr(answering, "write", lambda *a, **o: [tokenizer.encode("Cat and mat, cow")])
    report = task_scores(student, tokenizer, "niah_multivalue", asked, 64, stop=(0,))
    assert report.value("ruler", "student", 64) == 0.75
    assert not report.select("ruler_by_depth").rows
