"""Numbers of each layer of a student that say whether it takes part in what is learned."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypenet_jax import axes
from hypenet_jax.axes import Hidden, Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.losses import Mean
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.mixers import MixerSpec
from hypenet_jax.model.stacking import group_names
from hypenet_jax.model.token_layout import TokenLayout, layout_tokens

PerToken = Float[Array, "B T"]


def layer_metrics(
    decoder: Decoder,
    params: Params,
    inputs: Float[Array, "L B T D"],
    batch: Batch,
    weights: axes.Weights,
) -> dict[str, Mean]:
    """Of each layer, from what its mixer reads:

    gate/LAYER = mean over tokens and channels of sigmoid(W_gate x), where the mixer has an output gate
    state_norm/LAYER = root mean square of the state after each row's last token, mean over rows that hold any, where
      its size does not grow with the tokens

    Args:
      params: groups of layers stacked.
      inputs: `Output.taps.inputs` of the decoder.
      weights: of the tokens in `gate`.
    """
    height, time = batch.tokens.shape
    layout, _ = layout_tokens(height, time, batch.positions, batch.segment_ids, None)
    rows = jnp.any(batch.segment_ids != 0, axis=1).astype(jnp.float32)
    found = {}
    for name, group in group_names(decoder.config, scan=True):
        spec = decoder.config.mixers[group[0]]

        def one(carry: None, layer: tuple[Params, Hidden], spec=spec):
            own, x = layer
            return carry, _numbers(decoder, spec, own, x, layout)

        layers = params[name]["mixer"], inputs[group[0] : group[-1] + 1]
        _, numbers = jax.lax.scan(one, None, layers)
        for metric, weight in (("gate", weights), ("state_norm", rows)):
            for place, layer in enumerate(group):
                if metric in numbers:
                    total = jnp.sum(numbers[metric][place] * weight)
                    found[f"{metric}/{layer}"] = Mean(total, jnp.sum(weight))
    return found


def _numbers(
    decoder: Decoder, spec: MixerSpec, params: Params, x: Hidden, layout: TokenLayout
) -> dict[str, PerToken | Float[Array, "B"]]:
    """Openness of the gate at each token, and size of the state of each row."""
    found = {}
    if "gate" in params:
        kernel = params["gate"]["kernel"].astype(x.dtype)
        gate = jnp.einsum("btd,dnh->btnh", x, kernel, preferred_element_type=jnp.float32)
        found["gate"] = jnp.mean(jax.nn.sigmoid(gate), axis=(2, 3))
    if spec.state_bytes(2, 4) == spec.state_bytes(1, 4):
        config = decoder.config
        mixer = spec.module(
            d_model=config.d_model,
            norm_eps=config.norm_eps,
            start=decoder.start,
            dtype=decoder.dtype,
        )
        state = spec.init_state(len(x), 0, decoder.dtype)
        _, state = mixer.apply({"params": params}, x, layout, state)
        leaves = [leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(state)]
        squares = jnp.square(jnp.concatenate(leaves, axis=1).astype(jnp.float32))
        found["state_norm"] = jnp.sqrt(jnp.mean(squares, axis=1))
    return found
