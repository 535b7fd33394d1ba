"""Other optimizers of optax through the whole loop: one name in the config, and nothing else knows."""

import chex
import jax
import pytest
from train_toy import AXES, init, loss, run

from hypenet_jax.sharding import MeshConfig, make_mesh, shardings_of
from hypenet_jax.train.errors import Preempted
from hypenet_jax.train.optimizer import Optimizer, OptimizerConfig
from hypenet_jax.train.stage import Stage
from hypenet_jax.train.state import create_state

NAMES = ("optax.contrib.muon", "optax.adafactor")
STAGE = Stage("all", loss, lambda path: True)


def optimizer_named(name):
    config = OptimizerConfig(peak_lr=0.02, final_lr=0.01, warmup_steps=2, steps=20, name=name)
    return Optimizer(config, AXES)


def state_of(optimizer, mesh=None):
    params = init(jax.random.key(0))
    shardings = None if mesh is None else shardings_of(params, AXES, mesh)
    return create_state(params, STAGE.trainable, optimizer, shardings)


@pytest.mark.extended
@pytest.mark.parametrize("name", NAMES)
def test_a_run_cut_off_goes_on_with_the_same_bits_and_on_a_mesh_with_the_same_numbers(
    name, tmp_path
):
    optimizer = optimizer_named(name)
    options = {"stage": STAGE, "optimizer": optimizer, "steps": 6}
    whole = run(tmp_path / "whole", state=state_of(optimizer), **options)
    with pytest.raises(Preempted):
        run(tmp_path / "cut", state=state_of(optimizer), stop=lambda step: step == 3, **options)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    cut = run(tmp_path / "cut", state=state_of(optimizer), **options)
    chex.assert_trees_all_equal(cut, whole)
    assert whole.opt_state.applied == 6
    on_mesh = run(tmp_path / "mesh", state=state_of(optimizer, mesh), mesh=mesh, **options)
    chex.assert_trees_all_close(
        jax.device_get(on_mesh), jax.device_get(whole), rtol=1e-3, atol=1e-4
    )


def test_moments_are_sharded_as_their_parameters_whatever_the_tree_of_the_optimizer():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    state = state_of(optimizer_named("optax.contrib.muon"), mesh)
    inner = state.opt_state.inner[1].inner_states
    muon, adam = (inner[name].inner_state[0].mu for name in ("muon", "adam"))
    kernel = state.params["held"]["kernel"]
    assert muon["held"]["kernel"].sharding == kernel.sharding
    assert not kernel.sharding.is_fully_replicated
    assert adam["head"]["kernel"].sharding == state.params["head"]["kernel"].sharding
    assert state.opt_state.applied.sharding.is_fully_replicated
