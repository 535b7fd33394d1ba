"""Every loss against a direct computation in float64, and what does not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.losses import (
    Mean,
    distillation,
    distillation_by_row,
    next_token,
    next_token_by_row,
    norm_gap,
    predicting,
    real_tokens,
    relative_gap,
    relative_gap_by_row,
    squared_gap,
)
from hypenet_jax.sharding import MeshConfig, make_mesh, on_mesh

B, T, D, E, V = 2, 5, 8, 6, 11
GAPS = (squared_gap, norm_gap, relative_gap)


@pytest.fixture
def draw():
    rng = np.random.default_rng(0)
    return lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.fixture
def weights():
    """Rows that end in padding, and one token that counts double."""
    return jnp.asarray([[0, 1, 1, 2, 0], [0, 1, 0, 0, 0]], jnp.float32)


def log_softmax(hidden, head, temperature=1.0):
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64).T / temperature
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_next_token_is_the_direct_cross_entropy_of_each_token_given_those_before(draw, weights):
    hidden, head = draw(B, T, D), draw(V, D)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, V, (B, T)), jnp.int32)
    loss = next_token(hidden, head, tokens, weights)
    scores = log_softmax(hidden, head)
    wanted = -sum(
        float(weights[b, t]) * scores[b, t - 1, tokens[b, t]] for b in range(B) for t in range(1, T)
    )
    assert float(loss.total) == pytest.approx(wanted, rel=1e-6)
    assert float(loss.weight) == float(weights.sum())


def test_the_first_token_of_a_row_is_never_predicted(draw, weights):
    hidden, head, tokens = draw(B, T, D), draw(V, D), jnp.zeros((B, T), jnp.int32)
    plain = next_token(hidden, head, tokens, weights)
    heavy = next_token(hidden, head, tokens.at[:, 0].set(3), weights.at[:, 0].set(9.0))
    assert (plain.total, plain.weight) == (heavy.total, heavy.weight)


def test_no_gradient_depends_on_a_token_of_weight_zero_as_a_target(draw, weights):
    hidden, head, tokens = draw(B, T, D), draw(V, D), jnp.arange(B * T).reshape(B, T)
    gradient = jax.jit(jax.grad(lambda h, w, x: next_token(h, w, x, weights).total, (0, 1)))
    plain = gradient(hidden, head, tokens)
    other = gradient(hidden, head, jnp.where(weights == 0, V - 1 - tokens, tokens))
    jax.tree.map(np.testing.assert_array_equal, plain, other)
    predicted = np.asarray(predicting(weights)) > 0
    assert (np.abs(plain[0]).max(-1) > 0).tolist() == predicted.tolist()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_distillation_is_the_direct_divergence_between_models_of_any_widths(
    draw, weights, temperature
):
    student, head, teacher, teacher_head = draw(B, T, D), draw(V, D), draw(B, T, E), draw(V, E)
    loss = distillation(student, head, teacher, teacher_head, weights, temperature=temperature)
    p = log_softmax(teacher, teacher_head, temperature)
    q = log_softmax(student, head, temperature)
    divergence = temperature**2 * np.sum(np.exp(p) * (p - q), axis=-1)
    assert float(loss.total) == pytest.approx(np.sum(divergence * np.asarray(weights)), rel=1e-5)
    assert float(loss.weight) == float(weights.sum())


def test_squared_and_norm_gap_are_the_mean_square_and_its_root_per_token(draw, weights):
    ours, target = draw(B, T, D), draw(B, T, D)
    square = np.mean((np.asarray(ours, np.float64) - np.asarray(target)) ** 2, axis=-1)
    counted = np.asarray(weights)
    assert float(squared_gap(ours, target, weights).total) == pytest.approx(
        np.sum(square * counted), rel=1e-6
    )
    norms = np.sqrt(square)
    assert float(norm_gap(ours, target, weights).total) == pytest.approx(
        np.sum(norms * counted), rel=1e-6
    )


@pytest.mark.parametrize("gap", GAPS)
def test_a_perfect_imitation_has_no_gap_and_a_gradient_of_zero(draw, gap):
    target, ones = draw(B, T, D), jnp.ones((B, T))
    value, gradient = jax.value_and_grad(lambda x: gap(x, target, ones).value())(target)
    assert float(value) == pytest.approx(0.0, abs=1e-18)
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("gap", GAPS)
def test_padding_does_not_count_in_any_gap(draw, weights, gap):
    ours, target = draw(B, T, D), draw(B, T, D)
    real = (weights > 0).astype(jnp.float32)
    spoiled = jnp.where(real[..., None] > 0, target, 100.0)
    plain, other = gap(ours, target, real), gap(ours, spoiled, real)
    assert float(plain.total) == pytest.approx(float(other.total), rel=1e-6)
    assert float(plain.weight) == pytest.approx(float(other.weight), rel=1e-6)


def test_predicting_the_mean_of_the_target_has_relative_gap_one(draw):
    target, ones = 3.0 + draw(B, T, D), jnp.ones((B, T))
    mean = jnp.broadcast_to(target.mean((0, 1), keepdims=True), target.shape)
    assert float(relative_gap(mean, target, ones).value()) == pytest.approx(1.0, rel=1e-5)


def test_the_relative_gap_knows_no_unit(draw, weights):
    ours, target = draw(B, T, D), draw(B, T, D)
    plain = relative_gap(ours, target, weights).value()
    scaled = relative_gap(1e3 * ours, 1e3 * target, weights).value()
    assert float(plain) == pytest.approx(float(scaled), rel=1e-5)


@pytest.mark.extended
def test_gaps_of_bfloat16_are_summed_in_float32(draw, weights):
    ours, target = draw(B, T, D).astype(jnp.bfloat16), draw(B, T, D).astype(jnp.bfloat16)
    for gap in GAPS:
        half = gap(ours, target, weights)
        full = gap(ours.astype(jnp.float32), target.astype(jnp.float32), weights)
        assert half.total.dtype == jnp.float32
        assert (half.total, half.weight) == (full.total, full.weight)


def test_means_add_up_as_trees_before_the_one_division():
    parts = Mean(jnp.float32(6.0), jnp.float32(1.0)), Mean(jnp.float32(2.0), jnp.float32(3.0))
    assert float(jax.tree.map(jnp.add, *parts).value()) == 2.0


def test_a_mean_of_nothing_is_zero():
    assert float(Mean(jnp.float32(0.0), jnp.float32(0.0)).value()) == 0.0


def test_every_token_of_a_document_is_real():
    np.testing.assert_array_equal(real_tokens(jnp.asarray([[0, 1, 1, 7]])), [[0.0, 1.0, 1.0, 1.0]])


@pytest.mark.parametrize("mesh_config", [None, MeshConfig(fsdp=2, sequence=2, tensor=2)])
def test_losses_by_row_are_those_of_each_row_alone_on_any_mesh(draw, mesh_config):
    hidden, head, teacher, teacher_head = draw(2, 6, D), draw(12, D), draw(2, 6, E), draw(12, E)
    tokens = jnp.arange(12).reshape(2, 6)
    weights = jnp.asarray([[0, 1, 1, 2, 0, 0], [0, 1, 0, 0, 0, 1]], jnp.float32)
    mesh = mesh_config and make_mesh(mesh_config)

    def by_row(hidden, teacher):
        read = next_token_by_row(hidden, head, tokens, weights)
        return read, distillation_by_row(hidden, head, teacher, teacher_head, weights)

    with on_mesh(mesh):
        found = jax.jit(by_row)(hidden, teacher)
    for r in range(2):
        row = slice(r, r + 1)
        pair = hidden[row], head, teacher[row], teacher_head
        alone = (
            next_token(hidden[row], head, tokens[row], weights[row]),
            distillation(*pair, weights[row], temperature=1.0),
        )
        for rows, mean in zip(found, alone, strict=True):
            assert float(rows.total[r]) == pytest.approx(float(mean.total), rel=1e-5)
            assert float(rows.weight[r]) == float(mean.weight)


def test_relative_gaps_by_row_are_those_of_each_row_alone(draw, weights):
    imitation, target = draw(B, T, D), draw(B, T, D)
    found = jax.jit(relative_gap_by_row)(imitation, target, weights)
    for r in range(B):
        row = slice(r, r + 1)
        alone = relative_gap(imitation[row], target[row], weights[row])
        np.testing.assert_allclose(found.value()[r], alone.value(), rtol=1e-6)
