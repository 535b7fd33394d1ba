"""Stage 2: the student follows the teacher's distributions, and the teacher stands still."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypenet_jax import runtime
from hypenet_jax.halo.distill import DistillConfig, distill_stage
from hypenet_jax.halo.method import Models, Weights
from hypenet_jax.model.config import MixerOptions, hypenet
from hypenet_jax.sharding import MeshConfig, make_mesh

pytestmark = pytest.mark.brief

PLAIN, WARM = (
    DistillConfig(start_from="align"),
    DistillConfig(start_from="align", temperature=2.0, hidden_weight=0.5),
)


@pytest.fixture(scope="module")
def run(teacher, student, compiled):
    """(config, batch) -> ((loss, metrics), (gradients of the student, of the teacher))."""
    stages = {
        config: distill_stage(config, student.decoder, teacher.decoder) for config in (PLAIN, WARM)
    }
    return lambda config, batch: compiled(stages[config])(student.params, teacher.params, batch)


def divergences(student, teacher, batch, temperature=1.0):
    """KL(teacher || student) at every token, "B T"."""
    p, q = teacher.log_probs(batch, temperature), student.log_probs(batch, temperature)
    return temperature**2 * np.sum(np.exp(p) * (p - q), axis=-1)


def test_the_loss_is_the_mean_divergence_over_all_real_tokens(teacher, student, batch, run):
    (loss, metrics), _ = run(PLAIN, batch)
    real = np.asarray(batch.segment_ids) > 0
    wanted = divergences(student, teacher, batch)[real].mean()
    assert float(loss.value()) == pytest.approx(wanted, rel=1e-4)
    assert float(loss.weight) == real.sum()
    assert metrics["kl"].total == loss.total


@pytest.mark.extended
def test_temperature_softens_both_sides_and_its_square_multiplies(teacher, student, batch, run):
    (_, metrics), _ = run(WARM, batch)
    real = np.asarray(batch.segment_ids) > 0
    wanted = divergences(student, teacher, batch, temperature=2.0)[real].mean()
    assert float(metrics["kl"].value()) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.extended
def test_hidden_weight_adds_the_mean_gap_of_the_streams_per_token(teacher, student, batch, run):
    (loss, metrics), _ = run(WARM, batch)
    expected, actual = (
        np.asarray(model.taps(batch).inputs[1:], np.float64) for model in (teacher, student)
    )
    real = np.asarray(batch.segment_ids) > 0
    ratios = [
        np.mean((h[real] - w[real]) ** 2, axis=-1) / np.mean(w[real] ** 2, axis=-1)
        for h, w in zip(actual, expected, strict=True)
    ]
    assert float(metrics["hidden_gap"].value()) == pytest.approx(np.mean(ratios), rel=1e-4)
    wanted = metrics["kl"].value() + 0.5 * metrics["hidden_gap"].value()
    assert float(loss.value()) == pytest.approx(float(wanted), rel=1e-6)


def test_of_conversations_what_predicts_the_assistants_tokens_counts_alone(teacher, student, batch):
    stage = distill_stage(WARM, student.decoder, teacher.decoder, answers_only=True)
    answers = batch.loss_weight.at[:, ::3].set(0)
    given = batch.replace(loss_weight=answers)
    loss, metrics = jax.jit(stage.loss)(student.params, teacher.params, given)
    counted = np.asarray(answers)[:, 1:] > 0
    wanted = divergences(student, teacher, batch, temperature=2.0)[:, :-1][counted].mean()
    assert float(metrics["kl"].value()) == pytest.approx(wanted, rel=1e-4)
    assert loss.weight == metrics["hidden_gap"].weight == counted.sum()


def test_held_out_text_also_tells_the_cross_entropies_of_both(teacher, student, batch):
    stage = distill_stage(PLAIN, student.decoder, teacher.decoder)
    assert stage.heldout is not None
    loss, means = jax.jit(stage.heldout)(student.params, teacher.params, batch)
    assert loss.value() == means["kl"].value()
    for name, model in (("cross_entropy", student), ("teacher_cross_entropy", teacher)):
        logits = model.hidden(batch) @ np.asarray(model.params["embed"]["embedding"]).T
        nats = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], batch.tokens[:, 1:])
        weights = batch.loss_weight[:, 1:]
        expected = np.sum(nats * weights) / np.sum(weights)
        np.testing.assert_allclose(means[name].value(), expected, rtol=1e-5)


@pytest.mark.parametrize("config", [PLAIN, WARM])
def test_every_weight_of_the_student_moves_and_none_of_the_teacher(batch, run, config):
    _, (student, frozen) = run(config, batch)
    for path, leaf in jax.tree_util.tree_leaves_with_path(student):
        assert np.abs(np.asarray(leaf)).max() > 0, path
    for leaf in jax.tree.leaves(frozen):
        np.testing.assert_array_equal(leaf, 0.0)


def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient(teacher, batch, compiled):
    stage = distill_stage(PLAIN, teacher.decoder, teacher.decoder)
    (loss, _), (gradient, _) = compiled(stage)(teacher.params, teacher.params, batch)
    assert float(loss.value()) == pytest.approx(0.0, abs=1e-6)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-5)


@pytest.mark.parametrize("config", [PLAIN, WARM])
def test_tokens_of_the_padding_change_nothing(batch, spoiled, run, config):
    (plain, _), (gradient, _) = run(config, batch)
    (other, _), (same, _) = run(config, spoiled(batch))
    assert float(plain.total) == pytest.approx(float(other.total), rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradient, same
    )


def test_packed_documents_count_as_if_each_had_its_own_row(batch, unpacked, run):
    (packed, _), _ = run(PLAIN, batch)
    (alone, _), _ = run(PLAIN, unpacked(batch))
    assert float(packed.total) == pytest.approx(float(alone.total), rel=1e-4)
    assert packed.weight == alone.weight


def test_it_starts_from_stage_one_mixers_and_the_teachers_attention(teacher, student, mixers):
    start = student.single
    jax.tree.map(
        lambda ours, stacked: np.testing.assert_array_equal(ours, stacked[0]),
        start["layer_0"]["mixer"],
        mixers,
    )
    for name, leaf in teacher.single["layer_1"]["mixer"].items():
        jax.tree.map(np.testing.assert_array_equal, start["layer_1"]["mixer"][name], leaf)
    assert jnp.array_equal(start["embed"]["embedding"], teacher.params["embed"]["embedding"])


def test_training_can_start_from_a_whole_student(work_with, student):
    config = DistillConfig(start_from="refit", from_student=True)
    models, weights = work_with([]).models, Weights(parent=student.params)
    assert config.initial_weights(models, weights, runtime.keys(0), {}) is student.params
    assert "mixers" in PLAIN.parent(models).shapes
    same = jax.tree.map(
        lambda leaf, shape: leaf.shape == shape.shape, student.params, config.parent(models).shapes
    )
    assert jax.tree.all(same)


@pytest.mark.extended
def test_neutral_gates_start_at_the_teacher_where_no_positions_are_lost(teacher, mixers, batch):
    plan = hypenet(teacher.config, (0, 1), softmax=MixerOptions(rope=True))
    decoder = teacher.decoder.clone(config=plan)
    models = Models(teacher=teacher.decoder, student=decoder, mixer="lightning")
    weights = Weights(teacher=teacher.params, parent={"mixers": mixers})
    found = {}
    for gates in ("official", "neutral"):
        config = DistillConfig(start_from="align", gates=gates)
        shardings = config.params(models).shardings(make_mesh(MeshConfig(), jax.devices()[:1]))
        params = config.initial_weights(models, weights, runtime.keys(2), shardings)
        student = dataclasses.replace(teacher, decoder=decoder, params=params)
        found[gates] = np.abs(student.hidden(batch) - teacher.hidden(batch))[:2, :9].max()
    assert found["neutral"] < 2e-5
    assert found["official"] > 1e-2


def test_a_whole_student_keeps_its_own_gates():
    with pytest.raises(ValueError, match="gates 'neutral': the student of refit has its own"):
        DistillConfig(start_from="refit", from_student=True, gates="neutral")
