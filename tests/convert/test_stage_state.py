"""What the published 9B stages hold between steps, how they compute and exchange; on paper, without memory."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypenet_jax.config import StageConfig
from hypenet_jax.config_file import ConfigError, load
from hypenet_jax.convert.programs import build_stage, models_of
from hypenet_jax.halo.align import AlignConfig
from hypenet_jax.model.hype import rotary_angles
from hypenet_jax.sharding import MeshConfig, make_mesh
from hypenet_jax.train.stage import Stage

pytestmark = pytest.mark.brief


@pytest.fixture
def shipped(in_the_repository) -> Callable[..., StageConfig]:
    return lambda stage, *arguments: load(f"configs/halo_9b/{stage}.py", StageConfig, arguments)


def test_stage_one_trains_and_remembers_mixers_alone(shipped):
    parts = build_stage(shipped("align"), make_mesh(MeshConfig(fsdp=8)))
    state = parts.state()
    trees = state.params, *(optax.tree.get(state.opt_state, name) for name in ("mu", "nu"))
    assert all(set(tree) == {"mixers"} for tree in trees)
    leaves = jax.tree.leaves(trees)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    mine = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
    # 36 layers of queries, keys, values, gate and output, three times; norms are on every device.
    assert mine == pytest.approx(3 * 36 * 5 * 4096 * 32 * 128 / 8, rel=1e-3)
    assert parts.teacher is not None
    assert parts.teacher.dtype == jnp.bfloat16


@pytest.mark.parametrize("stage", ["align", "distill"])
def test_muon_is_one_flag_and_has_one_moment_for_every_kernel_of_a_layer(shipped, stage):
    flag = ("--training.optimizer.name", "optax.contrib.muon")
    parts = build_stage(shipped(stage, *flag), make_mesh(MeshConfig(fsdp=8)))
    state = parts.state()
    inner = state.opt_state.inner[1].inner_states
    muon, adam = (set(paths(inner[name])) for name in ("muon", "adam"))
    kernels = {path for path in paths(state.params) if path.endswith("/kernel")} - {"head/kernel"}
    assert {path.split("/mu/")[1] for path in muon if "/mu/" in path} == kernels
    assert not any(kernel in path for path in adam for kernel in kernels)


def paths(tree):
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def test_what_is_recomputed_is_the_configs(shipped):
    for remat in ("full", "none"):
        models = models_of(shipped("distill", "--training.remat", remat))
        assert (models.student.remat, models.teacher.remat) == (remat, "none")


def test_weights_and_moments_have_the_precision_that_is_asked_for(shipped):
    words = ("--training.optimizer.weights", "bfloat16")
    state = build_stage(shipped("align", *words), make_mesh(MeshConfig(fsdp=8))).state()
    moments = [optax.tree.get(state.opt_state, name) for name in ("mu", "nu")]
    leaves = jax.tree.leaves((state.params, moments))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}


def test_rounded_tables_hold_inside_the_losses_of_a_stage_alone(shipped, monkeypatch):
    angles = lambda *_: rotary_angles(jnp.asarray([[511]]), 128, 1e6)  # noqa: E731
    stage = Stage("align", angles, trainable=lambda path: True, heldout=angles)
    monkeypatch.setattr(AlignConfig, "stage", lambda self, models: stage)
    mesh = make_mesh(MeshConfig(fsdp=8))
    plain = build_stage(shipped("align"), mesh).stage
    rounded = build_stage(shipped("align", "--training.rounded-tables"), mesh).stage
    for exact, loss in ((plain.loss, rounded.loss), (plain.heldout, rounded.heldout)):
        assert np.abs(loss() - exact()).max() > 0.5
        np.testing.assert_array_equal(exact(), angles())


def test_a_neighbor_exchange_needs_parts_in_which_the_slowest_head_forgets(shipped):
    words = ("--data.context-length", "16384", "--training.neighbor-exchange", "--mesh.fsdp", "1")
    refused = shipped("align", *words, "--mesh.sequence", "8")
    with pytest.raises(ConfigError) as error:
        build_stage(refused, make_mesh(refused.mesh))
    for said in ("at least 4259 tokens", "over 8 devices are parts of 2048", "into at most 3"):
        assert said in str(error.value)
    cut = shipped("align", *words, "--mesh.sequence", "2")
    build_stage(cut, make_mesh(cut.mesh, jax.devices()[:2]))
