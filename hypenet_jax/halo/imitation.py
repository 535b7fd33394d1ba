"""What every mixer of stage 1 writes in place of the teacher's, and how far that is from it."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypenet_jax.axes import Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.losses import real_tokens, relative_gap_by_row
from hypenet_jax.model.decoder import Decoder, Tap
from hypenet_jax.model.layers import Initialization, unroll_layers
from hypenet_jax.model.mixers import MixerSpec
from hypenet_jax.model.token_layout import layout_tokens
from hypenet_jax.sharding import constrain


def imitate(
    spec: MixerSpec, student: Params, teacher: Decoder, taps: Tap, batch: Batch
) -> jax.Array:
    """Outputs of every student mixer, "L B T D", for the inputs of its teacher mixer: one scan over the layers."""
    mixer = spec.module(
        d_model=teacher.config.d_model,
        norm_eps=teacher.config.norm_eps,
        start=Initialization(),
        dtype=teacher.dtype,
    )
    rows, time = batch.tokens.shape
    layout, _ = layout_tokens(rows, time, batch.positions, batch.segment_ids, None)

    def one(carry: None, layer: tuple[Params, jax.Array]) -> tuple[None, jax.Array]:
        params, inputs = layer
        outputs, _ = mixer.apply({"params": params}, inputs, layout, None)
        return carry, outputs

    unroll = teacher.config.num_layers if unroll_layers() else 1
    _, outputs = jax.lax.scan(one, None, (student["mixers"], taps.inputs), unroll=unroll)
    return outputs


@functools.partial(jax.jit, static_argnums=(0, 1))
def row_errors(
    teacher: Decoder, spec: MixerSpec, frozen: Params, student: Params, batch: Batch
) -> tuple[Float[Array, "L B"], Float[Array, " B"]]:
    """Of every mixer in every row, its squared error relative to the variance of its target; and tokens per row."""
    text = (batch.tokens, batch.positions, batch.segment_ids)
    taps = teacher.apply({"params": frozen}, *text, taps=True).taps
    imitations = imitate(spec, student, teacher, taps, batch)
    weights = real_tokens(batch.segment_ids)
    errors = [
        relative_gap_by_row(imitations[i], taps.outputs[i], weights).value()
        for i in range(teacher.config.num_layers)
    ]
    tokens = jnp.sum(weights, axis=1)
    return constrain(jnp.stack(errors), (None, None)), constrain(tokens, (None,))
