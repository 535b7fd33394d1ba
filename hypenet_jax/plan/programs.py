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
from hypenet_jax.plan.flops import Flops, training_flops
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


def training_program(run: StageConfig, mesh: Mesh) -> PlannedProgram:
    """The training step that `launch.train` runs: same loss, shardings, donated state and frozen teacher."""
    assert run.training is not None
    parts, loop = build_stage(run, mesh), run.training.loop
    state = parts.state()
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(
        parts.stage, parts.optimizer, accumulate=loop.accumulate, shardings=shardings
    )
    frozen = None
    if parts.teacher is not None:
        shapes = decoder_shapes(parts.teacher)
        frozen = placed(shapes, decoder_shardings(parts.teacher, mesh), dtype=parts.teacher.dtype)
    rows, length = run.data.sequences_per_step, run.data.context_length
    batch = _batch(rows, length, mesh)
    flops = training_flops(run)
    return PlannedProgram(step, (state, frozen, batch), mesh, flops, rows * length, loop.steps)


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
