"""The teacher inside a compiled distillation step: cut over the mesh, gathered layer by layer, given back never."""

import math
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from hypenet_jax.axes import Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.halo.distill import DistillConfig, distill_stage
from hypenet_jax.halo.method import abstract_params
from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.mixers import SoftmaxSpec
from hypenet_jax.plan.hlo import KINDS, Groups, groups_of
from hypenet_jax.sharding import MeshConfig, make_mesh, on_mesh, sharding_of
from hypenet_jax.train.optimizer import Optimizer, OptimizerConfig
from hypenet_jax.train.state import abstract_state
from hypenet_jax.train.step import make_train_step

pytestmark = pytest.mark.extended

# An array's size tells what it is: multiples of 5 or 7 have a width of the teacher, of 9 a row's tokens, and of 11 the
# vocabulary.
MIXER = SoftmaxSpec(num_heads=4, num_kv_heads=2, head_dim=16, rope_theta=1e4)
TEACHER = Decoder(
    ModelConfig(vocab_size=88, d_model=40, d_mlp=56, mixers=(MIXER,) * 3, tie_embeddings=True)
)
STUDENT = Decoder(
    hypenet(
        ModelConfig(vocab_size=88, d_model=32, d_mlp=48, mixers=(MIXER,) * 3, tie_embeddings=True),
        (1,),
    ),
    remat="full",
)


def lowered_step(mesh: Mesh, length: int) -> tuple[jax.stages.Lowered, Params]:
    """The step on rows of this length, and the shapes of its teacher."""
    stage = distill_stage(DistillConfig(start_from="align"), STUDENT, TEACHER)
    optimizer = Optimizer(OptimizerConfig(peak_lr=1e-3, final_lr=1e-3, warmup_steps=0, steps=2))
    student = abstract_params(STUDENT).placed(mesh)
    teacher = abstract_params(TEACHER).placed(mesh, jnp.bfloat16)
    where = jax.tree.map(lambda leaf: leaf.sharding, student)
    state = abstract_state(student, stage.trainable, optimizer, where)
    shape = (8, length)
    rows = sharding_of(("batch", "time"), shape, mesh)
    ints, floats = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for dtype in (jnp.int32, jnp.float32)
    )
    batch = Batch(tokens=ints, segment_ids=ints, positions=ints, loss_weight=floats)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(stage, optimizer, accumulate=1, shardings=shardings)
    with on_mesh(mesh):
        return step.lower(state, teacher, batch), teacher


def messages(hlo: str) -> Iterator[tuple[str, Groups, list[int]]]:
    """Kind, groups of devices, and elements of each array of every collective of a program."""
    collective = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
    for line in hlo.splitlines():
        if found := collective.search(line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", found[1])
            sizes = [math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes]
            yield found[2], groups_of(line, 8), sizes


@pytest.mark.brief
def test_layers_of_the_teacher_are_gathered_over_fsdp_and_moved_by_no_other_message():
    """Its head is not among them: the loss cuts it as it cuts the student's."""
    mesh = make_mesh(MeshConfig(fsdp=2, sequence=2, tensor=2))
    lowered, teacher = lowered_step(mesh, 18)
    gathered = set()
    for kind, groups, sizes in messages(lowered.compile().as_text()):
        widths = {size for size in sizes if size % 5 == 0 or size % 7 == 0}
        weights = {size for size in widths if size % 9 and size % 11}
        if weights:
            assert (kind, sorted(groups)) == ("all-gather", [(0, 4), (1, 5), (2, 6), (3, 7)])
            gathered |= weights
    kernels = [leaf for leaf in jax.tree.leaves(teacher["layers_0_2"]) if leaf.ndim > 2]
    # Of one layer at a time, still cut over tensor.
    assert gathered == {leaf.size // 3 // 2 for leaf in kernels}


@pytest.mark.slow
def test_the_teacher_is_gathered_layer_by_layer_and_is_no_part_of_the_state():
    lowered, teacher = lowered_step(make_mesh(MeshConfig(fsdp=8)), 9)
    assert not any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(lowered.out_info))
    found = messages(lowered.compile().as_text())
    sizes = [size for kind, _, all_of_it in found if kind == "all-gather" for size in all_of_it]
    run = teacher["layers_0_2"]
    kernels = [leaf for leaf in jax.tree.leaves(run) if leaf.ndim > 2]
    one_layer = [leaf.size // 3 for leaf in kernels]
    head = teacher["embed"]["embedding"].size
    # Every kernel once in the loop over layers; nothing of all layers at once, and of the head no more than its text.
    assert sorted(n for n in sizes if n in one_layer) == sorted(one_layer)
    assert not {head, *(leaf.size for leaf in kernels)} & set(sizes)
    assert np.prod(kernels[0].sharding.shard_shape(kernels[0].shape)) == kernels[0].size // 8
