"""The teacher inside a compiled distillation step: cut over the mesh, gathered layer by layer, given back never."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.data.batch import Batch
from hypenet_jax.halo.distill import DistillConfig, distill_stage
from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.decoder import Decoder, init_params, logical_axes
from hypenet_jax.model.mixers import SoftmaxSpec
from hypenet_jax.sharding import MeshConfig, make_mesh, on_mesh, sharding_of, shardings_of
from hypenet_jax.train.optimizer import Optimizer, OptimizerConfig
from hypenet_jax.train.state import abstract_state, state_shardings
from hypenet_jax.train.step import make_train_step

# Widths of teacher and student differ, so that an array's size tells whose it is.
MIXER = SoftmaxSpec(num_heads=4, num_kv_heads=2, head_dim=16, rope_theta=1e4)
TEACHER = Decoder(ModelConfig(80, 40, 56, (MIXER,) * 3, True))
STUDENT = Decoder(hypenet(ModelConfig(80, 32, 48, (MIXER,) * 3, True), (1,)), remat="full")


@pytest.fixture(scope="module", autouse=True)
def compiled_fully(compiled_fast):
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def placed(decoder, mesh, dtype):
    """Shapes of parameters with their places."""
    shapes = jax.eval_shape(functools.partial(init_params, decoder), jax.random.key(0))
    where = shardings_of(shapes, logical_axes(decoder), mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), shapes, where
    )


def gathered(hlo: str) -> list[int]:
    """Number of elements of every array that a program gathers."""
    results = re.findall(r"= (.*?) all-gather(?:-start)?\(", hlo)
    shapes = [numbers for result in results for numbers in re.findall(r"\w+\[([\d,]*)\]", result)]
    return [math.prod(map(int, numbers.split(","))) for numbers in shapes]


@pytest.mark.slow
def test_the_teacher_is_gathered_layer_by_layer_and_is_no_part_of_the_state():
    mesh = make_mesh(MeshConfig(fsdp=8))
    stage = distill_stage(DistillConfig("align"), STUDENT, TEACHER)
    optimizer = Optimizer(OptimizerConfig(1e-3, 1e-3, 0, 2))
    student, teacher = placed(STUDENT, mesh, jnp.float32), placed(TEACHER, mesh, jnp.bfloat16)
    where = jax.tree.map(lambda leaf: leaf.sharding, student)
    state = abstract_state(student, stage.trainable, optimizer, where)
    rows = sharding_of(("batch", "time"), (8, 9), mesh)
    ints, floats = (
        jax.ShapeDtypeStruct((8, 9), dtype, sharding=rows) for dtype in (jnp.int32, jnp.float32)
    )
    batch = Batch(tokens=ints, segment_ids=ints, positions=ints, loss_weight=floats)
    shardings = state_shardings(where, stage.trainable)
    step = make_train_step(stage, optimizer, accumulate=1, shardings=shardings)
    with on_mesh(mesh):
        lowered = step.lower(state, teacher, batch)
    assert not any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(lowered.out_info))
    sizes = gathered(lowered.compile().as_text())
    run = teacher["layers_0_2"]
    kernels = [leaf for leaf in jax.tree.leaves(run) if leaf.ndim > 2]
    one_layer = [leaf.size // 3 for leaf in kernels]
    head = teacher["embed"]["embedding"].size
    # Every kernel once in the loop over layers; nothing of all layers at once, and of the head no more than its text.
    assert sorted(n for n in sizes if n in one_layer) == sorted(one_layer)
    assert not {head, *(leaf.size for leaf in kernels)} & set(sizes)
    assert np.prod(kernels[0].sharding.shard_shape(kernels[0].shape)) == kernels[0].size // 8
