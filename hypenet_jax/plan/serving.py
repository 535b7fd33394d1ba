"""Prefill and decoding of a long context as abstract programs."""

from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from hypenet_jax import axes
from hypenet_jax.convert.models import decoder_shapes, decoder_shardings
from hypenet_jax.generation.decode import decode_until, init_carry, row_keys
from hypenet_jax.generation.prefill import PREFILL_PART, Context, prefill_part, start_context
from hypenet_jax.generation.sampling import Sampling
from hypenet_jax.model.cost import Flops, head_flops, layers_flops
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.plan.config import ServeConfig
from hypenet_jax.plan.programs import PlannedProgram, placed
from hypenet_jax.sharding import replicated, sharding_of


def serving_program(config: ServeConfig, mesh: Mesh) -> PlannedProgram:
    """The program that `generate` runs: prefill of one chunk of the prompts, or one decoding step.

    Caches and recurrent states are sharded by heads, cache slots by sequence, rows by batch.
    """
    decoder = Decoder(config.model, scan=False)
    shardings = decoder_shardings(decoder, mesh)
    params = placed(decoder_shapes(decoder), shardings, dtype=decoder.dtype)
    make = {"prefill": _prefill, "decode": _decode}[config.task]
    return make(config, decoder, params, mesh)


def _prefill(config: ServeConfig, decoder: Decoder, params: Any, mesh: Mesh) -> PlannedProgram:
    batch, length = config.batch, config.context_length
    if length % PREFILL_PART:
        raise ValueError(
            f"context_length {length} is not a multiple of the {PREFILL_PART} tokens of a part"
        )
    tokens = jax.ShapeDtypeStruct((batch, PREFILL_PART), jnp.int32, sharding=_rows(batch, mesh))
    arguments = (decoder, params, _context(config, decoder, mesh), tokens, tokens)
    # The chunk in the middle costs as much as the average chunk.
    layers = layers_flops(config.model, PREFILL_PART, before=(length - PREFILL_PART) // 2)
    flops = Flops(batch * layers + head_flops(config.model, batch))
    calls = length // PREFILL_PART
    return PlannedProgram(prefill_part, arguments, mesh, flops, batch * PREFILL_PART, calls)


def _decode(config: ServeConfig, decoder: Decoder, params: Any, mesh: Mesh) -> PlannedProgram:
    batch, length = config.batch, config.context_length
    context = _context(config, decoder, mesh)
    start = jax.eval_shape(lambda context: init_carry(context, 1, ()), context)
    rest = placed(start, jax.tree.map(lambda leaf: replicated(mesh), start))
    start = rest.replace(context=context)
    keys = jax.eval_shape(lambda: row_keys(None, batch))
    keys = placed(keys, replicated(mesh))
    until = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    arguments = (decoder, params, start, keys, until, Sampling(), ())
    layers = layers_flops(config.model, 1, before=length - 1)
    flops = Flops(batch * layers + head_flops(config.model, batch))
    return PlannedProgram(decode_until, arguments, mesh, flops, batch, 1)


def _context(config: ServeConfig, decoder: Decoder, mesh: Mesh) -> Context:
    """Shapes and shardings of a context that fills its caches."""
    batch, length = config.batch, config.context_length
    shapes = jax.eval_shape(lambda: start_context(decoder, batch, length))
    rows = _rows(batch, mesh)

    def where(leaf: Any, names: tuple[str | None, ...]) -> NamedSharding:
        return sharding_of(names, leaf.shape, mesh, "state")

    layers = tuple(
        layer.replace(
            **{name: where(getattr(layer, name), names) for name, names in spec.STATE_AXES.items()}
        )
        for spec, layer in zip(config.model.mixers, shapes.state.layers, strict=True)
    )
    cache_position = jax.tree.map(lambda leaf: rows, shapes.state.cache_position)
    places = cast(Any, Context)(
        shapes.state.replace(layers=layers, cache_position=cache_position),
        where(shapes.logits, (axes.BATCH, axes.VOCAB)),
    )
    return placed(shapes, places)


def _rows(batch: int, mesh: Mesh) -> NamedSharding:
    return sharding_of((axes.BATCH,), (batch,), mesh, "batch")
