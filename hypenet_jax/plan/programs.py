"""A training step, prefill and decoding as abstract programs: jitted functions and the shapes of their arguments."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hypenet_jax import axes
from hypenet_jax.config import StageConfig
from hypenet_jax.convert.programs import build_stage
from hypenet_jax.data.batch import Batch
from hypenet_jax.generation.decode import Sampling, decode_until, init_carry, row_keys
from hypenet_jax.generation.prefill import PREFILL_PART, Context, prefill_part, start_context
from hypenet_jax.halo.method import abstract_params
from hypenet_jax.model.cost import Flops, head_flops, layers_flops
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.plan.config import ServeConfig
from hypenet_jax.sharding import replicated, sharding_of
from hypenet_jax.train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class PlannedProgram:
    """A jitted function and the arguments to compile it for.

    Attributes:
      arguments: static values, and trees of shapes with shardings.
      mesh: to trace and compile on.
      flops: of one call.
      tokens: processed by one call.
      calls: in the whole task; of the step of a curriculum, those with the longest rows.
    """

    function: Any
    arguments: tuple[Any, ...]
    mesh: Mesh
    flops: Flops
    tokens: int
    calls: int


def training_program(config: StageConfig, mesh: Mesh) -> PlannedProgram:
    """The training step that `launch.train` runs: same loss, shardings, donated state and frozen teacher.

    Of a curriculum that with the longest rows, which needs most.

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
    teacher, frozen = program.teacher, None
    if teacher is not None:
        frozen = abstract_params(teacher).placed(mesh, teacher.dtype)
    rows, length = config.data.sequences_per_step, config.data.context_length
    shape = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    numbers = _placed(shape, (axes.BATCH, axes.TIME), mesh)
    batch = cast(Any, Batch)(numbers, numbers, numbers, numbers.update(dtype=jnp.float32))
    calls = loop.steps - config.data.phases[-1].first_batch
    return PlannedProgram(step, (state, frozen, batch), mesh, program.flops, rows * length, calls)


def serving_program(config: ServeConfig, mesh: Mesh) -> PlannedProgram:
    """The program that `generate` runs: prefill of one chunk of the prompts, or one decoding step.

    Caches and recurrent states are sharded by heads, cache slots by sequence, rows by batch.
    """
    decoder = Decoder(config.model, scan=False)
    make = {"prefill": _prefill, "decode": _decode}[config.task]
    return make(config, decoder, abstract_params(decoder).placed(mesh, decoder.dtype), mesh)


def _prefill(config: ServeConfig, decoder: Decoder, params: Any, mesh: Mesh) -> PlannedProgram:
    batch, length = config.batch, config.context_length
    if length % PREFILL_PART:
        raise ValueError(
            f"context_length {length} is not a multiple of the {PREFILL_PART} tokens of a part"
        )
    tokens = _placed(jax.ShapeDtypeStruct((batch, PREFILL_PART), jnp.int32), (axes.BATCH,), mesh)
    arguments = (decoder, params, _context(config, decoder, mesh), tokens, tokens)
    # The chunk in the middle costs as much as the average chunk.
    layers = layers_flops(config.model, PREFILL_PART, before=(length - PREFILL_PART) // 2)
    flops = Flops(batch * layers + head_flops(config.model, batch))
    calls = length // PREFILL_PART
    return PlannedProgram(prefill_part, arguments, mesh, flops, batch * PREFILL_PART, calls)


def _decode(config: ServeConfig, decoder: Decoder, params: Any, mesh: Mesh) -> PlannedProgram:
    batch, length = config.batch, config.context_length
    context = _context(config, decoder, mesh)
    start, keys = jax.eval_shape(lambda c: (init_carry(c, 1, ()), row_keys(None, batch)), context)
    until = jax.ShapeDtypeStruct((), jnp.int32)
    start, keys, until = jax.tree.map(
        lambda leaf: leaf.update(sharding=replicated(mesh)), (start, keys, until)
    )
    arguments = (decoder, params, start.replace(context=context), keys, until, Sampling(), ())
    layers = layers_flops(config.model, 1, before=length - 1)
    flops = Flops(batch * layers + head_flops(config.model, batch))
    return PlannedProgram(decode_until, arguments, mesh, flops, batch, 1)


def _context(config: ServeConfig, decoder: Decoder, mesh: Mesh) -> Context:
    """Shapes and shardings of a context that fills its caches."""
    context = jax.eval_shape(lambda: start_context(decoder, config.batch, config.context_length))
    state = context.state
    layers = tuple(
        layer.replace(
            **{
                name: _placed(getattr(layer, name), names, mesh)
                for name, names in spec.STATE_AXES.items()
                if getattr(layer, name) is not None
            }
        )
        for spec, layer in zip(config.model.mixers, state.layers, strict=True)
    )
    position = jax.tree.map(lambda leaf: _placed(leaf, (axes.BATCH,), mesh), state.cache_position)
    return cast(Any, Context)(
        state.replace(layers=layers, cache_position=position),
        _placed(context.logits, (axes.BATCH, axes.VOCAB), mesh),
    )


def _placed(leaf: Any, names: tuple[str | None, ...], mesh: Mesh) -> jax.ShapeDtypeStruct:
    """The shape with the sharding of its first axes, by their logical names; further axes are whole."""
    names += (None,) * (len(leaf.shape) - len(names))
    return leaf.update(sharding=sharding_of(names, leaf.shape, mesh, "state"))
