"""The residual stream of a model, sublayer after sublayer: what closed-form fits of its output projections read."""

import functools
from typing import Literal, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from hypenet_jax import axes
from hypenet_jax.axes import Hidden, Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.model.decoder import Decoder, Layer
from hypenet_jax.model.layers import Product
from hypenet_jax.model.stacking import group_names
from hypenet_jax.model.token_layout import layout_tokens
from hypenet_jax.sharding import constrain

Sublayer = Literal["mixer", "mlp"]
OUTPUT: dict[Sublayer, str] = {"mixer": "o", "mlp": "down"}
"""Name of the output projection of each sublayer, in their order."""


def layer_of(decoder: Decoder, number: int) -> Layer:
    """The module of one layer."""
    config = decoder.config
    return Layer(config.mixers[number], config, decoder.dtype, decoder.start, tap=False)


def layer_params(decoder: Decoder, params: Params, number: int) -> Params:
    """Parameters of one layer of those of a decoder, whose groups are stacked."""
    groups = group_names(decoder.config, scan=True)
    name, group = next((name, group) for name, group in groups if number in group)
    return take(params[name], jnp.int32(number - group[0]))


@jax.jit
def take(stacked: Params, row: Int[Array, ""]) -> Params:
    """One row of every leaf."""
    return jax.tree.map(lambda leaf: leaf[row], stacked)


@functools.partial(jax.jit, static_argnames="decoder")
def embed(decoder: Decoder, params: Params, batch: Batch) -> Hidden:
    """The stream before the first layer."""
    return decoder.bind({"params": params}).embed(batch.tokens)


@functools.partial(jax.jit, static_argnames=("layer", "sublayer"))
def advance(layer: Layer, sublayer: Sublayer, params: Params, x: Hidden, batch: Batch) -> Hidden:
    """The stream after a sublayer."""
    x = x + product(layer, sublayer, params, x, batch)
    return constrain(x, (axes.BATCH, axes.TIME, axes.HIDDEN))


def product(layer: Layer, sublayer: Sublayer, params: Params, x: Hidden, batch: Batch) -> Product:
    """What a sublayer adds to the stream x, its output projection not yet computed."""
    rows, time = batch.tokens.shape
    layout, _ = layout_tokens(rows, time, batch.positions, batch.segment_ids, None)
    read = {"mixer": (x, layout), "mlp": (x,)}[sublayer]
    return cast(Product, layer.apply({"params": params}, *read, method=f"{sublayer}_product"))
