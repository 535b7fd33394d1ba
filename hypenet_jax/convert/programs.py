"""What the step of a stage is made of, from its config alone: no weights and no text are read."""

import dataclasses
import math
from typing import Any

from jax.sharding import Mesh

from hypenet_jax import axes
from hypenet_jax.axes import Params
from hypenet_jax.config import StageConfig
from hypenet_jax.config_file import ConfigError
from hypenet_jax.convert.models import models_of
from hypenet_jax.halo.method import TrainedMethod
from hypenet_jax.halo.transfer import aligned_spec
from hypenet_jax.model.cost import Flops
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.mixers.lightning import LightningSpec, slopes
from hypenet_jax.sharding import sharding_of, shardings_of
from hypenet_jax.train.optimizer import Optimizer
from hypenet_jax.train.stage import Stage
from hypenet_jax.train.state import TrainState, abstract_state
from pallas_kernels import NEGLIGIBLE_DECAY, neighbor_exchange


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageProgram:
    """What a stage trains, and how it is sharded.

    Attributes:
      stage: its loss and what is trainable.
      shapes: of the parameters; shardings: the like tree.
      optimizer: what updates them.
      teacher: whose parameters the loss reads beside them; None where there is no teacher.
      flops: of one step.
    """

    stage: Stage
    shapes: Params
    shardings: Params
    optimizer: Optimizer
    teacher: Decoder | None
    flops: Flops

    def state(self) -> TrainState:
        """The state of a step as shapes, each with its sharding."""
        return abstract_state(self.shapes, self.stage.trainable, self.optimizer, self.shardings)


def build_stage(config: StageConfig, mesh: Mesh) -> StageProgram:
    """What the stage trains on this mesh.

    Raises:
      ConfigError: it trains nothing; or `training.neighbor_exchange`, and parts of the sequence too short for it.
    """
    method, training = config.method, config.training
    if training is None or not isinstance(method, TrainedMethod):
        raise ConfigError(f"{config.name} trains nothing, so it has no step; name another stage")
    models = models_of(config)
    stage, params = method.stage(models), method.params(models)
    check_neighbor_exchange(config, mesh)
    if training.neighbor_exchange:
        stage = with_neighbor_exchange(stage)
    rows, flops = config.data.sequences_per_step, method.flops(models, config.data.context_length)
    return StageProgram(
        stage=stage,
        shapes=params.shapes,
        shardings=shardings_of(params.shapes, params.axes, mesh),
        optimizer=Optimizer(training.optimizer, logical_axes=params.axes),
        teacher=models.teacher if method.reads_teacher else None,
        flops=Flops(rows * flops.model, rows * flops.recomputed),
    )


def check_neighbor_exchange(config: StageConfig, mesh: Mesh) -> None:
    """Refuses `training.neighbor_exchange` with parts of the sequence in which the slowest head does not forget."""
    if config.training is None or not config.training.neighbor_exchange:
        return
    spec = aligned_spec(config.teacher, config.mixer)
    if not isinstance(spec, LightningSpec):
        raise ConfigError(
            f"{config.name}: training.neighbor_exchange is for lightning attention, not {config.mixer}; leave it off"
        )
    length, heads = config.data.context_length, spec.num_heads
    (part,) = sharding_of((axes.TIME,), (length,), mesh, "row").shard_shape((length,))
    reach = math.ceil(-math.log(NEGLIGIBLE_DECAY) / slopes(heads).min())
    if part < min(reach, length):
        raise ConfigError(
            f"{config.name}: training.neighbor_exchange needs parts of at least {reach} tokens, and {length} tokens "
            f"over {length // part} devices are parts of {part}; cut the sequence into at most "
            f"{max(length // reach, 1)}, or leave it off"
        )


def with_neighbor_exchange(stage: Stage) -> Stage:
    """The stage computed inside `neighbor_exchange`."""

    def loss(*arguments: Any) -> Any:
        with neighbor_exchange():
            return stage.loss(*arguments)

    return dataclasses.replace(stage, loss=loss)
