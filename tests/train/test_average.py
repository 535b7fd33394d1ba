"""An average of the weights, which is what a stage evaluates and leaves where it is asked for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_toy import OPTIMIZER, init, run, trainable

from hypenet_jax.train.metrics import read_metrics
from hypenet_jax.train.optimizer import Optimizer
from hypenet_jax.train.state import create_state

pytestmark = pytest.mark.brief

AVERAGED = Optimizer(dataclasses.replace(OPTIMIZER.config, average_decay=0.5))


def test_it_keeps_more_of_itself_from_update_to_update_up_to_its_decay():
    optimizer = Optimizer(dataclasses.replace(OPTIMIZER.config, average_decay=0.15))
    params = ones = {"up": {"kernel": jnp.ones((2, 2))}}
    state = optimizer.init(params)
    expected = np.asarray(params["up"]["kernel"])
    for decay in (1 / 11, 0.15, 0.15):
        params, state, _ = optimizer.update(ones, state, params)
        expected = decay * expected + (1 - decay) * np.asarray(params["up"]["kernel"])
        np.testing.assert_allclose(state.average["up"]["kernel"], expected, rtol=1e-6)


def test_it_is_evaluated_and_left_beside_what_is_frozen(tmp_path):
    start = create_state(init(jax.random.key(0)), trainable, AVERAGED)
    state = run(tmp_path, steps=3, optimizer=AVERAGED, state=start)
    left, held = state.weights, state.params["held"]["kernel"]
    (*_, last) = (r for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "evaluation")
    assert last["norm"] == pytest.approx(float(jnp.sum(left["norm"]["scale"])), rel=1e-6)
    assert last["norm"] != pytest.approx(float(jnp.sum(state.params["norm"]["scale"])), rel=1e-6)
    np.testing.assert_array_equal(left["held"]["kernel"], held)
    assert "held" not in state.opt_state.average


def test_without_it_the_state_is_what_it_was():
    state = create_state(init(jax.random.key(0)), trainable, OPTIMIZER)
    assert state.opt_state.average is None
    assert state.weights is state.params


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_a_decay_that_keeps_nothing_or_all_is_refused(decay):
    with pytest.raises(ValueError, match="average_decay in"):
        dataclasses.replace(OPTIMIZER.config, average_decay=decay)
