import dataclasses
import math
import re

import jax
import numpy as np
import pytest

from hypenet_jax import axes
from hypenet_jax.data.batch import make_row, stack_rows
from hypenet_jax.evals.language import predictions
from hypenet_jax.evals.language.heldout import held_out
from hypenet_jax.evals.language.perplexity import (
    _perplexity,
    perplexity_by_length,
    perplexity_by_position,
    perplexity_of_text,
    window_ends,
)
from hypenet_jax.evals.language.predictions import _losses, final_losses, hidden_parts, token_losses
from hypenet_jax.sharding import MeshConfig, make_mesh, on_mesh, sharding_of

pytestmark = pytest.mark.brief


def _batch(text):
    halves = np.repeat([1, 2, 0], [12, 16, 4]).astype(np.int32)
    rows = [make_row(np.where(halves == 0, 0, text[i : i + 32]), halves) for i in (0, 50, 90)]
    return stack_rows(rows)


@pytest.fixture
def reader(student, text):
    """The student with the text."""
    return dataclasses.replace(student, text=text)


@pytest.mark.parametrize("length", [16, 40])
def test_perplexity_is_that_of_all_logits_at_the_same_final_targets(
    reader, text, log_probs, length
):
    report = perplexity_by_length(reader, [16, 40], num_windows=3, num_targets=8)
    ends = window_ends(len(text), [16, 40], 3, 8)
    windows = np.stack([text[end - length : end] for end in ends])
    expected = log_probs(reader, windows)[:, -9:-1]
    taken = np.take_along_axis(expected, windows[:, -8:, None], axis=2)
    row = report.select(length=length).rows[0]
    assert row.value == pytest.approx(np.exp(-taken.mean()), rel=1e-5)
    assert row.count == 24
    assert row.low < row.value < row.high


def test_the_targets_do_not_depend_on_the_length():
    ends = window_ends(400, [16, 64], 5, 8)
    assert np.array_equal(ends, window_ends(400, [64, 32], 5, 8))
    assert ends[-1] == 400
    assert ends[0] == 64
    assert np.all(np.diff(ends) >= 8)


def test_batching_does_not_change_losses(student, text):
    rows = text[: 7 * 24].reshape(7, 24)
    one = final_losses(student, rows, 6, tokens_per_batch=24)
    three = final_losses(student, rows, 6, tokens_per_batch=3 * 24)
    assert one.shape == three.shape == (7, 6)
    np.testing.assert_allclose(one, three, atol=1e-5)


def test_long_rows_are_read_in_parts_and_lose_nothing(student, text, monkeypatch):
    rows = text[:96].reshape(2, 48)

    def last_hidden() -> np.ndarray:
        return np.concatenate([hidden for _, hidden in hidden_parts(student, rows, 28)], axis=1)

    losses, hidden = token_losses(student, rows), last_hidden()
    assert losses.shape == (2, 47)
    monkeypatch.setattr(predictions, "READ_PART", 16)
    np.testing.assert_allclose(token_losses(student, rows), losses, atol=1e-5)
    np.testing.assert_allclose(token_losses(student, rows, 33), losses[:, 32:], atol=1e-5)
    np.testing.assert_allclose(last_hidden(), hidden, atol=1e-5)


@pytest.mark.parametrize("sizes", [{"tensor": 4}, {"fsdp": 2, "sequence": 2, "tensor": 2}], ids=str)
def test_losses_of_a_vocabulary_cut_over_devices_are_those_of_one(sizes):
    rng, (batch, time, width, vocabulary) = np.random.default_rng(0), (2, 6, 8, 104)
    head, hidden = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((vocabulary, width), (batch, time, width))
    )
    labels = rng.integers(0, vocabulary, (batch, time)).astype(np.int32)
    alone = _losses(head, hidden, labels)
    mesh = make_mesh(MeshConfig(**{"fsdp": 1, **sizes}), jax.devices()[: math.prod(sizes.values())])
    with on_mesh(mesh):
        names = ((axes.VOCAB, axes.EMBED), (axes.BATCH, axes.TIME, axes.HIDDEN))
        cut = [
            jax.device_put(x, sharding_of(name, x.shape, mesh))
            for x, name in zip((head, hidden), names, strict=True)
        ]
        compiled = _losses.lower(*cut, labels).compile()
        np.testing.assert_allclose(compiled(*cut, labels), alone, atol=1e-5)
    # No device holds a number per token and word of the whole vocabulary, nor the whole head.
    assert f"{vocabulary}" not in re.findall(r"\w+\[(?:\d+,)*(\d+)\]", compiled.as_text())
    assert f"f32[{vocabulary}," not in compiled.as_text()


