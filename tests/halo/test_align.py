"""Stage 1: every mixer imitates its own teacher mixer, on what the teacher reads, and nothing else moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypenet_jax.halo.align import AlignConfig, align_stage
from hypenet_jax.losses import real_tokens
from hypenet_jax.model.config import aligned_spec
from hypenet_jax.model.layers import Initialization
from hypenet_jax.model.token_layout import layout_tokens

pytestmark = pytest.mark.brief


@pytest.fixture(scope="module")
def run(teacher, compiled):
    """(mixers, batch) -> ((loss, metrics), (gradients of the mixers, gradients of the teacher))."""
    stage = align_stage(AlignConfig(), teacher.decoder, aligned_spec(teacher.config))
    return lambda mixers, batch: compiled(stage)({"mixers": mixers}, teacher.params, batch)


def changed(mixers, layer):
    """The same mixers with other queries in one layer."""
    kernel = mixers["q"]["kernel"]
    return {**mixers, "q": {"kernel": kernel.at[layer].multiply(-1.5)}}


def gaps(teacher, mixers, batch):
    """Student outputs minus teacher outputs, "L B T D": each layer by itself, without the stage."""
    taps = teacher.taps(batch)
    spec = aligned_spec(teacher.config)
    widths = {"d_model": teacher.config.d_model, "norm_eps": teacher.config.norm_eps}
    mixer = spec.module(start=Initialization(), dtype=jnp.float32, **widths)
    layout, _ = layout_tokens(*batch.tokens.shape, batch.positions, batch.segment_ids, None)

    @jax.jit
    def every(mixers):
        wrote = [
            mixer.apply({"params": mine}, taps.inputs[i], layout, None)[0]
            for i, mine in enumerate(_layers(mixers))
        ]
        return jnp.stack(wrote) - taps.outputs

    return np.asarray(every(mixers), np.float64)


def _layers(mixers):
    count = len(mixers["q"]["kernel"])
    return [jax.tree.map(lambda leaf, i=i: leaf[i], mixers) for i in range(count)]


def test_the_loss_is_the_mean_square_over_layers_real_tokens_and_width(teacher, mixers, batch, run):
    (loss, _), _ = run(mixers, batch)
    real = np.asarray(real_tokens(batch.segment_ids)) > 0
    wanted = np.mean(np.square(gaps(teacher, mixers, batch)[:, real]))
    assert float(loss.value()) == pytest.approx(wanted, rel=1e-5)
    assert float(loss.weight) == real.sum()


def test_l2norm_is_the_mean_norm_over_layers_and_tokens_by_root_width(teacher, mixers, batch):
    stage = align_stage(AlignConfig(loss="l2norm"), teacher.decoder, aligned_spec(teacher.config))
    loss, _ = jax.jit(stage.loss)({"mixers": mixers}, teacher.params, batch)
    real = np.asarray(real_tokens(batch.segment_ids)) > 0
    norms = np.linalg.norm(gaps(teacher, mixers, batch)[:, real], axis=-1)
    wanted = np.mean(norms) / np.sqrt(teacher.config.d_model)
    assert float(loss.value()) == pytest.approx(wanted, rel=1e-5)


def test_gradients_reach_every_weight_of_the_mixers_and_none_of_the_teacher(mixers, batch, run):
    _, (student, frozen) = run(mixers, batch)
    for path, leaf in jax.tree_util.tree_leaves_with_path(student):
        per_layer = np.abs(np.asarray(leaf)).reshape(len(leaf), -1).max(1)
        assert (per_layer > 0).all(), path
    for leaf in jax.tree.leaves(frozen):
        np.testing.assert_array_equal(leaf, 0.0)


def test_the_error_and_gradient_of_a_layer_do_not_depend_on_other_layers_mixers(mixers, batch, run):
    (_, before), (gradient, _) = run(mixers, batch)
    (_, after), (other, _) = run(changed(mixers, 0), batch)
    assert before["relative_error/1"].total == after["relative_error/1"].total
    assert before["relative_error/0"].total != after["relative_error/0"].total
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[1], b[1]), gradient["mixers"], other["mixers"]
    )


def test_tokens_of_the_padding_change_nothing(mixers, batch, spoiled, run):
    (plain, _), (gradient, _) = run(mixers, batch)
    (other, _), (same, _) = run(mixers, spoiled(batch))
    assert float(plain.total) == pytest.approx(float(other.total), rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), gradient, same
    )


def test_packed_documents_count_as_if_each_had_its_own_row(mixers, batch, unpacked, run):
    (packed, _), _ = run(mixers, batch)
    (alone, _), _ = run(mixers, unpacked(batch))
    assert float(packed.total) == pytest.approx(float(alone.total), rel=1e-5)
    assert packed.weight == alone.weight


def test_the_loss_falls_and_relative_errors_stay_below_one_within_twenty_steps(mixers, whole, run):
    adam = optax.adam(1e-2)
    state, losses, params = adam.init({"mixers": mixers}), [], {"mixers": mixers}

    @jax.jit
    def update(gradient, state, params):
        moves, state = adam.update(gradient, state)
        return optax.apply_updates(params, moves), state

    for _ in range(20):
        (loss, metrics), (gradient, _) = run(params["mixers"], whole)
        params, state = update(gradient, state, params)
        losses.append(float(loss.value()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(float(error.value()) < 1.0 for error in metrics.values())
