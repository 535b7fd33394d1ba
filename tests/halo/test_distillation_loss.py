"""Divergence, cross entropy and hidden states in one loss, and what their weights do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.halo.distill import DistillConfig, distill_stage
from hypenet_jax.halo.distillation_loss import DistillationTerms
from hypenet_jax.model.decoder import decode_state

pytestmark = pytest.mark.brief

COMBINED = DistillConfig(
    start_from="align",
    divergence="reverse_kl",
    temperature=2.0,
    divergence_weight=((0, 0.0), (10, 1.0)),
    cross_entropy_weight=((10, 0.0), (30, 0.5)),
    hidden_weight=((0, 1.0), (20, 0.5)),
    layer_metrics=True,
)


@pytest.fixture(scope="module")
def at(teacher, student):
    """`at(step, batch)`: ((loss, means), gradients) of `COMBINED`, compiled once."""
    stage = distill_stage(COMBINED, student.decoder, teacher.decoder)

    @jax.jit
    def run(step, batch):
        def mean(params):
            loss, means = stage.at(step)(params, teacher.params, batch)
            return loss.value(), (loss, means)

        gradients, found = jax.grad(mean, has_aux=True)(student.params)
        return found, gradients

    return lambda step, batch: run(jnp.int32(step), batch)


@pytest.fixture(scope="module")
def heldout(teacher, student):
    """`heldout(batch)`: loss and means of `COMBINED` on held-out text, compiled once."""
    stage = distill_stage(COMBINED, student.decoder, teacher.decoder)
    assert stage.heldout is not None
    run = jax.jit(stage.heldout)
    return lambda batch: run(student.params, teacher.params, batch)


def expected(teacher, student, batch):
    """Mean reverse KL at temperature 2 over real tokens, and the cross entropies of student and teacher."""
    p, s = teacher.log_probs(batch, 2.0), student.log_probs(batch, 2.0)
    real = np.asarray(batch.segment_ids) > 0
    reverse = 4.0 * np.sum(np.exp(s) * (s - p), axis=-1)[real].mean()
    weights, labels = np.asarray(batch.loss_weight)[:, 1:], np.asarray(batch.tokens)[:, 1:, None]
    entropies = [
        np.sum(
            -np.take_along_axis(model.log_probs(batch)[:, :-1], labels, axis=-1)[..., 0] * weights
        )
        / weights.sum()
        for model in (student, teacher)
    ]
    return reverse, *entropies


@pytest.mark.parametrize(("step", "weights"), [(5, (0.5, 0.0, 0.875)), (20, (1.0, 0.25, 0.5))])
def test_the_loss_is_the_sum_of_its_terms_with_the_weights_of_the_step(
    teacher, student, batch, at, step, weights
):
    (loss, means), _ = at(step, batch)
    reverse, own, teachers = expected(teacher, student, batch)
    names = ("reverse_kl", "cross_entropy", "teacher_cross_entropy")
    found = [float(means[name].value()) for name in names]
    np.testing.assert_allclose(found, [reverse, own, teachers], rtol=1e-4)
    terms = [means[name].total for name in ("reverse_kl", "cross_entropy", "hidden_gap")]
    total = sum(float(term) * weight for term, weight in zip(terms, weights, strict=True))
    assert float(loss.total) == pytest.approx(total, rel=1e-5)
    assert loss.weight == means["reverse_kl"].weight == np.sum(batch.segment_ids > 0)


def test_where_hidden_states_are_aligned_alone_the_rest_is_told_and_moves_nothing(
    teacher, student, batch, at
):
    (_, means), gradients = at(0, batch)
    assert float(means["reverse_kl"].value()) == pytest.approx(
        expected(teacher, student, batch)[0], rel=1e-4
    )
    assert not np.any(gradients["final_norm"]["scale"])
    assert np.any(gradients["layers_0_0"]["mixer"]["q"]["kernel"])


def test_held_out_text_tells_kl_whatever_the_divergence(teacher, student, batch, heldout):
    loss, means = heldout(batch)
    p, s = teacher.log_probs(batch, 2.0), student.log_probs(batch, 2.0)
    real = np.asarray(batch.segment_ids) > 0
    kl = 4.0 * np.sum(np.exp(p) * (p - s), axis=-1)[real].mean()
    assert float(means["kl"].value()) == pytest.approx(kl, rel=1e-4)
    last = means["reverse_kl"].total + 0.5 * means["cross_entropy"].total
    assert float(loss.total) == pytest.approx(
        float(last + 0.5 * means["hidden_gap"].total), rel=1e-5
    )


def test_layers_weigh_in_the_alignment_as_told(teacher, student, batch, model):
    """A third layer, so that there are two gaps."""
    config = dataclasses.replace(teacher.config, mixers=teacher.config.mixers[:1] * 3)
    deep, other = model(config, 3), model(config, 4)
    terms = DistillationTerms(hidden_weight=1.0, layer_weights=(3.0, 1.0))
    stage = distill_stage(terms, deep.decoder, deep.decoder)
    _, means = jax.jit(stage.loss)(deep.params, other.params, batch)
    first, second = means["hidden_gap/1"].value(), means["hidden_gap/2"].value()
    assert float(first) != pytest.approx(float(second), rel=1e-2)
    assert float(means["hidden_gap"].value()) == pytest.approx(
        float(0.75 * first + 0.25 * second), rel=1e-5
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"temperature": 0.0}, "temperature 0.0 must be above 0"),
        ({"layer_weights": (1.0,)}, "hidden_weight 0"),
        ({"layer_weights": (0.0, 0.0), "hidden_weight": 1.0}, "need one above 0"),
        ({"divergence_weight": ((3, 1.0), (3, 2.0))}, "divergence_weight needs steps that rise"),
        ({"divergence_weight": ((0, 1.0), (9, 0.0))}, "are all 0 at step 9"),
    ],
)
def test_terms_that_cannot_be_are_refused_before_anything_runs(fields, reason):
    with pytest.raises(ValueError, match=reason):
        DistillConfig(start_from="align", **fields)


def test_layer_weights_of_another_depth_are_refused(teacher):
    config = DistillConfig(start_from="align", hidden_weight=1.0, layer_weights=(1.0, 1.0))
    with pytest.raises(ValueError, match="2 numbers; a model of 2 layers needs 1"):
        config.check(teacher.config, evaluates=True)


def test_without_a_schedule_there_is_one_loss_and_its_name_is_that_of_what_it_holds(
    teacher, student
):
    plain = DistillConfig(start_from="align")
    assert distill_stage(plain, student.decoder, teacher.decoder).loss_at is None
    assert plain.loss_name == "KL, nats"
    assert (
        dataclasses.replace(plain, divergence="jensen_shannon").loss_name == "Jensen-Shannon, nats"
    )
    assert COMBINED.loss_name == "combined loss, nats"


def test_held_out_text_tells_of_each_layer_how_it_follows_and_how_open_its_gate_is(
    student, batch, heldout
):
    _, means = heldout(batch)
    layers = {"gate/0", "gate/1", "state_norm/0", "hidden_gap/1"}
    assert {name for name in means if "/" in name} == layers
    assert means["hidden_gap/1"].total == means["hidden_gap"].total
    inputs, real = student.taps(batch).inputs, np.asarray(batch.segment_ids) > 0
    for i in range(2):
        kernel = np.asarray(student.single[f"layer_{i}"]["mixer"]["gate"]["kernel"], np.float64)
        gate = 1 / (1 + np.exp(-np.einsum("btd,dnh->btnh", np.float64(inputs[i]), kernel)))
        np.testing.assert_allclose(means[f"gate/{i}"].value(), gate[real].mean(), rtol=1e-5)


def test_the_size_of_a_state_is_that_after_the_last_token_of_rows_that_hold_text(
    student, batch, heldout
):
    rows, length = batch.tokens.shape
    before = decode_state(student.config, rows, length, jnp.float32)
    text = (batch.tokens, batch.positions, batch.segment_ids)
    plain = student.decoder.clone(scan=False)
    after = jax.jit(lambda p: plain.apply({"params": p}, *text, state=before).state)(student.single)
    squares = np.square(np.asarray(after.layers[0].recurrent_state, np.float64))
    sizes = np.sqrt(squares.reshape(rows, -1).mean(axis=1))
    found = heldout(batch)[1]["state_norm/0"]
    assert found.weight == 2
    np.testing.assert_allclose(found.value(), sizes[:2].mean(), rtol=1e-5)


def test_layer_metrics_without_held_out_text_are_refused(teacher):
    config = DistillConfig(start_from="align", layer_metrics=True)
    config.check(teacher.config, evaluates=True)
    with pytest.raises(ValueError, match="of held-out text"):
        config.check(teacher.config, evaluates=False)
