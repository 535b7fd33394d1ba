"""Teacher and hybrid against the official code: every layer's stream, final states, logits, loss."""

import golden_recipe
import jax
import jax.numpy as jnp
import pytest

from hypenet_jax.losses import next_token
from hypenet_jax.model.decoder import Decoder, Layer, decode_state, output_head
from hypenet_jax.model.mixers.lightning import LightningState
from hypenet_jax.model.stacking import stack_layers

TOLERANCE = 3e-4
MODELS = ["qwen3", "hypenet"]


@pytest.mark.parametrize("model", MODELS)
def test_every_layer_state_and_logit_is_that_of_the_official_code(model, golden, load):
    decoder, params = load(model)
    is_layer = lambda module, _: isinstance(module, Layer)  # noqa: E731
    tokens = jnp.asarray(golden_recipe.tokens(model))
    start = decode_state(decoder.config, *tokens.shape, jnp.float32)

    @jax.jit
    def run(params):
        output, kept = decoder.apply(
            {"params": params},
            tokens,
            state=start,
            capture_intermediates=is_layer,
            mutable=["intermediates"],
        )
        logits = decoder.apply({"params": params}, output.hidden, method="logits")
        return output, logits, kept["intermediates"]

    output, logits, layers = run(params)
    for i in range(decoder.config.num_layers):
        stream = layers[f"layer_{i}"]["__call__"][0][0]
        golden.close(f"{model}/hidden.layer_{i}", stream, atol=TOLERANCE)
    golden.close(f"{model}/hidden.final_norm", output.hidden, atol=TOLERANCE)
    golden.close(f"{model}/logits", logits, atol=TOLERANCE)
    for i, state in enumerate(output.state.layers):
        if isinstance(state, LightningState):
            golden.close(
                f"{model}/recurrent_state.layer_{i}", state.recurrent_state, atol=TOLERANCE
            )


@pytest.mark.parametrize("model", MODELS)
def test_scanned_layers_give_the_same_logits_and_the_official_loss(model, golden, load):
    single, params = load(model)
    decoder = Decoder(single.config, jnp.float32, scan=True)
    tokens, weights = (jnp.asarray(x) for x in golden_recipe.labels(model))

    @jax.jit
    def run(params):
        hidden = decoder.apply({"params": params}, tokens).hidden
        loss = next_token(hidden, output_head(params, decoder.config), tokens, weights)
        return decoder.apply({"params": params}, hidden, method="logits"), loss

    logits, loss = run(stack_layers(params, decoder.config))
    golden.close(f"{model}/logits", logits, atol=TOLERANCE)
    golden.close(f"{model}/loss_ce", loss.total / loss.weight, rtol=1e-5)
