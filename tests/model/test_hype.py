import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.model.hype import LogLengthScale, rotary_angles, rounded_tables, table
from hypenet_jax.model.mixers.lightning import slopes
from pallas_kernels.norm_rotary import rotate

pytestmark = pytest.mark.brief

POSITIONS = np.asarray([[0, 1, 499, 500, 16_383, 131_071, 1_048_575]], np.int32)


def test_the_logit_scale_is_log_t_plus_a_over_log_a():
    scale = LogLengthScale(500.0).at(jnp.asarray(POSITIONS))
    expected = np.log(POSITIONS + 500.0) / np.log(500.0)
    np.testing.assert_allclose(scale, expected, rtol=1e-6)
    assert scale[0, 0] == 1.0
    assert scale.dtype == jnp.float32


def test_a_fraction_of_a_counts_in_the_numerator_alone():
    scale = LogLengthScale(500.75).at(jnp.asarray(POSITIONS))
    np.testing.assert_allclose(scale, np.log(POSITIONS + 500.75) / np.log(500.0), rtol=1e-6)


def test_far_neighbours_have_different_scales():
    scale = LogLengthScale(500.0).at(jnp.asarray([[16_000, 16_100]]))
    assert scale[0, 1] > scale[0, 0]


def test_a_below_two_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        LogLengthScale(1.5)


def test_angles_are_float32_and_as_exact_as_that_allows():
    angles = rotary_angles(jnp.asarray(POSITIONS), 128, 1e6)
    frequency = 1e6 ** (-np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(angles[0], POSITIONS[0][:, None] * frequency, rtol=1e-6)
    assert angles.dtype == jnp.float32


@pytest.mark.parametrize(("position", "gap"), [(511, 0.6), (16_383, 19.0)])
def test_rounded_tables_are_as_far_off_as_the_official_ones(position, gap):
    exact = rotary_angles(jnp.asarray([[position]]), 128, 1e6)
    with rounded_tables():
        rounded = rotary_angles(jnp.asarray([[position]]), 128, 1e6)
        decays = table(jnp.asarray(slopes(32)))
    assert np.abs(rounded - exact).max() == pytest.approx(gap, rel=0.05)
    assert np.abs(decays / slopes(32) - 1).max() == pytest.approx(1.4e-3, rel=0.05)
    np.testing.assert_array_equal(rotary_angles(jnp.asarray([[position]]), 128, 1e6), exact)


def test_a_compiled_function_is_not_shared_between_rounded_tables_and_exact_ones():
    angle = jax.jit(lambda: rotary_angles(jnp.asarray([[511]]), 128, 1e6))
    exact = angle()
    with rounded_tables():
        assert np.abs(angle() - exact).max() > 0.5
    np.testing.assert_array_equal(angle(), exact)


def test_dimension_j_turns_with_j_plus_half():
    position = jnp.asarray([[3]])
    turned = rotate(jnp.eye(8)[None, None, 1:2], rotary_angles(position, 8, 100.0))[0, 0, 0]
    angle = 3 * 100.0 ** (-2 / 8)
    expected = np.zeros(8)
    expected[1], expected[5] = math.cos(angle), math.sin(angle)
    np.testing.assert_allclose(turned, expected, atol=1e-6)


def test_rotation_keeps_norms_and_position_zero(key):
    x = jax.random.normal(key, (1, 7, 2, 16))
    turned = rotate(x, rotary_angles(jnp.asarray(POSITIONS), 16, 1e6))
    norms = [np.linalg.norm(y, axis=-1) for y in (turned, x)]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])


def test_products_of_rotated_vectors_depend_on_the_distance_alone(key):
    q, k = jax.random.normal(key, (2, 1, 1, 1, 16))
    product = lambda t, s: jnp.sum(at(q, t) * at(k, s))  # noqa: E731
    at = lambda x, t: rotate(x, rotary_angles(jnp.asarray([[t]]), 16, 1e4))  # noqa: E731
    np.testing.assert_allclose(product(9, 4), product(105, 100), atol=1e-4)
    assert abs(product(9, 4) - product(9, 5)) > 1e-3


@pytest.mark.extended
def test_bfloat16_heads_turn_in_bfloat16_by_angles_of_float32(key):
    x = jax.random.normal(key, (1, 7, 1, 16), jnp.bfloat16)
    angles = rotary_angles(jnp.asarray(POSITIONS), 16, 1e6)
    turned = rotate(x, angles)
    assert turned.dtype == jnp.bfloat16
    exact = rotate(x.astype(jnp.float32), angles)
    np.testing.assert_allclose(turned.astype(jnp.float32), exact, atol=0.04)
