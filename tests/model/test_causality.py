"""Nothing looks ahead: gradients from an output to later inputs are exactly zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoders import TIME, WIDE_START

from hypenet_jax.model.mixers import LightningSpec, SoftmaxSpec
from hypenet_jax.model.token_layout import layout_tokens

pytestmark = pytest.mark.brief

MIXERS = {
    "softmax": SoftmaxSpec(4, 2, 8, 1e4, output_gate=True),
    "lightning": LightningSpec(4, 8, 1e4),
}


def influence(run, x):
    """[T, T]: size of the gradient from output t (a random mixture of its numbers) to input s."""
    out, pull = jax.vjp(run, x)
    mixture = jax.random.normal(jax.random.key(1), out.shape[-1:])
    at = lambda t: jnp.zeros_like(out).at[0, t].set(mixture)  # noqa: E731
    gradients = jax.vmap(lambda t: pull(at(t))[0])(jnp.arange(x.shape[1]))
    return jnp.abs(gradients).sum(axis=(1, 3))


def assert_causal(sizes):
    later = np.triu(np.ones(sizes.shape, bool), k=1)
    assert np.all(sizes[later] == 0.0)
    assert np.all(sizes[~later] > 0.0)


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_sees_every_earlier_token_and_no_later_one(name):
    mixer = MIXERS[name].module(d_model=16, norm_eps=1e-6, start=WIDE_START, dtype=jnp.float32)
    x = jax.random.normal(jax.random.key(0), (1, TIME, 16))
    layout, _ = layout_tokens(1, TIME, None, None, None)

    @jax.jit
    def sizes(key, x):
        params = mixer.init(key, x, layout, None)
        return influence(lambda x: mixer.apply(params, x, layout, None)[0], x)

    assert_causal(np.asarray(sizes(jax.random.key(2), x)))


def test_the_decoder_sees_every_earlier_token_and_no_later_one(hybrid):
    x = jax.random.normal(jax.random.key(0), (1, TIME, 32))
    run = lambda x: hybrid.decoder.apply({"params": hybrid.params}, x).hidden  # noqa: E731
    assert_causal(np.asarray(jax.jit(lambda x: influence(run, x))(x)))


def test_no_gradient_crosses_the_border_of_two_documents(hybrid):
    segment_ids = jnp.asarray([[1] * 10 + [2] * (TIME - 10)])
    x = jax.random.normal(jax.random.key(0), (1, TIME, 32))
    run = lambda x: hybrid.decoder.apply({"params": hybrid.params}, x, None, segment_ids).hidden  # noqa: E731
    sizes = np.asarray(jax.jit(lambda x: influence(run, x))(x))
    assert np.all(sizes[10:, :10] == 0.0)
    assert_causal(sizes[10:, 10:])
