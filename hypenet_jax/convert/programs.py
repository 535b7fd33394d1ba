"""Models and step of a stage, from its config alone: no weights and no text are read."""

import dataclasses
import math

import jax.numpy as jnp
from jax.sharding import Mesh

from hypenet_jax import axes
from hypenet_jax.axes import Params
from hypenet_jax.config import StageConfig
from hypenet_jax.config_file import ConfigError
from hypenet_jax.halo.method import Models, TrainedMethod
from hypenet_jax.halo.selection.chosen import read_selection
from hypenet_jax.model.config import ModelConfig, aligned_spec, hypenet
from hypenet_jax.model.cost import Flops
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.hype import rounded_tables
from hypenet_jax.model.mixers import MIXERS
from hypenet_jax.model.mixers.lightning import LightningSpec, slopes
from hypenet_jax.model.stacking import group_names
from hypenet_jax.sharding import sharding_of
from hypenet_jax.train.optimizer import Optimizer
from hypenet_jax.train.rates import Rates, check_rates, factor
from hypenet_jax.train.stage import Stage
from hypenet_jax.train.state import TrainState, abstract_state
from pallas_kernels import NEGLIGIBLE_DECAY, neighbor_exchange


def student_config(config: StageConfig) -> ModelConfig:
    """The student's plan; without a student section, the teacher's own.

    Raises:
      FileNotFoundError: the plan follows a selection that was not made yet.
    """
    if config.student is None:
        return config.teacher
    student, layers = config.student, config.student.softmax_layers
    if student.pattern is not None:
        layers = student.layers_by_pattern(config.teacher.num_layers)
    if layers is None:
        path = config.final_of(str(student.selected_by)).parent / "selection.json"
        layers = read_selection(path).softmax_layers
    return hypenet(
        config.teacher,
        layers,
        mixer=config.mixer,
        recurrent=config.recurrent,
        softmax=student.softmax,
        tie_embeddings=student.tie_embeddings,
    )


