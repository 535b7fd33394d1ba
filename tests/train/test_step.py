import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train_toy import (
    AXES,
    OPTIMIZER,
    STAGE,
    bits,
    init,
    loss,
    make_batch,
    new_state,
    step_of,
    trainable,
)

from hypenet_jax.sharding import MeshConfig, make_mesh, on_mesh, place_batch, shardings_of
from hypenet_jax.train.stage import Mean, Stage
from hypenet_jax.train.state import abstract_state, create_state, merge, split
from hypenet_jax.train.step import make_train_step

pytestmark = pytest.mark.brief


def stepped(batches, accumulate=1, state=None, step=None):
    step = step or step_of(accumulate)
    state = new_state() if state is None else state
    for batch in batches:
        state, metrics = step(state, None, place_batch(batch, None))
    return state, metrics


@pytest.mark.parametrize("accumulate", [2, 8])
def test_any_split_into_micro_batches_gives_the_update_of_the_whole_batch(accumulate):
    whole, whole_metrics = stepped([make_batch(0), make_batch(1)])
    parts, metrics = stepped([make_batch(0), make_batch(1)], accumulate)
    chex.assert_trees_all_close(metrics, whole_metrics, rtol=1e-5)
    chex.assert_trees_all_close(parts, whole, rtol=2e-4, atol=1e-6)


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match="8 rows does not split into 3"):
        stepped([make_batch(0)], accumulate=3)


def test_held_leaves_keep_their_bits_and_have_no_optimizer_state():
    before = bits(new_state().params["held"])
    state, _ = stepped([make_batch(0), make_batch(1)], 2)
    assert bits(state.params["held"]) == before
    moments = [optax.tree.get(state.opt_state, name) for name in ("mu", "nu")]
    assert all("held" not in moment for moment in moments)
    assert bits(state.params["head"]) != bits(new_state().params["head"])


def test_the_loss_goes_down():
    _, first = stepped([make_batch(0)])
    _, last = stepped([make_batch(0)] * 15)
    assert last["loss"] < 0.8 * first["loss"]


def test_metrics_say_what_happened():
    batch = make_batch(0)
    _, metrics = stepped([batch])
    assert set(metrics) == {"loss", "accuracy", "grad_norm", "learning_rate", "tokens", "skipped"}
    assert metrics["tokens"] == np.sum(batch.segment_ids != 0)
    assert metrics["skipped"] == 0
    np.testing.assert_allclose(metrics["learning_rate"], 0.05 / 2)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_no_parameter_moment_or_count(accumulate, bad):
    batch = make_batch(5)
    weight = batch.loss_weight.copy()
    weight[3, 1] = bad
    state, _ = stepped([make_batch(0)], accumulate)
    params, opt_state = bits(state.params), bits(state.opt_state)
    state, metrics = stepped([batch.replace(loss_weight=weight)], accumulate, state)
    assert bits(state.params) == params
    assert bits(state.opt_state) == opt_state
    assert metrics["skipped"] == 1
    assert state.step == 2
    assert state.opt_state.applied == 1


def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_skipped_too():
    def rooted(student, frozen, batch):
        value, means = loss(student, frozen, batch)
        zero = jnp.sum(student["norm"]["scale"]) * 0.0
        return value.replace(total=value.total + jnp.sqrt(zero)), means

    before = bits(new_state().params)
    state, metrics = stepped(
        [make_batch(0)],
        step=make_train_step(Stage("rooted", rooted, trainable), OPTIMIZER, accumulate=1),
    )
    assert metrics["skipped"] == 1
    assert jnp.isfinite(metrics["loss"])
    assert bits(state.params) == before


def test_a_loss_that_changes_is_that_of_the_batches_taken_so_far():
    def loss_at(step):
        def scaled(*arguments):
            mean, means = loss(*arguments)
            return Mean(mean.total * (1 + step), mean.weight), means

        return scaled

    stage = Stage("changing", loss, trainable, loss_at=loss_at)
    step = make_train_step(stage, OPTIMIZER, accumulate=2)
    _, plain = stepped([make_batch(0)], accumulate=2)
    later = new_state().replace(step=jnp.int32(3))
    _, metrics = stepped([make_batch(0)], state=later, step=step)
    assert float(metrics["loss"]) == pytest.approx(4 * float(plain["loss"]), rel=1e-6)
    assert float(metrics["grad_norm"]) == pytest.approx(4 * float(plain["grad_norm"]), rel=1e-5)


