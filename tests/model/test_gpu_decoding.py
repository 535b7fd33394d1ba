"""What a GPU runs for one token of each row: the kernels of a layer, and that they compute the same."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh
from tiny_decoders import CAPACITY

from hypenet_jax.model.decoder import Decoder, decode_state
from pallas_kernels import dispatch

# JAX 0.11 says at every lowering that Pallas for Triton will go; the kernels' files say why it is used.
pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated"),
]
H200 = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H200", 1, "cuda"))


def step(config, dtype):
    """A token after a state, as a new function: what was traced before would not be traced again."""
    decoder = Decoder(config, dtype, scan=False)

    def run(params, state):
        tokens = jnp.ones((state.lengths.size, 1), jnp.int32)
        return decoder.apply({"params": params}, tokens, state=state).hidden

    return jax.jit(run)


@pytest.mark.parametrize(("rows", "projections", "lowered"), [(1, 16, 6), (16, 16, 6), (17, 0, 0)])
def test_a_layer_is_a_kernel_for_each_projection_and_one_for_its_mixer(
    hybrid, rows, projections, lowered
):
    """Those of layers alike are lowered once: two kinds of mixers, and the MLP that both have."""
    text = on_h200(hybrid, rows)
    assert len(re.findall(r"call @_tokens", text)) == projections
    assert text.count('name = "projection"') == lowered
    assert text.count('name = "decode_attention"') == 2
    assert len(re.findall(r"call @_advance", text)) == 2
    assert text.count('name = "lightning_step"') == 1


def on_h200(model, rows):
    """The program of one token after a state, lowered."""
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    state = decode_state(model.config, rows, CAPACITY)
    with jax.sharding.use_abstract_mesh(H200):
        traced = step(model.config, jnp.bfloat16).trace(params, state)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def within_a_document(config):
    """The state of one row after some tokens, which are random."""
    state, rng = decode_state(config, 1, CAPACITY, jnp.float32), np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype)  # noqa: E731
    one = jnp.ones((1,), jnp.int32)
    cache_position = state.cache_position.replace(
        next_position=5 * one, segment_id=one, num_segments=one
    )
    return state.replace(layers=jax.tree.map(draw, state.layers), cache_position=cache_position)


@pytest.mark.parametrize("op", ["projection", "lightning_step"])
def test_a_kernel_is_as_its_definition_in_a_whole_model(hybrid, op, monkeypatch):
    state = within_a_document(hybrid.config)
    expected = step(hybrid.config, jnp.float32)(hybrid.params, state)
    choose = dispatch.choose
    kernel = lambda name, asked, *rest: choose(name, "gpu" if name == op else asked, *rest)  # noqa: E731
    monkeypatch.setattr(dispatch, "choose", kernel)
    with dispatch.interpreted():
        got = step(hybrid.config, jnp.float32)(hybrid.params, state)
    np.testing.assert_allclose(got, expected, atol=2e-5)
