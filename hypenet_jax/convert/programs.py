"""What the step of a stage is made of, from its config alone: no weights and no text are read."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from hypenet_jax import axes
from hypenet_jax.axes import Params
from hypenet_jax.config import StageConfig
from hypenet_jax.config_file import ConfigError
from hypenet_jax.convert.models import (
    decoder_of,
    decoder_shapes,
    decoder_shardings,
    mixer_axes,
    mixer_shapes,
    mixer_shardings,
    student_config,
    teacher_decoder,
)
from hypenet_jax.halo.align import AlignConfig, align_stage
from hypenet_jax.halo.distill import DistillConfig, distill_stage
from hypenet_jax.halo.finetune import FinetuneConfig, finetune_stage
from hypenet_jax.halo.transfer import aligned_spec
from hypenet_jax.model.decoder import Decoder, logical_axes
from hypenet_jax.model.mixers.lightning import slopes
from hypenet_jax.sharding import sharding_of
from hypenet_jax.train.optimizer import Optimizer
from hypenet_jax.train.stage import Stage
from hypenet_jax.train.state import TrainState, abstract_state
from pallas_kernels import NEGLIGIBLE_DECAY, neighbor_exchange


@dataclasses.dataclass(frozen=True)
class StageProgram:
    """What a stage trains, and where it lies.

    Attributes:
      stage: its loss and what moves.
      shapes: of the build_stage parameters; shardings: the like tree.
      optimizer: what moves them.
      teacher: whose parameters the loss reads beside them; None where there is no teacher.
    """

    stage: Stage
    shapes: Params
    shardings: Params
    optimizer: Optimizer
    teacher: Decoder | None = None

    def state(self) -> TrainState:
        """The state of a step as shapes, each with its sharding."""
        return abstract_state(self.shapes, self.stage.trainable, self.optimizer, self.shardings)


def build_stage(run: StageConfig, mesh: Mesh) -> StageProgram:
    """What the stage of this run trains on this mesh.

    Raises:
      ConfigError: `training.neighbor_exchange`, and parts of the sequence too short for it.
    """
    kinds: dict[type, Callable[..., StageProgram]] = {
        AlignConfig: _align,
        DistillConfig: _distill,
        FinetuneConfig: _finetune,
    }
    assert run.training is not None
    halo = run.training.neighbor_exchange
    if halo:
        _check_neighbor_exchange(run, mesh)
    parts = kinds[type(run.method)](run, run.method, mesh, Optimizer(run.training.optimizer))
    return dataclasses.replace(parts, stage=with_neighbor_exchange(parts.stage)) if halo else parts


def _check_neighbor_exchange(run: StageConfig, mesh: Mesh) -> None:
    """Refuses parts of the sequence in which the slowest head does not forget what came before."""
    length, heads = run.data.context_length, aligned_spec(run.teacher).num_heads
    (part,) = sharding_of((axes.TIME,), (length,), mesh, "row").shard_shape((length,))
    reach = math.ceil(-math.log(NEGLIGIBLE_DECAY) / slopes(heads).min())
    if part < min(reach, length):
        raise ConfigError(
            f"{run.name}: training.neighbor_exchange needs parts of at least {reach} tokens, and {length} tokens over "
            f"{length // part} devices are parts of {part}; cut the sequence into at most {max(length // reach, 1)}, "
            "or leave it off"
        )


def with_neighbor_exchange(stage: Stage) -> Stage:
    """The stage computed inside `neighbor_exchange`."""

    def loss(*arguments: Any) -> Any:
        with neighbor_exchange():
            return stage.loss(*arguments)

    return dataclasses.replace(stage, loss=loss)


def _align(run: StageConfig, stage: AlignConfig, mesh: Mesh, optimizer: Optimizer) -> StageProgram:
    teacher = teacher_decoder(run)
    shapes = {"mixers": mixer_shapes(teacher)}
    where = {"mixers": mixer_shardings(teacher, mesh)}
    optimizer = dataclasses.replace(optimizer, logical_axes={"mixers": mixer_axes(teacher)})
    return StageProgram(align_stage(stage, teacher), shapes, where, optimizer, teacher)


def _distill(
    run: StageConfig, stage: DistillConfig, mesh: Mesh, optimizer: Optimizer
) -> StageProgram:
    teacher, student = teacher_decoder(run), decoder_of(student_config(run), run)
    shapes, where = decoder_shapes(student), decoder_shardings(student, mesh)
    loss = distill_stage(stage, student, teacher)
    optimizer = dataclasses.replace(optimizer, logical_axes=logical_axes(student))
    return StageProgram(loss, shapes, where, optimizer, teacher)


def _finetune(
    run: StageConfig, stage: FinetuneConfig, mesh: Mesh, optimizer: Optimizer
) -> StageProgram:
    student = decoder_of(student_config(run), run)
    shapes, where = decoder_shapes(student), decoder_shardings(student, mesh)
    optimizer = dataclasses.replace(optimizer, logical_axes=logical_axes(student))
    return StageProgram(finetune_stage(student), shapes, where, optimizer)
