"""What a whole lightning layer moves through memory on a TPU, by the compiler's own account; no TPU needed."""

import importlib.util
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from hypenet_jax.model.layers import Initialization
from hypenet_jax.model.mixers import LightningSpec
from hypenet_jax.model.token_layout import TokenLayout
from pallas_kernels import compile as aot

LENGTH, WIDTH = 16_384, 2048
SPEC = LightningSpec(num_heads=16, head_dim=128, rope_theta=1e6)


@pytest.fixture(scope="module")
def compiled():
    """The mixer of HypeNet-2B on one row, forward, for one v5e."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'hypenet-jax[tpu]'")
    os.environ.update(aot.ENVIRONMENT)
    mixer = SPEC.module(
        d_model=WIDTH, norm_eps=1e-6, start=Initialization(), dtype=jnp.bfloat16, name=None
    )
    x = jax.ShapeDtypeStruct((1, LENGTH, WIDTH), jnp.bfloat16)
    positions = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)

    def layout(positions):
        return TokenLayout(positions, None, single_segment=True)

    def init(x, positions):
        return mixer.init(jax.random.key(0), x, layout(positions), None)

    def forward(params, x, positions):
        return mixer.apply(params, x, layout(positions), None)[0]

    params = nn.meta.unbox(jax.eval_shape(init, x, positions))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params)
    with jax.set_mesh(aot.mesh_of("v5e")):
        traced = jax.jit(forward).trace(params, x, positions)
        return traced.lower(lowering_platforms=("tpu",)).compile()


@pytest.mark.aot
def test_a_lightning_layer_runs_three_kernels_and_moves_little_else(compiled):
    hlo = compiled.as_text()
    assert hlo.count('custom_call_target="tpu_custom_call"') == 3  # q and k, and the attention
    accessed = compiled.cost_analysis()["bytes accessed"]
    print(f"bytes accessed: {accessed / 1e9:.3f} GB")
    assert accessed <= 1.8e9
