"""The training step of a stage as an abstract program: a jitted function and the shapes of its arguments."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hypenet_jax import axes
from hypenet_jax.config import StageConfig
from hypenet_jax.convert.programs import build_stage
from hypenet_jax.data.batch import Batch
from hypenet_jax.halo.method import abstract_params
from hypenet_jax.model.cost import Flops
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.sharding import sharding_of
from hypenet_jax.train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class PlannedProgram:
    """A jitted function and the arguments to compile it for.

    Attributes:
      arguments: static values, and trees of shapes with shardings.
      mesh: to trace and compile on.
      flops: of one call.
      tokens: processed by one call.
      calls: in the whole task.
    """

    function: Any
    arguments: tuple[Any, ...]
    mesh: Mesh
    flops: Flops
    tokens: int
    calls: int


def training_program(config: StageConfig, mesh: Mesh) -> PlannedProgram:
    """The training step that `launch.train` runs: same loss, shardings, donated state and frozen teacher.

    Raises:
      ConfigError: see `build_stage`.
    """
    program = build_stage(config, mesh)
    assert config.training is not None
    state, loop = program.state(), config.training.loop
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(
        program.stage, program.optimizer, accumulate=loop.accumulate, shardings=shardings
    )
    frozen = None if program.teacher is None else frozen_params(program.teacher, mesh)
    rows, length = config.data.sequences_per_step, config.data.context_length
    arguments = (state, frozen, _batch(rows, length, mesh))
    return PlannedProgram(step, arguments, mesh, program.flops, rows * length, loop.steps)


def frozen_params(decoder: Decoder, mesh: Mesh) -> Any:
    """Parameters that are only read, as shapes with shardings, in the dtype of the computation."""
    params = abstract_params(decoder)
    return jax.tree.map(
        lambda leaf, sharding: leaf.update(dtype=decoder.dtype, sharding=sharding),
        params.shapes,
        params.shardings(mesh),
    )


def _batch(rows: int, length: int, mesh: Mesh) -> Batch:
    sharding = sharding_of((axes.BATCH, axes.TIME), (rows, length), mesh, "batch")
    numbers = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=sharding)
    return cast(Any, Batch)(numbers, numbers, numbers, numbers.update(dtype=jnp.float32))