def test_positions_are_counted_in_doubling_buckets_that_hold_every_target_once(reader, text):
    report = perplexity_by_position(reader, 24, num_windows=3)
    assert report.lengths == (2, 4, 8, 16, 24)
    assert [row.count for row in report.rows] == [3, 6, 12, 24, 24]
    ends = window_ends(len(text), [24], 3, 1)
    losses = token_losses(reader, np.stack([text[end - 24 : end] for end in ends]))
    expected = np.exp(losses[:, 3:7].mean())  # positions 4 .. 7
    assert report.value("perplexity_by_position", "student", 8) == pytest.approx(expected)


def test_a_sliding_window_counts_every_token_once_with_its_context(reader, text, log_probs):
    short = dataclasses.replace(reader, text=text[:60])
    row = perplexity_of_text(short, 20, stride=8).rows[0]
    assert row.count == 48
    windows = np.stack([text[start : start + 20] for start in range(0, 48, 8)])
    taken = np.take_along_axis(log_probs(reader, windows)[:, :-1], windows[:, 1:, None], axis=2)
    assert row.value == pytest.approx(np.exp(-taken[:, -8:].mean()), rel=1e-5)
    with pytest.raises(ValueError, match="use 1 to 19"):
        perplexity_of_text(reader, 20, stride=20)


def test_windows_of_nan_stand_in_a_row_of_their_own_and_the_others_count(student):
    losses = np.full((3, 8), 2.0)
    losses[1, 3] = np.nan
    failed, row = _perplexity("perplexity", student, losses, 40)
    assert (failed.metric, failed.task, failed.value, failed.length) == (
        "failed",
        "perplexity",
        1,
        40,
    )
    assert "windows [1] of 3" in failed.label
    assert (row.value, row.count) == (pytest.approx(np.exp(2.0)), 16)


@pytest.mark.parametrize(
    ("lengths", "windows", "message"),
    [([8, 16], 2, "no context before 8 targets"), ([300], 20, "need 452 tokens of text")],
)
def test_windows_that_cannot_be_cut_are_refused(text, lengths, windows, message):
    with pytest.raises(ValueError, match=message):
        window_ends(len(text), lengths, windows, 8)


def test_held_out_numbers_are_those_of_all_logits(student, teacher, text, log_probs):
    batch = _batch(text)
    report = held_out(student, [batch], teacher)
    placed = batch.tokens, batch.positions, batch.segment_ids
    logits = [log_probs(model, *placed) for model in (student, teacher)]
    weights = batch.loss_weight[:, 1:]
    taken = np.take_along_axis(logits[0][:, :-1], batch.tokens[:, 1:, None], axis=2)[:, :, 0]
    entropy = -np.sum(taken * weights) / np.sum(weights)
    hits = (np.argmax(logits[0][:, :-1], axis=-1) == batch.tokens[:, 1:]) * weights
    gap = np.sum(np.exp(logits[1]) * (logits[1] - logits[0]), axis=-1)
    kl = np.mean(gap[batch.segment_ids != 0])
    expected = {"cross_entropy": entropy, "perplexity": np.exp(entropy), "kl": kl}
    expected["top1"] = np.sum(hits) / np.sum(weights)
    assert {row.metric for row in report.rows} == set(expected)
    for name, value in expected.items():
        assert report.value(name, "student", 32) == pytest.approx(value, rel=1e-5)


def test_a_model_has_no_distance_to_itself_and_batches_add_up(teacher, text):
    batch = _batch(text)
    once, twice = held_out(teacher, [batch], teacher), held_out(teacher, [batch, batch], teacher)
    assert once.value("kl", "teacher") == pytest.approx(0.0, abs=1e-6)
    assert twice.value("cross_entropy", "teacher") == pytest.approx(
        once.value("cross_entropy", "teacher"), rel=1e-12
    )
    assert twice.rows[0].count == 2 * once.rows[0].count


def test_intervals_of_held_out_numbers_are_those_of_a_mean_over_batches(student, teacher, text):
    batches = [_batch(np.roll(text, shift)) for shift in (0, 7, 21, 90)]
    report = held_out(student, batches, teacher)
    alone = [held_out(student, [batch], teacher) for batch in batches]
    assert {row.interval for one in alone for row in one.rows} == {None}
    for metric in ("cross_entropy", "kl", "top1"):
        (row,) = report.select(metric).rows
        means = np.asarray([one.value(metric, "student") for one in alone])
        half = 1.959964 * means.std(ddof=1) / 2  # all weigh the same
        assert row.interval == pytest.approx((max(row.value - half, 0), row.value + half))
    (entropy,), (perplexity,) = (report.select(m).rows for m in ("cross_entropy", "perplexity"))
    assert perplexity.interval == pytest.approx(np.exp(entropy.interval))
    (same,) = held_out(student, batches[:1] * 3).select("cross_entropy").rows
    assert same.interval == pytest.approx((same.value, same.value))


def test_no_text_is_refused(teacher):
    with pytest.raises(ValueError, match="no token to predict"):
        held_out(teacher, [])