def test_all_losses_of_a_stage_are_changed_alike():
    def change(plain):
        def changed(*arguments):
            mean, means = plain(*arguments)
            return mean, {**means, "changed": mean}

        return changed

    scheduled = Stage("changing", loss, trainable, loss_at=lambda step: loss)
    for stage in (scheduled.with_losses(change), STAGE.with_losses(change)):
        found = jax.eval_shape(stage.at(jnp.int32(0)), new_state().params, None, make_batch(0))
        assert "changed" in found[1]
        assert (stage.loss_at is None) == (stage.name == "toy")


@pytest.mark.extended
@pytest.mark.parametrize(("data", "accumulate"), [(1, 1), (2, 2), (8, 2)])
def test_one_device_and_eight_take_the_same_step(data, accumulate):
    rows = 8 * accumulate
    alone, alone_metrics = stepped([make_batch(0, rows)], accumulate)
    mesh = make_mesh(MeshConfig(data=data, fsdp=-1))
    shardings = shardings_of(init(jax.random.key(0)), AXES, mesh)
    with on_mesh(mesh):
        state = create_state(init(jax.random.key(0)), trainable, OPTIMIZER, shardings)
        where = jax.tree.map(lambda x: x.sharding, state)
        step = make_train_step(STAGE, OPTIMIZER, accumulate=accumulate, shardings=where)
        state, metrics = step(state, None, place_batch(make_batch(0, rows), mesh))
    chex.assert_trees_all_close(jax.device_get(metrics), alone_metrics, rtol=1e-5)
    chex.assert_trees_all_close(jax.device_get(state), alone, rtol=2e-4, atol=1e-6)
    assert jax.tree.map(lambda x: x.sharding, state) == where
    moment = optax.tree.get(state.opt_state, "mu")["head"]["kernel"]
    assert moment.sharding == state.params["head"]["kernel"].sharding


@pytest.mark.extended
def test_micro_batches_are_cut_without_moving_rows_between_devices():
    mesh = make_mesh(MeshConfig(data=8, fsdp=1))
    shardings = shardings_of(init(jax.random.key(0)), AXES, mesh)
    with on_mesh(mesh):
        step = make_train_step(STAGE, OPTIMIZER, accumulate=2)
        text = (
            step.lower(
                create_state(init(jax.random.key(0)), trainable, OPTIMIZER, shardings),
                None,
                place_batch(make_batch(0, 16), mesh),
            )
            .compile()
            .as_text()
        )
    assert "all-to-all" not in text
    assert "all-gather" not in text
    assert "collective-permute" not in text


def test_split_and_merge_are_inverse():
    params = init(jax.random.key(0))
    trained, frozen = split(params, trainable)
    assert set(trained) == {"embed", "norm", "head"}
    chex.assert_trees_all_equal(merge(trained, frozen), params)


def test_parameters_given_to_a_state_survive_its_donation():
    params = init(jax.random.key(0))
    state = create_state(params, trainable, OPTIMIZER)
    stepped([make_batch(0)], state=state)
    assert np.isfinite(params["held"]["kernel"]).all()
    assert np.isfinite(params["head"]["kernel"]).all()


def test_trained_leaves_become_float32_and_held_ones_stay_as_they_are():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), init(jax.random.key(0)))
    state = create_state(half, trainable, OPTIMIZER)
    assert state.params["head"]["kernel"].dtype == jnp.float32
    assert state.params["held"]["kernel"].dtype == jnp.bfloat16
    assert all(
        leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(optax.tree.get(state.opt_state, "nu"))
    )


def test_abstract_state_has_the_shapes_and_places_of_the_real_one():
    mesh = make_mesh(MeshConfig(fsdp=8))
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = shardings_of(shapes, AXES, mesh)
    plan = abstract_state(shapes, trainable, OPTIMIZER, shardings)
    real = create_state(init(jax.random.key(0)), trainable, OPTIMIZER, shardings)
    describe = lambda x: (x.shape, x.dtype, x.sharding)  # noqa: E731
    assert jax.tree.map(describe, plan) == jax.tree.map(describe, real)


def test_a_stage_that_trains_nothing_is_refused():
    with pytest.raises(ValueError, match="trains no leaf"):
        create_state(init(jax.random.key(0)), lambda path: False, OPTIMIZER)


def test_a_stage_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        STAGE.name = "other"
