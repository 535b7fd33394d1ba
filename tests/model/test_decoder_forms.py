"""One model in several forms: stacked or single layers, recomputed or kept, tied or untied, tokens or embeddings."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoders import BATCH, CAPACITY, TIME, VOCABULARY, tiny_hybrid

from hypenet_jax.model.decoder import Decoder, decode_state, init_params, output_head
from hypenet_jax.model.stacking import stack_layers, unstack_layers
from hypenet_jax.testing import random_params, tiny_teacher

pytestmark = pytest.mark.brief


@pytest.fixture(scope="module")
def differentiated(hybrid, tokens):
    """{remat: (loss, taps, gradients)} of the scanned form."""

    def run(remat):
        decoder = Decoder(hybrid.config, jnp.float32, remat, scan=True)

        def loss(params):
            output = decoder.apply({"params": params}, jnp.asarray(tokens), taps=True)
            return jnp.mean(jnp.sin(3.0 * output.hidden)), output

        params = stack_layers(hybrid.params, hybrid.config)
        (value, output), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return value, output, gradients

    return {remat: run(remat) for remat in ("none", "full")}


@pytest.mark.extended
def test_scanned_layers_are_as_single_ones_in_outputs_and_taps(hybrid, tokens, differentiated):
    run = lambda params: hybrid.decoder.apply({"params": params}, jnp.asarray(tokens), taps=True)  # noqa: E731
    single, scanned = jax.jit(run)(hybrid.params), differentiated["none"][1]
    np.testing.assert_allclose(scanned.hidden, single.hidden, atol=1e-5)
    np.testing.assert_allclose(scanned.taps.inputs, single.taps.inputs, atol=1e-5)
    np.testing.assert_allclose(scanned.taps.outputs, single.taps.outputs, atol=1e-5)
    assert single.taps.inputs.shape == (4, BATCH, TIME, 32)
    np.testing.assert_allclose(single.hidden, hybrid.hidden(tokens), atol=1e-5)


@pytest.mark.extended
def test_recomputing_layers_changes_neither_loss_nor_gradients(differentiated):
    (loss, _, gradients), (again, _, recomputed) = differentiated["none"], differentiated["full"]
    np.testing.assert_allclose(again, loss, rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_close(recomputed, gradients, atol=1e-6, rtol=1e-4)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradients))


@pytest.mark.extended
def test_scanned_layers_decode_as_single_ones(hybrid, tokens):
    decoder = Decoder(hybrid.config, jnp.float32, scan=True)
    params = stack_layers(hybrid.params, hybrid.config)
    half = np.where(np.arange(TIME) < 12, np.ones_like(tokens), 0)
    run = jax.jit(lambda *a: decoder.apply({"params": params}, a[0], None, a[1], a[2]))
    output = run(jnp.asarray(tokens), jnp.asarray(half), hybrid.empty())
    hidden, state = hybrid.go_on(hybrid.empty(), tokens, half)
    np.testing.assert_allclose(output.hidden[:, :12], hidden[:, :12], atol=1e-5)
    chex.assert_trees_all_close(output.state, state, atol=1e-5)


def test_embeddings_in_are_as_tokens_in(hybrid, tokens):
    embedded = np.asarray(hybrid.params["embed"]["embedding"])[tokens]
    np.testing.assert_allclose(hybrid.hidden(embedded), hybrid.hidden(tokens), atol=1e-5)


def test_stacking_and_unstacking_are_inverse(hybrid):
    stacked = stack_layers(hybrid.params, hybrid.config)
    assert {"layers_0_0", "layers_1_2", "layers_3_3"} <= set(stacked)
    assert stack_layers(stacked, hybrid.config) is stacked
    chex.assert_trees_all_equal(dict(unstack_layers(stacked)), dict(hybrid.params))


@pytest.mark.parametrize("scan", [True, False])
def test_initial_parameters_have_the_grouping_of_the_decoder(scan, key):
    config = tiny_hybrid()
    shapes = jax.eval_shape(lambda k: init_params(Decoder(config, scan=scan), k), key)
    expected = random_params(config)
    expected = stack_layers(expected, config) if scan else expected
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


@pytest.mark.extended
def test_a_tied_head_is_an_untied_one_with_the_embedding_copied(key):
    hidden = jax.random.normal(key, (BATCH, TIME, 32))
    tied, untied = (
        tiny_teacher(VOCABULARY, layers=1, tie_embeddings=tied) for tied in (True, False)
    )
    params = random_params(tied)
    copied = {**params, "head": {"kernel": params["embed"]["embedding"]}}
    logits = [
        Decoder(config, jnp.float32, scan=False).apply({"params": p}, hidden, method="logits")
        for config, p in ((tied, params), (untied, copied))
    ]
    np.testing.assert_array_equal(*logits)
    assert output_head(params, tied) is params["embed"]["embedding"]
    assert output_head(copied, untied) is copied["head"]["kernel"]
    assert "head" in random_params(untied)


@pytest.mark.extended
def test_in_bfloat16_only_activations_and_caches_are_narrow(hybrid, tokens):
    decoder = Decoder(hybrid.config, jnp.bfloat16, scan=False)
    state = decode_state(hybrid.config, BATCH, CAPACITY)

    def run(params):
        output = decoder.apply({"params": params}, jnp.asarray(tokens), state=state)
        logits = decoder.apply({"params": params}, output.hidden, method="logits")
        return output.hidden, logits, [jax.tree.leaves(layer)[0] for layer in output.state.layers]

    hidden, logits, layers = jax.eval_shape(run, hybrid.params)
    assert hidden.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    assert [layer.dtype for layer in layers] == [
        jnp.bfloat16,
        jnp.float32,
        jnp.float32,
        jnp.bfloat16,
    ]


@pytest.mark.extended
def test_bfloat16_stays_near_float32(hybrid, tokens):
    decoder = Decoder(hybrid.config, jnp.bfloat16, scan=False)
    run = jax.jit(lambda params: decoder.apply({"params": params}, jnp.asarray(tokens)).hidden)
    gap = np.asarray(run(hybrid.params), np.float32) - hybrid.hidden(tokens)
    assert np.sqrt(np.mean(np.square(gap))) < 0.05
