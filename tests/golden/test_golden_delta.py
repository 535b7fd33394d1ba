"""Gated delta net and Kimi delta attention against the official code: op, gate, convolution, whole layers."""

import functools

import golden_recipe
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import record

from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.layers import Initialization
from hypenet_jax.model.mixers import GatedDeltaSpec, KimiDeltaSpec
from hypenet_jax.model.mixers.delta import DecayRate
from hypenet_jax.model.short_conv import short_conv
from hypenet_jax.model.token_layout import layout_tokens
from hypenet_jax.weights.names import Tensor, flatten, nest, tensors, to_ours
from pallas_kernels import gated_delta_rule

pytestmark = pytest.mark.brief

LAYERS = {"gdn": GatedDeltaSpec(4, 16, num_kv_heads=2), "kda": KimiDeltaSpec(4, 16)}
WIDTH, TIME = 64, 70
ARRAYS = ("q", "k", "v", "g", "beta", "initial_state")


@functools.cache
def recorded():
    with np.load(golden_recipe.HERE / "delta.npz") as file:
        return {name: jnp.asarray(x) for name, x in file.items()}


def of(case):
    """Arrays of a case by their names."""
    return {k.removeprefix(case): x for k, x in recorded().items() if k.startswith(case)}


def assert_close(ours, theirs, tolerance):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["gdn_op", "kda_op"])
def test_the_op_and_its_gradients_are_the_official_ones_where_decays_are_strong(op):
    case = of(f"{op}/strong_decay.")

    def run(arrays):
        out, last = gated_delta_rule(*arrays, scale=float(case["scale"]))
        weighed = jnp.sum(out * case["cot_o"]) + jnp.sum(last * case["cot_final_state"])
        return weighed, (out, last)

    gradients, (out, last) = jax.jit(jax.grad(run, has_aux=True))([case[x] for x in ARRAYS])
    assert_close(out, case["o"], 1e-5)
    assert_close(last, case["final_state"], 1e-5)
    for name, gradient in zip(ARRAYS, gradients, strict=True):
        assert_close(gradient, case[f"grad_{name}"], 3e-5)


@pytest.mark.parametrize("cached", [False, True])
def test_short_convolutions_are_the_official_ones(cached):
    case = of("kda_op/conv_with_cache." if cached else "kda_op/conv.")
    by_time = lambda state: jnp.swapaxes(state, 1, 2)[:, 1:, :, None]  # noqa: E731
    before = by_time(case["initial_state"]) if cached else None
    layout, _ = layout_tokens(*case["x"].shape[:2])
    y, after = short_conv(case["x"][..., None], case["weight"], before, layout)
    assert_close(y[..., 0], case["y"], 2e-6)
    np.testing.assert_array_equal(after, by_time(case["final_state"]))


def test_the_gate_is_the_official_one():
    case = of("kda_op/gate.")
    params = {"log_rate": case["A_log"].reshape(4), "bias": case["dt_bias"].reshape(4, 16)}
    rate = DecayRate((4, 16), ("heads", "head_dim"))
    raw = case["raw"].reshape(2, 8, 4, 16)
    np.testing.assert_allclose(rate.apply({"params": params}, raw), case["g"], rtol=1e-5)


def parameters(spec) -> dict[str, Tensor]:
    """Those of a mixer by their official names."""
    widths = {"vocab_size": 1, "d_model": WIDTH, "d_mlp": 1}
    config = ModelConfig(**widths, mixers=(spec,), tie_embeddings=True)
    prefix = "model.layers.0.self_attn."
    found = [tensor for tensor in tensors(config) if tensor.theirs.startswith(prefix)]
    return {tensor.theirs.removeprefix(prefix): tensor for tensor in found}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_its_state_and_its_gradients_are_the_official_ones(name):
    spec, case, theirs = LAYERS[name], of(f"{name}/"), of(f"{name}/weights.")
    known = parameters(spec)
    assert set(theirs) == set(known)
    mixer = spec.module(d_model=WIDTH, norm_eps=1e-6, start=Initialization(), dtype=jnp.float32)
    layout, _ = layout_tokens(2, TIME)

    def run(params, x):
        empty = spec.init_state(2, 0, jnp.float32)
        y, state = mixer.apply({"params": params}, x, layout, empty)
        return jnp.sum(y * case["default.cot"]), (y, state.recurrent_state)

    weights = {t.ours: to_ours(theirs[key], t.our_shape, t.groups) for key, t in known.items()}
    weights = nest(weights)["layer_0"]["mixer"]
    both = jax.jit(jax.grad(run, (0, 1), has_aux=True))
    (gradients, d_x), (y, state) = both(weights, case["x"])
    thin = lambda x: np.asarray(x)[record.places(x.shape)]  # noqa: E731
    assert_close(thin(y), case["default.out"], 3e-5)
    assert_close(thin(state), case["default.final_state"], 1e-5)
    ours = flatten({"layer_0": {"mixer": gradients}})
    for key, gradient in {
        "x": d_x,
        **{k: t.to_theirs(ours[t.ours]) for k, t in known.items()},
    }.items():
        expected = case[f"default.grad.{key}"]
        assert_close(thin(gradient), expected, 3e-5 * np.abs(expected).max())
