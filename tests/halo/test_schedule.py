"""Weights of a loss that change from step to step."""

import jax
import jax.numpy as jnp
import pytest

from hypenet_jax.halo.schedule import final, peak, problem, vanishes_at, weight_at

RISING = ((10, 0.0), (20, 1.0), (40, 0.5))


def test_it_is_linear_between_its_steps_and_constant_outside():
    at = jax.jit(lambda step: weight_at(RISING, step))
    steps = (0, 10, 15, 20, 30, 40, 10**6)
    assert [float(at(jnp.int32(n))) for n in steps] == [0.0, 0.0, 0.5, 1.0, 0.75, 0.5, 0.5]
    assert (peak(RISING), final(RISING)) == (1.0, 0.5)


def test_a_number_is_the_same_at_every_step_and_no_array():
    assert weight_at(0.3, jnp.int32(7)) == peak(0.3) == final(0.3) == 0.3
    assert isinstance(weight_at(0.3, jnp.int32(7)), float)


@pytest.mark.parametrize("weight", [((5, 1.0), (5, 2.0)), ((-1, 1.0),), (), -0.1, ((0, -1.0),)])
def test_what_is_no_schedule_is_refused_by_name(weight):
    assert str(problem("hidden_weight", weight)).startswith("hidden_weight needs")
    assert problem("hidden_weight", RISING) is None


def test_the_first_step_at_which_all_weights_are_zero_is_found():
    assert vanishes_at([RISING, ((0, 1.0), (5, 0.0))]) == 5
    assert vanishes_at([RISING, ((0, 1.0), (15, 0.0))]) is None
    assert vanishes_at([0.0, 0.0]) == 0
