"""The training step of a stage as an abstract program: a jitted function and the shapes of its arguments."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hypenet_jax import axes
from hypenet_jax.config import StageConfig
from hypenet_jax.convert.models import decoder_shapes, decoder_shardings
from hypenet_jax.convert.programs import build_stage
from hypenet_jax.data.batch import Batch
from hypenet_jax.model.cost import Flops
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
    stage = build_stage(config, mesh)
    assert config.training is not None
    state, loop = stage.state(), config.training.loop
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(
        stage.stage, stage.optimizer, accumulate=loop.accumulate, shardings=shardings
    )
    frozen = None
    if stage.teacher is not None:
        shapes, shardings = decoder_shapes(stage.teacher), decoder_shardings(stage.teacher, mesh)
        frozen = placed(shapes, shardings, dtype=stage.teacher.dtype)
    rows, length = config.data.sequences_per_step, config.data.context_length
    arguments = (state, frozen, _batch(rows, length, mesh))
    return PlannedProgram(step, arguments, mesh, stage.flops, rows * length, loop.steps)


def placed(shapes: Any, shardings: Any, dtype: Any = None) -> Any:
    """Shapes with shardings; `dtype` replaces theirs if given."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, dtype or leaf.dtype, sharding=sharding
        ),
        shapes,
        shardings,
    )


def _batch(rows: int, length: int, mesh: Mesh) -> Batch:
    sharding = sharding_of((axes.BATCH, axes.TIME), (rows, length), mesh, "batch")
    numbers = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=sharding)
    weights = jax.ShapeDtypeStruct((rows, length), jnp.float32, sharding=sharding)
    return cast(Any, Batch)(numbers, numbers, numbers, weights)