def models_of(config: StageConfig) -> Models:
    """Teacher and student of a stage: float32 parameters, activations as the stage says.

    Nothing of the frozen teacher is differentiated, so nothing is kept or recomputed.
    """
    student = Decoder(student_config(config), dtype=jnp.float32)
    if config.training is not None:
        dtype = jnp.dtype(config.training.dtype)
        student = student.clone(dtype=dtype, remat=config.training.remat)
    teacher = student.clone(config=config.teacher, remat="none")
    chats = config.data.corpus.holds_conversations
    return Models(
        teacher=teacher,
        student=student,
        mixer=config.mixer,
        recurrent=config.recurrent,
        answers_only=chats,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageProgram:
    """What a stage trains, and how it is sharded.

    Attributes:
      stage: its loss and what is trainable.
      shapes: of the parameters; shardings: the like tree.
      optimizer: what updates them.
      teacher: whose parameters the loss reads beside them; None where there is no teacher.
      flops: of one step; of a curriculum, of one with the longest rows.
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
      ValueError: `training.optimizer.rates` match nothing, or freeze all.
      ConfigError, ShardingError: see `check_curriculum`.
    """
    method, training = config.method, config.training
    if training is None or not isinstance(method, TrainedMethod):
        raise ConfigError(f"{config.name} trains nothing, so it has no step; name another stage")
    models = models_of(config)
    stage, params = method.stage(models), method.params(models)
    check_neighbor_exchange(config, mesh)
    check_curriculum(config, mesh)
    optimizer = training.optimizer
    if optimizer.rates:
        optimizer = dataclasses.replace(optimizer, rates=_rates(config, models, params.shapes))
        stage = _with_frozen(stage, optimizer.rates)
    if training.neighbor_exchange:
        stage = stage.with_losses(neighbor_exchange())
    if training.rounded_tables:
        heldout = stage.heldout and rounded_tables()(stage.heldout)
        stage = dataclasses.replace(stage.with_losses(rounded_tables()), heldout=heldout)
    rows, flops = config.data.sequences_per_step, method.flops(models, config.data.context_length)
    return StageProgram(
        stage=stage,
        shapes=params.shapes,
        shardings=params.shardings(mesh),
        optimizer=Optimizer(optimizer, logical_axes=params.axes),
        teacher=models.teacher if method.reads_teacher else None,
        flops=Flops(rows * flops.model, rows * flops.recomputed),
    )


def check_plan_of_rates(config: StageConfig) -> None:
    """Refuses, before a chain begins, rates of a stage that match nothing; those of a plan that is not selected yet are
    checked where the stage begins.
    """
    training, method, student = config.training, config.method, config.student
    known = student is None or student.selected_by is None
    if training and training.optimizer.rates and known and isinstance(method, TrainedMethod):
        models = models_of(config)
        _rates(config, models, method.params(models).shapes)


def _rates(config: StageConfig, models: Models, shapes: Params) -> Rates:
    """The rates of the optimizer, a mixer's name in their patterns replaced by every group of layers that has it."""
    assert config.training is not None
    student = models.student.config
    kinds, found = {kind.NAME for kind in MIXERS}, []
    for pattern, rate in config.training.optimizer.rates:
        first, slash, rest = pattern.partition("/")
        if first not in kinds:
            found.append((pattern, rate))
            continue
        groups = group_names(student, scan=True)
        own = [name for name, layers in groups if first == student.mixers[layers[0]].NAME]
        if not own:
            raise ConfigError(
                f"{config.name}: rates name {pattern}, and no layer has a mixer {first}"
            )
        found += ((name + slash + rest, rate) for name in own)
    check_rates(tuple(found), shapes)
    return tuple(found)


def _with_frozen(stage: Stage, rates: Rates) -> Stage:
    """The stage without the parameters that these rates freeze."""
    trains = lambda path: stage.trainable(path) and factor(rates, path) > 0  # noqa: E731
    return dataclasses.replace(stage, trainable=trains)


def check_neighbor_exchange(config: StageConfig, mesh: Mesh) -> None:
    """Refuses `training.neighbor_exchange` with parts of the sequence in which the slowest head does not forget."""
    if config.training is None or not config.training.neighbor_exchange:
        return
    spec = aligned_spec(config.teacher, config.mixer, config.recurrent)
    if not isinstance(spec, LightningSpec):
        raise ConfigError(
            f"{config.name}: training.neighbor_exchange is for lightning attention, not {config.mixer}; leave it off"
        )
    length, heads = config.data.phases[0].data.context_length, spec.num_heads
    (part,) = sharding_of((axes.TIME,), (length,), mesh, "row").shard_shape((length,))
    reach = math.ceil(-math.log(NEGLIGIBLE_DECAY) / slopes(heads).min())
    if part < min(reach, length):
        raise ConfigError(
            f"{config.name}: training.neighbor_exchange needs parts of at least {reach} tokens, and {length} tokens "
            f"over {length // part} devices are parts of {part}; cut the sequence into at most "
            f"{max(length // reach, 1)}, or leave it off"
        )


def check_curriculum(config: StageConfig, mesh: Mesh) -> None:
    """Refuses at the start what would end the stage in the middle: rows of a curriculum that a step cannot take.

    Raises:
      ConfigError: they do not split into micro-batches.
      ShardingError: micro-batches do not divide over the mesh.
    """
    if config.training is None or not config.data.curriculum:
        return
    accumulate = config.training.loop.accumulate
    for phase in config.data.phases:
        rows, length = phase.data.sequences_per_step, phase.data.context_length
        what = f"{config.name}: {rows} rows of {length} tokens in {accumulate} micro-batches"
        if rows % accumulate:
            raise ConfigError(f"{what} do not split evenly; use another training.loop.accumulate")
        names = (None, axes.BATCH, axes.TIME)
        sharding_of(names, (accumulate, rows // accumulate, length), mesh, what)
