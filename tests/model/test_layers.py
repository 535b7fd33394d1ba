import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.model.layers import GatedMLP, Initialization, RMSNorm
from hypenet_jax.model.mixers import LightningSpec
from hypenet_jax.model.mixers.lightning import slopes
from pallas_kernels.projection import projection


def test_the_norm_divides_by_the_root_mean_square(key):
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    scale = np.linspace(0.5, 2, 8, dtype=np.float32)
    norm = RMSNorm((8,), ("norm",), 1e-2)
    y = norm.apply({"params": {"scale": jnp.asarray(scale)}}, jnp.asarray(x))
    expected = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-2) * scale
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_the_joint_norm_takes_one_mean_over_all_heads():
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 4)).astype(np.float32)
    scale = np.linspace(0.5, 2, 12, dtype=np.float32).reshape(3, 4)
    joint = RMSNorm((3, 4), ("heads", "head_dim"), 1e-6)
    given = {"params": {"scale": jnp.asarray(scale)}}
    norm = joint.apply(given, method="before_product")
    (y,) = projection(jnp.asarray(x.reshape(1, 2, 12)), (jnp.eye(12),), norm=norm)
    flat = RMSNorm((12,), ("norm",), 1e-6)
    flattened = jnp.asarray(scale.reshape(12))
    expected = flat.apply({"params": {"scale": flattened}}, jnp.asarray(x.reshape(1, 2, 12)))
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_the_norm_is_narrowed_before_its_weight_is_applied():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 64)), jnp.bfloat16)
    scale = jnp.asarray(np.random.default_rng(1).uniform(0.5, 2, 64), jnp.float32)
    y = RMSNorm((64,), ("norm",), 1e-6).apply({"params": {"scale": scale}}, x)
    wide = x.astype(jnp.float32)
    normed = wide / jnp.sqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + 1e-6)
    narrow = normed.astype(jnp.bfloat16) * scale.astype(jnp.bfloat16)[None, None]
    assert y.dtype == jnp.bfloat16
    assert np.mean(np.asarray(y == narrow)) > 0.99


def test_the_mlp_is_silu_of_the_gate_times_up():
    draws = np.random.default_rng(0)
    gate, up, down = (
        draws.standard_normal(s).astype(np.float32) for s in ((8, 12), (8, 12), (12, 8))
    )
    x = draws.standard_normal((1, 3, 8)).astype(np.float32)
    kernels = {"gate": gate, "up": up, "down": down}
    params = {name: {"kernel": jnp.asarray(kernel)} for name, kernel in kernels.items()}
    mlp = GatedMLP(8, 12, Initialization())
    g = x @ gate
    expected = (g / (1 + np.exp(-g)) * (x @ up)) @ down
    np.testing.assert_allclose(
        mlp.apply({"params": params}, jnp.asarray(x)), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("heads", [16, 32])
def test_slopes_of_a_power_of_two_are_a_geometric_series(heads):
    np.testing.assert_allclose(
        slopes(heads), 2.0 ** (-8 * np.arange(1, heads + 1) / heads), rtol=1e-6
    )
    assert slopes(heads)[0] == pytest.approx({16: 0.7071068, 32: 0.8408964}[heads])
    assert slopes(heads)[-1] == 0.00390625


def test_slopes_of_other_counts_fill_up_from_the_next_power():
    first = [2.0**-i for i in range(1, 9)]
    np.testing.assert_allclose(slopes(12), [*first, 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5], rtol=1e-6)


@pytest.mark.parametrize(("name", "factor"), [("1/sqrt(d)", 0.25), ("1/d", 0.0625), ("1", 1.0)])
def test_the_lightning_scale_has_three_names(name, factor):
    assert LightningSpec(2, 16, None, scale=name).query_scale == factor
