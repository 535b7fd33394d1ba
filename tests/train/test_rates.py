"""Parts of a model that learn at rates of their own, or not at all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_toy import OPTIMIZER, init, trainable

from hypenet_jax.train.optimizer import Optimizer
from hypenet_jax.train.rates import check_rates, factor, scaled, summary

RATES = (("*/scale", 0.0), ("head/*", 0.1), ("*", 0.5))
PARAMS = jax.eval_shape(init, jax.random.key(0))


def test_the_first_pattern_that_matches_decides_and_one_where_none_does():
    paths = ("norm", "scale"), ("head", "kernel"), ("embed", "embedding")
    assert [factor(RATES, path) for path in paths] == [0.0, 0.1, 0.5]
    assert factor(RATES[:2], ("embed", "embedding")) == 1.0


def test_an_update_is_that_of_the_plain_optimizer_times_the_factor():
    """Clipping and moments are those of all parameters, and without rates nothing is touched."""
    slow = Optimizer(dataclasses.replace(OPTIMIZER.config, rates=RATES))
    params = {"norm": {"scale": jnp.ones(3)}, "head": {"kernel": jnp.ones((3, 2))}}
    gradients = jax.tree.map(lambda x: 3.0 * x, params)
    plain, slowed = (
        optimizer.update(gradients, optimizer.init(params), params)
        for optimizer in (OPTIMIZER, slow)
    )
    moved, less = (jax.tree.map(lambda x: x - 1, after[0]) for after in (plain, slowed))
    np.testing.assert_array_equal(less["norm"]["scale"], 0.0)
    np.testing.assert_allclose(less["head"]["kernel"], 0.1 * moved["head"]["kernel"], rtol=1e-3)
    jax.tree.map(np.testing.assert_array_equal, plain[1:], slowed[1:])
    assert scaled((), gradients) is gradients


def test_what_trains_is_told_with_counts():
    text = summary((("head/*", 0.1), ("norm/*", 0.0)), PARAMS, trainable)
    assert text == (
        "trains 256 of 328 parameters; at 0.1 of the learning rate: 128 in 1 arrays; frozen: 72 in 2 arrays"
    )
    assert summary((), PARAMS, lambda path: True) == "trains 328 of 328 parameters"


@pytest.mark.parametrize(
    ("rates", "reason"),
    [
        ((("head/*", 0.5), ("mlp/*", 0.0)), r"mlp/\* decides over no parameter"),
        ((("*", 0.5), ("head/*", 0.0)), r"head/\* decides over no parameter"),
        ((("*", 0.0),), "every parameter is frozen"),
    ],
)
def test_rates_that_do_nothing_or_freeze_all_are_refused(rates, reason):
    with pytest.raises(ValueError, match=reason):
        check_rates(rates, PARAMS)


def test_a_rate_below_zero_is_refused():
    with pytest.raises(ValueError, match="rates of at least 0"):
        dataclasses.replace(OPTIMIZER.config, rates=(("*", -1.0),))
