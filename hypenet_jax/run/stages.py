"""What the step of a stage is made of, from its config alone: no weights and no text are read."""

import dataclasses
from collections.abc import Callable

from jax.sharding import Mesh

from hypenet_jax.axes import Params
from hypenet_jax.config import RunConfig
from hypenet_jax.halo.align import AlignConfig, align_stage
from hypenet_jax.halo.distill import DistillConfig, distill_stage
from hypenet_jax.halo.finetune import FinetuneConfig, finetune_stage
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.run.models import (
    decoder_of,
    decoder_shapes,
    decoder_shardings,
    mixer_shapes,
    mixer_shardings,
    student_config,
    teacher_decoder,
)
from hypenet_jax.train.optimizer import Optimizer
from hypenet_jax.train.stage import Stage
from hypenet_jax.train.state import TrainState, abstract_state


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
    """What the stage of this run trains on this mesh."""
    kinds: dict[type, Callable[..., Trained]] = {
        AlignConfig: _align,
        DistillConfig: _distill,
        FinetuneConfig: _finetune,
    }
    assert run.training is not None
    return kinds[type(run.stage)](run, run.stage, mesh, Optimizer(run.training.optimizer))


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
