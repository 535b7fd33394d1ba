"""Lightning heads that share keys and values are heads whose keys and values are equal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.model.layers import Initialization
from hypenet_jax.model.mixers import LightningSpec
from hypenet_jax.model.token_layout import layout_tokens
from hypenet_jax.testing import random_params, tiny_teacher

pytestmark = pytest.mark.brief

GROUPED = LightningSpec(4, 8, 1e4, num_kv_heads=2, qkv_bias=True)
EXPANDED = dataclasses.replace(GROUPED, num_kv_heads=None)
SPECS = (GROUPED, EXPANDED)
TIME, WIDTH = 9, 32


def outputs(spec: LightningSpec, params, x) -> tuple[jax.Array, jax.Array]:
    """Of all tokens at once, and of the last one after a state of those before."""
    mixer = spec.module(d_model=WIDTH, norm_eps=1e-6, start=Initialization(), dtype=jnp.float32)
    apply = lambda x, layout, state: mixer.apply({"params": params}, x, layout, state)  # noqa: E731
    whole, _ = apply(x, layout_tokens(2, TIME, None, None, None)[0], None)
    before = layout_tokens(2, TIME - 1, None, None, None)[0]
    _, state = apply(x[:, :-1], before, spec.init_state(2, 0, jnp.float32))
    position = jnp.full((2, 1), TIME - 1)
    one, _ = apply(x[:, -1:], layout_tokens(2, 1, position, None, None)[0], state)
    return whole, one


def test_grouped_heads_are_expanded_ones_with_equal_keys_and_values():
    config = tiny_teacher(family="qwen2")
    theirs = random_params(config)["layer_0"]["mixer"]
    made = [spec.params_from_softmax(theirs, jax.random.key(1)) for spec in (GROUPED, EXPANDED)]
    for name in ("k", "v"):
        jax.tree.map(np.testing.assert_array_equal, made[0][name], theirs[name])
    x = jax.random.normal(jax.random.key(0), (2, TIME, WIDTH))
    run = jax.jit(lambda made, x: [outputs(*pair, x) for pair in zip(SPECS, made, strict=True)])
    ours, expanded = run(made, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, expanded)
    np.testing.assert_allclose(ours[0][:, -1:], ours[1], atol=1e-5)


def test_grouped_heads_cost_smaller_projections_and_the_same_state():
    assert GROUPED.projection_flops(WIDTH) == (2 * 32 * 8 * (4 + 2 + 2 + 4), 2 * 32 * 8 * 4)
    assert GROUPED.state_bytes(0, 2) == EXPANDED.state_bytes(0, 2)
