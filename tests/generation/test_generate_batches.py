"""Prompts of any lengths in batches: each is continued as if alone, and what cannot be continued fails alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.generation import Continuation, GenerationConfig, generate_batches
from hypenet_jax.generation.batching import batches_by_width
from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.decoder import Decoder, init_params
from hypenet_jax.model.layers import Initialization
from hypenet_jax.model.mixers import SoftmaxSpec
from hypenet_jax.sharding import MeshConfig, make_mesh, on_mesh

pytestmark = pytest.mark.brief

LENGTH, NEW = 32, 6
TEACHER = ModelConfig(
    vocab_size=96,
    d_model=32,
    d_mlp=64,
    mixers=(SoftmaxSpec(2, 1, 16, 1e4),) * 2,
    tie_embeddings=True,
)
CONFIG = GenerationConfig(
    max_new_tokens=NEW, max_length=LENGTH, stop_tokens=(0,), tokens_per_batch=3 * 26
)


@pytest.fixture(scope="module")
def student():
    start = Initialization(std=0.2, embedding_std=0.5)
    decoder = Decoder(hypenet(TEACHER, (1,)), jnp.float32, start=start)
    return decoder, jax.jit(init_params, static_argnums=0)(decoder, jax.random.key(1))


@pytest.fixture(scope="module")
def prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 32, size).astype(np.int32) for size in (26, 9, 20, 14, 26)]


def continued(model, prompts, config=CONFIG) -> list[Continuation]:
    batches = generate_batches(*model, prompts, config, width=LENGTH - NEW)
    results = {row: result for batch in batches for row, result in batch.items()}
    return [results[i] for i in range(len(prompts))]


def tokens_of(results) -> list[list[int]]:
    return [result.tokens.tolist() for result in results]


def test_prompts_of_any_length_write_what_they_write_alone(student, prompts):
    """Alone: the likeliest token after a full pass over the row, which reads nothing behind its last token."""
    decoder, params = student

    @jax.jit
    def likeliest(row):
        hidden = decoder.apply({"params": params}, row[None]).hidden
        return jnp.argmax(decoder.apply({"params": params}, hidden, method="logits")[0], -1)

    for prompt, tokens in zip(prompts, tokens_of(continued(student, prompts)), strict=True):
        row, read = np.resize(prompt, LENGTH), prompt.size
        for place, token in enumerate(tokens, read):
            assert token == likeliest(row)[place - 1]
            row[place] = token
        assert len(tokens) == NEW or tokens[-1] == 0


def test_a_bad_prompt_fails_alone_and_says_why(student, prompts):
    good = tokens_of(continued(student, prompts))
    spoiled = [*prompts[:2], np.full(12, 10_000, np.int32), *prompts[2:], np.zeros(27, np.int32)]
    results = continued(student, [*spoiled, np.zeros(0, np.int32)])
    unknown, long, empty = (results.pop(i).error for i in (2, 5, 5))
    assert "not all in the vocabulary" in str(unknown)
    assert "27 tokens of prompt and 6 new ones exceed the maximum length 32" in str(long)
    assert "empty" in str(empty)
    assert tokens_of(results) == good


def test_nan_of_one_row_is_its_own(student, prompts):
    """A model that computes NaN wherever it reads token 7; its head is a matrix of its own, without NaN."""
    decoder, params = student
    config = dataclasses.replace(decoder.config, tie_embeddings=False)
    embedding = params["embed"]["embedding"]
    broken = {
        **params,
        "embed": {"embedding": embedding.at[7].set(np.nan)},
        "head": {"kernel": embedding},
    }
    rows = [np.where(row == 7, 8, row) for row in prompts]
    rows[3][5] = 7
    together = dataclasses.replace(CONFIG, tokens_per_batch=5 * 26)
    good = tokens_of(continued(student, rows, together))
    results = continued((decoder.clone(config=config), broken), rows, together)
    errors = [isinstance(result.error, FloatingPointError) for result in results]
    assert errors == [i == 3 for i in range(5)]
    others = (0, 1, 2, 4)
    assert not any(7 in good[i] for i in others)
    assert all(results[i].tokens.tolist() == good[i] for i in others)


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
