"""The programs that run on rented devices, as shapes: the step of a stage, and reading or writing a long context."""

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
class Program:
    """A jitted function, and what it will be called with.

    Attributes:
      arguments: static ones, and trees of shapes with their shardings.
      mesh: it is traced and compiled on.
      flops: of one call.
      tokens: that one call takes in.
      calls: that the whole task needs.
    """

    function: Any
    arguments: tuple[Any, ...]
    mesh: Mesh
    flops: Flops
    tokens: int
    calls: int


def training_program(run: StageConfig, mesh: Mesh) -> Program:
    """The very step that `launch.train` runs: same loss, shardings and donated state, the teacher inside."""
    assert run.training is not None
    parts, loop = build_stage(run, mesh), run.training.loop
    state = parts.state()
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(
        parts.stage, parts.optimizer, accumulate=loop.accumulate, shardings=places
    )
    frozen = None
    if parts.teacher is not None:
        shapes, where = decoder_shapes(parts.teacher), decoder_shardings(parts.teacher, mesh)
        frozen = placed(shapes, where, dtype=parts.teacher.dtype)
    rows, length = run.data.sequences_per_step, run.data.context_length
    batch = _batch(rows, length, mesh)
    flops = training_flops(run)
    return Program(step, (state, frozen, batch), mesh, flops, rows * length, loop.steps)


def placed(shapes: Any, shardings: Any, dtype: Any = None) -> Any:
    """Shapes with their shardings, in another dtype where one is given."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=where),
        shapes,
        shardings,
    )


def _batch(rows: int, length: int, mesh: Mesh) -> Batch:
    where = sharding_of((axes.BATCH, axes.TIME), (rows, length), mesh, "batch")
    numbers = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=where)
    weights = jax.ShapeDtypeStruct((rows, length), jnp.float32, sharding=where)
    return cast(Any, Batch)(numbers, numbers, numbers, weights)
