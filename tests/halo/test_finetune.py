"""Stage 3: the next token of each document, without a teacher."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.data.batch import stack_rows
from hypenet_jax.data.conversations import CONTEXT, FIRST, PADDING, conversation_row
from hypenet_jax.halo.finetune import finetune_stage
from hypenet_jax.model.config import hypenet

pytestmark = pytest.mark.brief


@pytest.fixture(scope="module")
def student(teacher, model):
    """An untied student: its head is a matrix of its own."""
    config = dataclasses.replace(hypenet(teacher.config, (1,)), tie_embeddings=False)
    return model(config, 5)


@pytest.fixture(scope="module")
def run(student, compiled):
    stage = finetune_stage(student.decoder)
    return lambda batch: compiled(stage)(student.params, None, batch)


def test_the_loss_is_the_mean_surprise_of_each_token_but_the_first_of_a_document(
    student, batch, run
):
    (loss, _), _ = run(batch)
    table = np.asarray(student.params["head"]["kernel"], np.float64)
    logits = student.hidden(batch).astype(np.float64) @ table.T
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    counted = [(b, t) for b, t in np.ndindex(batch.tokens.shape) if batch.positions[b, t] > 0]
    wanted = -np.mean([scores[b, t - 1, batch.tokens[b, t]] for b, t in counted])
    assert float(loss.value()) == pytest.approx(wanted, rel=1e-5)
    assert float(loss.weight) == len(counted) == 4 + 3 + 11


def test_conversations_packed_into_a_row_count_as_if_each_had_its_own_row(run):
    first = np.array([3 | FIRST | CONTEXT, 4 | CONTEXT, 5, 6], np.int32)
    second = np.array([7 | FIRST | CONTEXT, 8 | CONTEXT, 9, 10 | CONTEXT, 11], np.int32)

    def rows(*texts):
        padded = [np.pad(words, (0, 12 - len(words)), constant_values=PADDING) for words in texts]
        made = [conversation_row(words, reset_documents=True) for words in padded]
        return jax.tree.map(jnp.asarray, stack_rows(made))

    (packed, _), (gradient,) = run(rows(np.concatenate([first, second]), first[:0], first[:0]))
    (alone, _), (same,) = run(rows(first, second, first[:0]))
    assert float(packed.total) == pytest.approx(float(alone.total), rel=1e-5)
    assert float(packed.weight) == float(alone.weight) == 2 + 2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradient, same
    )


def test_every_weight_moves(batch, run):
    _, (gradient,) = run(batch)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(np.asarray(leaf)).max() > 0, path


def test_tokens_of_the_padding_change_nothing(batch, spoiled, run):
    (plain, _), _ = run(batch)
    (other, _), _ = run(spoiled(batch))
    assert float(plain.total) == pytest.approx(float(other.total), rel=1e-6)


def test_packed_documents_count_as_if_each_had_its_own_row(batch, unpacked, run):
    (packed, _), _ = run(batch)
    (alone, _), _ = run(unpacked(batch))
    assert float(packed.total) == pytest.approx(float(alone.total), rel=1e-5)
    assert packed.weight == alone.weight
