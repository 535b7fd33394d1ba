"""One training step of every stage is the same on one device and on any mesh."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from tiny_chain import TEACHER

from hypenet_jax.axes import Params
from hypenet_jax.data.batch import Batch, make_row, stack_rows
from hypenet_jax.halo.align import AlignConfig, align_stage
from hypenet_jax.halo.distill import DistillConfig, distill_stage
from hypenet_jax.halo.finetune import finetune_stage
from hypenet_jax.halo.method import AbstractParams, Models, abstract_params
from hypenet_jax.model.config import hypenet
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.sharding import MeshConfig, ShardingError, make_mesh, on_mesh, place_batch
from hypenet_jax.train.optimizer import Optimizer, OptimizerConfig
from hypenet_jax.train.stage import Stage
from hypenet_jax.train.state import create_state
from hypenet_jax.train.step import make_train_step
from pallas_kernels import neighbor_exchange

pytestmark = pytest.mark.brief

# Sizes of the mesh axes and micro-batches.
MESHES = {
    "data": (MeshConfig(data=8, fsdp=1), 1),
    "fsdp": (MeshConfig(fsdp=8), 1),
    "sequence": (MeshConfig(fsdp=1, sequence=8), 1),
    "tensor": (MeshConfig(fsdp=1, tensor=2), 1),
    "fsdp x sequence x tensor": (MeshConfig(fsdp=2, sequence=2, tensor=2), 2),
    "data x fsdp x tensor": (MeshConfig(data=2, fsdp=2, tensor=2), 2),
    "data x fsdp x sequence": (MeshConfig(data=2, fsdp=2, sequence=2), 1),
}
MIXED = "fsdp x sequence x tensor"
# With 64 tokens in the vocabulary the losses cut it finer on some meshes, and the text on others.
CONFIG = dataclasses.replace(TEACHER, vocab_size=64)
TEACHER_DECODER = Decoder(CONFIG, jnp.float32)
STUDENT_DECODER = Decoder(hypenet(CONFIG, (1,)), jnp.float32)
# The large eps makes an update proportional to its gradient: Adam's own is the sign of a tiny one, which is noise.
OPTIMIZER = Optimizer(OptimizerConfig(peak_lr=0.1, final_lr=0.1, warmup_steps=0, steps=2, eps=1.0))


@dataclasses.dataclass(frozen=True)
class Case:
    """A stage and what it trains."""

    stage: Stage
    params: AbstractParams
    frozen: bool


MODELS = Models(teacher=TEACHER_DECODER, student=STUDENT_DECODER, mixer="lightning")
CASES = {
    "align": Case(
        align_stage(AlignConfig(), TEACHER_DECODER, MODELS.aligned_spec),
        MODELS.aligned_mixers(),
        frozen=True,
    ),
    "distill": Case(
        distill_stage(DistillConfig(start_from="align"), STUDENT_DECODER, TEACHER_DECODER),
        abstract_params(STUDENT_DECODER),
        frozen=True,
    ),
    "finetune": Case(
        finetune_stage(STUDENT_DECODER),
        abstract_params(STUDENT_DECODER),
        frozen=False,
    ),
}


def values(shapes: Params, seed: int) -> Params:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32) + 0.1, shapes)


def rows() -> Batch:
    """Eight rows with padding of different lengths; some hold two documents. Every third token is read alone."""
    rng, made = np.random.default_rng(0), []
    for i in range(8):
        segments = np.where(np.arange(16) < 16 - i, 1 + (np.arange(16) > 5 + i), 0)
        row = make_row(rng.integers(0, 32, 16).astype(np.int32), segments.astype(np.int32))
        row.loss_weight[::3] = 0.0
        made.append(row)
    return stack_rows(made)


def step(case: Case, mesh: Mesh, accumulate: int) -> tuple[Any, dict[str, float]]:
    where = case.params.shardings(mesh)
    params = jax.device_put(values(case.params.shapes, 0), where)
    frozen = None
    if case.frozen:
        teacher = abstract_params(TEACHER_DECODER)
        frozen = jax.device_put(values(teacher.shapes, 1), teacher.shardings(mesh))
    with on_mesh(mesh):
        state = create_state(params, case.stage.trainable, OPTIMIZER, where)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        run = make_train_step(case.stage, OPTIMIZER, accumulate=accumulate, shardings=shardings)
        state, metrics = run(state, frozen, place_batch(rows(), mesh))
    return jax.device_get((state.params, optax.tree.get(state.opt_state, "mu"))), jax.device_get(
        metrics
    )


@pytest.fixture(scope="module")
def alone():
    """The step of a stage on one device, computed once."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return {name: step(case, mesh, 1) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "mesh", [MIXED, *(pytest.param(m, marks=pytest.mark.slow) for m in MESHES if m != MIXED)]
)
def test_parameters_gradients_and_metrics_are_those_of_one_device(alone, name, mesh):
    config, accumulate = MESHES[mesh]
    devices = jax.devices()[: 2 if mesh == "tensor" else 8]
    found = step(CASES[name], make_mesh(config, devices), accumulate)
    assert_same_step(found, alone[name], accumulate)


@pytest.mark.slow
def test_a_step_with_neighbor_exchange_is_that_of_one_device(alone):
    config, accumulate = MESHES[MIXED]
    case = CASES["finetune"]
    stage = case.stage.with_losses(neighbor_exchange())
    case = dataclasses.replace(case, stage=stage)
    assert_same_step(step(case, make_mesh(config), accumulate), alone["finetune"], accumulate)


@pytest.mark.slow
def test_a_step_of_distillation_with_every_term_is_that_of_one_device():
    config, accumulate = MESHES[MIXED]
    terms = DistillConfig(
        start_from="align",
        divergence="jensen_shannon",
        cross_entropy_weight=((0, 0.5), (9, 1.0)),
        hidden_weight=0.5,
    )
    stage = distill_stage(terms, STUDENT_DECODER, TEACHER_DECODER)
    case = dataclasses.replace(CASES["distill"], stage=stage)
    alone = step(case, make_mesh(MeshConfig(), jax.devices()[:1]), 1)
    assert_same_step(step(case, make_mesh(config), accumulate), alone, accumulate)


def assert_same_step(one: Any, other: Any, accumulate: int) -> None:
    (found, metrics), (wanted_found, wanted_metrics) = one, other
    leaves = jax.tree_util.tree_leaves_with_path(found)
    for (path, leaf), wanted in zip(leaves, jax.tree.leaves(wanted_found), strict=True):
        assert np.abs(wanted).max() > 1e-8, path
        close = 1e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(leaf, wanted, rtol=0, atol=close, err_msg=str(path))
    assert metrics.keys() == wanted_metrics.keys()
    for key, value in metrics.items():
        # A micro-batch measures variance about its own mean, so these depend a little on the split.
        of_parts = accumulate > 1 and key.startswith("relative_error")
        np.testing.assert_allclose(
            value, wanted_metrics[key], rtol=0.2 if of_parts else 1e-5, err_msg=key
        )


def test_micro_batches_that_do_not_divide_over_the_mesh_are_refused_naming_both():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    with pytest.raises(
        ShardingError, match=r"4 micro-batches.*'batch'.* of size 2 .*data x fsdp of size 4"
    ):
        step(CASES["finetune"], mesh, 4)
