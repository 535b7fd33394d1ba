"""What the harness asks, without the harness: likelihoods, continuations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax import runtime
from hypenet_jax.data.tokenizer import TrainedTokenizer, train_tokenizer
from hypenet_jax.evals.harness.requests import GenerationRequest
from hypenet_jax.evals.language import predictions
from hypenet_jax.evals.language.predictions import likelihoods
from hypenet_jax.generation import GenerationConfig, Sampling
from hypenet_jax.generation.decode import stream_span
from hypenet_jax.sharding import MeshConfig, make_mesh, on_mesh

pytestmark = pytest.mark.brief

LENGTHS = (5, 12, 20, 33)
NEW = 40


@pytest.fixture
def rows() -> tuple[np.ndarray, ...]:
    draws = np.random.default_rng(1)
    return tuple(draws.integers(0, 90, length).astype(np.int32) for length in LENGTHS)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["no merges"], TrainedTokenizer(257))


@pytest.fixture(scope="module")
def single(student, tokenizer):
    return dataclasses.replace(student.with_single_layers(), tokenizer=tokenizer)


def scores(model, rows, counted, **options) -> np.ndarray:
    found = dict(likelihoods(model, rows, counted, **options))
    return np.asarray([found[i] for i in range(len(rows))])


def test_a_likelihood_is_the_sum_of_the_log_probabilities_of_the_counted_tokens(
    student, rows, log_probs
):
    counted = (4, 3, 0, 10)
    found = scores(student, rows, counted)
    for row, count, (log_p, greedy) in zip(rows, counted, found, strict=True):
        every = log_probs(student, row[None, :-1])[0]
        here = np.arange(len(row) - 1 - count, len(row) - 1)
        np.testing.assert_allclose(log_p, every[here, row[here + 1]].sum(), atol=1e-4)
        assert greedy == (every[here].argmax(axis=-1) == row[here + 1]).all()
    assert found[2].tolist() == [0.0, 1.0]


def test_neither_batch_nor_order_nor_padding_changes_a_likelihood(student, rows):
    counted = [len(row) - 1 for row in rows]
    together = scores(student, rows, counted)
    np.testing.assert_allclose(scores(student, rows[::-1], counted[::-1])[::-1], together, 1e-5)
    apart = scores(student, rows, counted, tokens_per_batch=32)
    np.testing.assert_allclose(apart, together, 1e-5)


def test_rows_read_in_parts_have_the_likelihoods_of_one_pass(single, monkeypatch):
    draws = np.random.default_rng(2)
    rows = [draws.integers(0, 90, length).astype(np.int32) for length in (71, 96)]
    whole = scores(single, rows, (70, 40))
    # 96 tokens stand in a width of 128: the first part is padding alone.
    monkeypatch.setattr(predictions, "READ_PART", 32)
    np.testing.assert_allclose(scores(single, rows, (70, 40)), whole, 1e-5)


def test_eight_devices_find_the_likelihoods_of_one(student, rows):
    counted = [len(row) - 1 for row in rows]
    with on_mesh(make_mesh(MeshConfig(data=4, fsdp=2))):
        many = scores(student, rows, counted)
    np.testing.assert_allclose(many, scores(student, rows, counted), 1e-5)


def request(rows, *, until=(), indices=None, **settings) -> GenerationRequest:
    config = GenerationConfig(max_new_tokens=NEW, **settings)
    return GenerationRequest(tuple(rows), indices or tuple(range(len(rows))), config, until)


@pytest.fixture
def greedy(student, log_probs):
    """Greedy continuations of every prompt by itself: the likeliest token after a full pass, again and again."""

    def write(rows) -> list[list[int]]:
        written = []
        for row in rows:
            tokens = row.tolist()
            for _ in range(NEW):
                tokens.append(int(log_probs(student, np.asarray([tokens]))[0, -1].argmax()))
            written.append(tokens[row.size :])
        return written

    return write


def test_continuations_are_those_of_each_prompt_alone_and_likelihoods_call_them_greedy(
    single, rows, greedy
):
    rows = rows[1:3]
    found = dict(request(rows).responses(single))
    assert [found[i] for i in range(2)] == greedy(rows)
    whole = [np.asarray([*row, *found[i]], np.int32) for i, row in enumerate(rows)]
    whole[1][-1] = (whole[1][-1] + 1) % 90
    assert scores(single, whole, [NEW] * 2)[:, 1].tolist() == [1, 0]


def test_a_text_or_an_end_token_ends_its_row_alone(single, tokenizer, rows, greedy):
    rows = rows[1:3]
    whole = greedy(rows)
    stop = tokenizer.decode(whole[0][2:3])
    found = dict(request(rows, until=(stop,)).responses(single))
    assert stop in tokenizer.decode(found[0])
    assert len(found[0]) <= 2 + stream_span()
    end = whole[1][5]
    found = dict(request(rows, stop_tokens=(end,)).responses(single))
    assert found[1] == whole[1][: whole[1].index(end) + 1]


def test_a_draw_depends_on_its_index_and_the_seed_alone(single, rows):
    drawn = {"sampling": Sampling(1.0), "indices": (3, 4)}
    together = dict(request(rows[1:3], **drawn).responses(single))
    moved = request((rows[2], rows[0]), sampling=Sampling(1.0), indices=(4, 7))
    assert dict(moved.responses(single))[0] == together[1]
    other = dict(request(rows[1:3], seed=1, **drawn).responses(single))
    assert other != together


def test_what_one_process_sends_is_what_it_holds():
    assert runtime.broadcast({"a": jnp.arange(2).tolist()}) == {"a": [0, 1]}
    assert jax.process_count() == 1
