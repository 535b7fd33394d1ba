"""What the harness asks, without the harness: shapes of batches, likelihoods, continuations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax import runtime
from hypenet_jax.data.tokenizer import TrainedTokenizer, train_tokenizer
from hypenet_jax.evals.harness.continuation import SPAN, Continuations, continuations
from hypenet_jax.evals.harness.likelihood import Likelihoods, likelihoods
from hypenet_jax.generation.batching import batches_by_width
from hypenet_jax.generation.decode import generate
from hypenet_jax.generation.sampling import Sampling
from hypenet_jax.sharding import MeshConfig, make_mesh, on_mesh

LENGTHS = (5, 12, 20, 33)


@pytest.fixture
def rows() -> tuple[np.ndarray, ...]:
    draws = np.random.default_rng(1)
    return tuple(draws.integers(0, 90, length).astype(np.int32) for length in LENGTHS)


@pytest.fixture(scope="module")
def single(student):
    return student.with_single_layers()


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["no merges"], TrainedTokenizer(257))


def scores(subject, rows, counted, **options) -> np.ndarray:
    found = dict(likelihoods(subject, Likelihoods(tuple(rows), tuple(counted)), **options))
    return np.asarray([found[i] for i in range(len(rows))])


@pytest.mark.parametrize("tokens_per_batch", [64, 8192])
def test_every_row_is_in_one_batch_and_each_width_has_one_shape(tokens_per_batch):
    lengths = np.random.default_rng(0).integers(1, 500, 1000).tolist()
    batches = list(batches_by_width(lengths, tokens_per_batch))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(1000))
    assert all(lengths[row] <= batch.width for batch in batches for row in batch.rows)
    assert {batch.width for batch in batches} == {32, 64, 128, 256, 512}
    assert len({(batch.width, batch.size) for batch in batches}) == 5
    assert all(len(batch.rows) <= batch.size for batch in batches)
    assert all(batch.width * batch.size <= max(tokens_per_batch, batch.width) for batch in batches)
    longest = [max(lengths[row] for row in batch.rows) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_on_a_mesh_a_batch_divides_over_its_parts():
    with on_mesh(make_mesh(MeshConfig(data=4, fsdp=2))):
        sizes = {batch.size for batch in batches_by_width([3, 40, 40, 700, 9000] * 3)}
    assert all(size % 8 == 0 for size in sizes)


def test_rows_are_padded_on_the_left_and_fillers_repeat_the_last():
    (batch,) = batches_by_width([2, 3, 1])
    tokens, real = batch.stack([np.asarray(row, np.int32) for row in ([7, 8], [4, 5, 6], [9])])
    assert (batch.size, batch.rows) == (4, (1, 0, 2))
    assert tokens[:, -3:].tolist() == [[4, 5, 6], [0, 7, 8], [0, 0, 9], [0, 0, 9]]
    assert real.sum(axis=1).tolist() == [3, 2, 1, 1]


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


def test_rows_read_in_parts_have_the_likelihoods_of_one_pass(single):
    draws = np.random.default_rng(2)
    rows = [draws.integers(0, 90, length).astype(np.int32) for length in (71, 96)]
    whole = scores(single, rows, (70, 40))
    # 96 tokens stand in a width of 128: the first part is padding alone.
    np.testing.assert_allclose(scores(single, rows, (70, 40), part=32), whole, 1e-5)


def test_eight_devices_find_the_likelihoods_of_one(student, rows):
    counted = [len(row) - 1 for row in rows]
    with on_mesh(make_mesh(MeshConfig(data=4, fsdp=2))):
        many = scores(student, rows, counted)
    np.testing.assert_allclose(many, scores(student, rows, counted), 1e-5)


def asked(rows, **changes) -> Continuations:
    plain = Continuations(
        tuple(rows), tuple(range(len(rows))), SPAN + 8, Sampling(), (), end_ids=(), seed=0
    )
    return dataclasses.replace(plain, **changes)


@pytest.fixture(scope="module")
def greedy(single):
    """Greedy continuations of every prompt by itself."""

    def write(rows) -> list[list[int]]:
        padded = [np.pad(row, (0, 20 - len(row)))[None] for row in rows]
        real = [(np.arange(20) < len(row)).astype(np.int32)[None] for row in rows]
        return [
            generate(
                *(single.decoder, single.params, tokens),
                max_new_tokens=SPAN + 8,
                segment_ids=here,
            )[0].tolist()
            for tokens, here in zip(padded, real, strict=True)
        ]

    return write


def test_continuations_are_those_of_each_prompt_alone_and_likelihoods_call_them_greedy(
    single, tokenizer, rows, greedy
):
    rows = rows[1:3]
    found = dict(continuations(single, tokenizer, asked(rows)))
    assert [found[i] for i in range(2)] == greedy(rows)
    whole = [np.asarray([*row, *found[i]], np.int32) for i, row in enumerate(rows)]
    whole[1][-1] = (whole[1][-1] + 1) % 90
    assert scores(single, whole, [SPAN + 8] * 2)[:, 1].tolist() == [1, 0]


def test_a_text_or_an_end_token_ends_its_row_alone(single, tokenizer, rows, greedy):
    rows = rows[1:3]
    whole = greedy(rows)
    stop = tokenizer.decode(whole[0][2:3])
    found = dict(continuations(single, tokenizer, asked(rows, until=(stop,))))
    assert stop in tokenizer.decode(found[0])
    assert len(found[0]) <= SPAN
    end = whole[1][5]
    found = dict(continuations(single, tokenizer, asked(rows, end_ids=(end,))))
    assert found[1] == whole[1][: whole[1].index(end) + 1]


def test_a_draw_depends_on_its_index_and_the_seed_alone(single, tokenizer, rows):
    drawn = asked(rows[1:3], sampling=Sampling(1.0), indices=(3, 4))
    together = dict(continuations(single, tokenizer, drawn))
    moved = dataclasses.replace(drawn, prompts=(rows[2], rows[0]), indices=(4, 7))
    assert dict(continuations(single, tokenizer, moved))[0] == together[1]
    other = dict(continuations(single, tokenizer, dataclasses.replace(drawn, seed=1)))
    assert other != together


def test_what_one_process_sends_is_what_it_holds():
    assert runtime.broadcast({"a": jnp.arange(2).tolist()}) == {"a": [0, 1]}
    assert jax.process_count() == 1
