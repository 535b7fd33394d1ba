import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from hypenet_jax.train.optimizer import (
    Optimizer,
    OptimizerConfig,
    decay_mask,
    learning_rate,
    matrix_axes,
)
from hypenet_jax.train.state import create_state

pytestmark = pytest.mark.brief

CONFIG = OptimizerConfig(peak_lr=1e-3, final_lr=1e-4, warmup_steps=50, steps=1050)
OFFICIAL = dataclasses.replace(CONFIG, first_update_at_zero=True)


def official(n: int, warmup: int, steps: int, floor: float) -> float:
    if n < warmup:
        return n / warmup
    p = (n - warmup) / (steps - warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * p)) / 2


@pytest.mark.parametrize("update", [1, 2, 25, 50, 51, 300, 1049, 1050])
def test_update_k_of_the_published_count_reads_f_of_k_minus_one(update):
    expected = 1e-3 * official(update - 1, 50, 1050, 0.1)
    np.testing.assert_allclose(learning_rate(OFFICIAL, update - 1), expected, rtol=1e-5, atol=1e-12)


def test_published_count_starts_at_zero_and_ours_does_not():
    assert learning_rate(OFFICIAL, 0) == 0
    np.testing.assert_allclose(learning_rate(CONFIG, 0), 1e-3 / 50, rtol=1e-6)


def test_our_count_peaks_at_update_w_and_ends_at_the_final_rate():
    np.testing.assert_allclose(learning_rate(CONFIG, 49), 1e-3, rtol=1e-6)
    np.testing.assert_allclose(learning_rate(CONFIG, 1049), 1e-4, rtol=1e-5)
    np.testing.assert_allclose(learning_rate(CONFIG, 5000), 1e-4, rtol=1e-5)


def test_final_rate_equal_to_peak_is_constant_after_warm_up():
    config = OptimizerConfig(peak_lr=1e-5, final_lr=1e-5, warmup_steps=50, steps=500)
    rates = [float(learning_rate(config, n)) for n in range(49, 500, 45)]
    np.testing.assert_allclose(rates, 1e-5, rtol=1e-6)


def test_no_warm_up_starts_at_or_below_the_peak():
    config = OptimizerConfig(peak_lr=1e-3, final_lr=1e-4, warmup_steps=0, steps=10)
    assert 0.9e-3 < float(learning_rate(config, 0)) <= 1e-3


def gradient(step, param):
    """Larger than the clipping norm and smaller, in turn."""
    return jnp.sin(param * 7 + step) * (10.0 if step % 2 else 0.01)


def test_updates_are_those_of_optax():
    config = dataclasses.replace(CONFIG, weight_decay=0.1, warmup_steps=0)
    ours = Optimizer(config)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(lambda n: learning_rate(config, n), 0.9, 0.95, 1e-8, weight_decay=0.1),
    )
    params = {"a": {"kernel": jax.random.normal(jax.random.key(1), (4, 4))}}
    state, their_state, their_params = ours.init(params), theirs.init(params), params
    for step in range(4):
        gradients = jax.tree.map(functools.partial(gradient, step), params)
        params, state, _ = ours.update(gradients, state, params)
        updates, their_state = theirs.update(gradients, their_state, their_params)
        their_params = optax.apply_updates(their_params, updates)
    np.testing.assert_allclose(params["a"]["kernel"], their_params["a"]["kernel"], rtol=1e-5)


@pytest.mark.parametrize(
    ("path", "ndim", "decayed"),
    [
        (("layer_0", "mlp", "up", "kernel"), 2, True),
        (("embed", "embedding"), 2, True),
        (("layers_0_3", "mlp_norm", "scale"), 2, False),
        (("layer_0", "mixer", "output_norm", "scale"), 2, False),
        (("final_norm", "scale"), 1, False),
        (("anything", "slope"), 1, False),
    ],
)
def test_only_matrices_decay_and_stacked_norm_scales_do_not(path, ndim, decayed):
    mask = decay_mask(unflatten_dict({path: jnp.zeros((2,) * ndim)}))
    assert flatten_dict(mask) == {path: decayed}


def test_weight_decay_leaves_norm_scales_alone():
    optimizer = Optimizer(dataclasses.replace(CONFIG, weight_decay=0.5))
    params = {"norm": {"scale": jnp.ones((3, 4))}, "up": {"kernel": jnp.ones((3, 4))}}
    after, _, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    assert np.array_equal(after["norm"]["scale"], params["norm"]["scale"])
    np.testing.assert_allclose(after["up"]["kernel"], 1 - 0.5 * 1e-3 / 50, rtol=1e-6)


@pytest.mark.parametrize("size", [0.3, 40.0])
def test_clipping_keeps_the_direction_and_reports_the_norm_before_it(size):
    params = {"up": {"kernel": jnp.zeros((2, 2))}}
    gradients = {"up": {"kernel": jnp.full((2, 2), size / 2)}}
    optimizer = Optimizer(CONFIG)
    _, state, metrics = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(metrics["grad_norm"], size, rtol=1e-6)
    clipped = optax.tree.norm(optax.tree.get(state, "mu")) / (1 - 0.9)
    np.testing.assert_allclose(clipped, min(size, 1.0), rtol=1e-5)


