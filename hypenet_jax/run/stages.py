"""What the step of a stage is made of, from its config alone: no weights and no text are read."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from hypenet_jax import axes
from hypenet_jax.axes import Params
from hypenet_jax.config import ConfigError, RunConfig
from hypenet_jax.halo.align import AlignConfig, align_stage
from hypenet_jax.halo.distill import DistillConfig, distill_stage
from hypenet_jax.halo.finetune import FinetuneConfig, finetune_stage
from hypenet_jax.halo.transfer import aligned_spec
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.mixers.lightning import slopes
from hypenet_jax.run.models import (
    decoder_of,
    decoder_shapes,
    decoder_shardings,
    mixer_shapes,
    mixer_shardings,
    student_config,
    teacher_decoder,
)
from hypenet_jax.sharding import sharding_of
from hypenet_jax.train.optimizer import Optimizer
from hypenet_jax.train.stage import Stage
from hypenet_jax.train.state import TrainState, abstract_state
from pallas_kernels.lightning_attention.sharded import FORGOTTEN, short_halo


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a stage trains, and where it lies.

    Attributes:
      stage: its loss and what moves.
      shapes: of the trained parameters; shardings: the like tree.
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


def trained(run: RunConfig, mesh: Mesh) -> Trained:
    """What the stage of this run trains on this mesh.

    Raises:
      ConfigError: `training.short_halo`, and parts of the sequence too short for it.
    """
    kinds: dict[type, Callable[..., Trained]] = {
        AlignConfig: _align,
        DistillConfig: _distill,
        FinetuneConfig: _finetune,
    }
    assert run.training is not None
    halo = run.training.short_halo
    if halo:
        _check_halo(run, mesh)
    parts = kinds[type(run.stage)](run, run.stage, mesh, Optimizer(run.training.optimizer))
    return dataclasses.replace(parts, stage=with_halo(parts.stage)) if halo else parts


def _check_halo(run: RunConfig, mesh: Mesh) -> None:
    """Refuses parts of the sequence in which the slowest head does not forget what came before."""
    length, heads = run.data.context_length, aligned_spec(run.teacher).num_heads
    (part,) = sharding_of((axes.TIME,), (length,), mesh, "row").shard_shape((length,))
    reach = math.ceil(-math.log(FORGOTTEN) / slopes(heads).min())
    if part < min(reach, length):
        raise ConfigError(
            f"{run.name}: training.short_halo needs parts of at least {reach} tokens, and {length} tokens over "
            f"{length // part} devices are parts of {part}; cut the sequence into at most {max(length // reach, 1)}, "
            "or leave it off"
        )


def with_halo(stage: Stage) -> Stage:
    """The stage computed inside `short_halo`."""

    def loss(*arguments: Any) -> Any:
        with short_halo():
            return stage.loss(*arguments)

    return dataclasses.replace(stage, loss=loss)


def _align(run: RunConfig, stage: AlignConfig, mesh: Mesh, optimizer: Optimizer) -> Trained:
    teacher = teacher_decoder(run)
    shapes = {"mixers": mixer_shapes(teacher)}
    where = {"mixers": mixer_shardings(teacher, mesh)}
    return Trained(align_stage(stage, teacher), shapes, where, optimizer, teacher)


def _distill(run: RunConfig, stage: DistillConfig, mesh: Mesh, optimizer: Optimizer) -> Trained:
    teacher, student = teacher_decoder(run), decoder_of(student_config(run), run)
    shapes, where = decoder_shapes(student), decoder_shardings(student, mesh)
    loss = distill_stage(stage, student, teacher)
    return Trained(loss, shapes, where, optimizer, teacher)


def _finetune(run: RunConfig, stage: FinetuneConfig, mesh: Mesh, optimizer: Optimizer) -> Trained:
    student = decoder_of(student_config(run), run)
    shapes, where = decoder_shapes(student), decoder_shardings(student, mesh)
    return Trained(finetune_stage(student), shapes, where, optimizer)