@pytest.mark.parametrize(("weights", "least", "most"), [("float32", 0, 0.01), ("bfloat16", 0.8, 1)])
def test_in_bfloat16_most_updates_of_stage_three_change_nothing(weights, least, most):
    config = OptimizerConfig(
        peak_lr=1e-5, final_lr=1e-5, warmup_steps=0, steps=9, clip_norm=None, weights=weights
    )
    optimizer, shape = Optimizer(config), (128, 128)
    params = {"up": {"kernel": 0.02 * jax.random.normal(jax.random.key(0), shape)}}
    state = create_state(params, lambda path: True, optimizer)
    gradients = {"up": {"kernel": jax.random.normal(jax.random.key(1), shape)}}
    after, opt_state, _ = optimizer.update(gradients, state.opt_state, state.params)
    same = np.mean(np.asarray(after["up"]["kernel"] == state.params["up"]["kernel"]))
    assert least <= same <= most
    moments = [optax.tree.get(opt_state, name) for name in ("mu", "nu")]
    assert {leaf.dtype for leaf in jax.tree.leaves((after, moments))} == {jnp.dtype(weights)}


def test_the_gradient_norm_is_reported_without_clipping_too():
    params = {"up": {"kernel": jnp.zeros((2, 2))}}
    optimizer = Optimizer(dataclasses.replace(CONFIG, clip_norm=None))
    gradients = {"up": {"kernel": jnp.full((2, 2), 20.0)}}
    _, state, metrics = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(metrics["grad_norm"], 40.0)
    np.testing.assert_allclose(optax.tree.norm(optax.tree.get(state, "mu")), 4.0, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"peak_lr": 0.0},
        {"final_lr": 1.0},
        {"warmup_steps": 1050},
        {"b2": 1.0},
        {"clip_norm": 0.0},
        {"peak_lr": float("nan")},
        {"weight_decay": -1.0},
    ],
)
def test_senseless_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"\) needs .*{next(iter(wrong))}"):
        dataclasses.replace(CONFIG, **wrong)


def test_an_optimizer_that_is_not_there_is_refused_and_so_is_what_it_does_not_take():
    with pytest.raises(ValueError, match=r"'optax\.adanw' is no import path of an optimizer"):
        dataclasses.replace(CONFIG, name="optax.adanw")
    with pytest.raises(ValueError, match=r"optax\.lion takes no nesterov, eps; it takes learning"):
        dataclasses.replace(CONFIG, name="optax.lion", options=(("nesterov", True),), eps=1e-6)


def test_options_go_to_the_function_of_optax():
    slow = dataclasses.replace(CONFIG, options=(("b1", 0.5),), clip_norm=None)
    params = {"up": {"kernel": jnp.zeros((2, 2))}}
    optimizer = Optimizer(slow)
    gradients = jax.tree.map(jnp.ones_like, params)
    _, state, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(optax.tree.get(state, "mu")["up"]["kernel"], 0.5)


@pytest.mark.parametrize(
    ("names", "sides"),
    [
        (("embed", "mlp"), ((0,), (1,))),
        (("layers", "mlp", "embed"), ((1,), (2,))),
        (("layers", "embed", "heads", "head_dim"), ((1,), (2, 3))),
        (("heads", "head_dim", "embed"), ((0, 1), (2,))),
        (("vocab", "embed"), None),
        (("layers", "norm"), None),
        (("layers", "heads", "head_dim"), None),
    ],
)
def test_a_kernel_is_a_matrix_between_the_width_and_all_its_other_axes(names, sides):
    assert matrix_axes(names) == (sides and optax.contrib.MuonDimensionNumbers(*sides))


@pytest.mark.extended
def test_muon_makes_the_update_of_every_layer_and_head_axis_an_orthogonal_matrix():
    names = {
        "q": {"kernel": ("layers", "embed", "heads", "head_dim")},
        "norm": {"scale": ("norm",)},
    }
    params = {"q": {"kernel": jnp.zeros((2, 8, 2, 4))}, "norm": {"scale": jnp.ones(3)}}
    config = dataclasses.replace(CONFIG, name="optax.contrib.muon", clip_norm=None, warmup_steps=0)
    optimizer = Optimizer(config, names)
    key = jax.random.key(0)
    gradients = jax.tree.map(lambda x: jax.random.normal(key, x.shape), params)
    after, _, metrics = optimizer.update(gradients, optimizer.init(params), params)
    moved = after["q"]["kernel"].reshape(2, 8, 8) / metrics["learning_rate"]
    sizes = jnp.linalg.svd(moved, compute_uv=False)
    assert jnp.all((sizes > 0.3) & (sizes < 1.3))
    steps = jnp.abs(after["norm"]["scale"] - 1) / metrics["learning_rate"]
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)  # Adam's: of one size
