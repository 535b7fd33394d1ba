"""Scaled rotary frequencies: fast ones stay, slow ones are divided by the factor, and the way between is monotone."""

import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.model.hype import rotary_angles
from hypenet_jax.model.mixers import LightningSpec, SoftmaxSpec
from hypenet_jax.model.rope_scaling import LinearScaling, Llama3Scaling, YarnScaling

THETA, WIDTH = 5e5, 128
LLAMA3, YARN = Llama3Scaling(8.0, 1.0, 4.0, 8192), YarnScaling(4.0, 32768)


def frequencies(scaling=None):
    return np.asarray(rotary_angles(jnp.ones((1, 1), jnp.int32), WIDTH, THETA, scaling)[0, 0])


def test_linear_scaling_stretches_all_positions():
    np.testing.assert_allclose(frequencies(LinearScaling(4.0)), frequencies() / 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("scaling", "length", "fast", "slow"), [(LLAMA3, 8192, 4.0, 1.0), (YARN, 32768, 40.0, 0.8)]
)
def test_only_what_turns_rarely_in_the_original_length_is_slowed(scaling, length, fast, slow):
    plain, scaled = frequencies(), frequencies(scaling)
    turns, ratio = plain * length / (2 * np.pi), plain / scaled
    np.testing.assert_allclose(ratio[turns > fast], 1.0, rtol=1e-6)
    np.testing.assert_allclose(ratio[turns < slow], scaling.factor, rtol=1e-5)
    assert (np.diff(ratio) >= -1e-5).all()
    between = (ratio > 1.01) & (ratio < scaling.factor - 0.01)
    assert between.any()


def test_a_blended_frequency_by_hand():
    """Llama 3.1: n = 2 turns, one third of the way from 1 to 4."""
    f = jnp.asarray([2 * 2 * np.pi / 8192], jnp.float32)
    wanted = f / 3 + f / 8 * 2 / 3
    np.testing.assert_allclose(LLAMA3.frequencies(f, THETA), wanted, rtol=1e-6)


def test_yarn_sharpens_the_logits_by_its_factor_squared():
    assert YARN.logit_factor == pytest.approx((0.1 * np.log(4) + 1) ** 2)
    assert YarnScaling(4.0, 32768, attention_factor=1.0).logit_factor == 1.0
    softmax = SoftmaxSpec(4, 2, 16, THETA, rope_scaling=YARN)
    assert softmax.query_scale == pytest.approx(0.25 * YARN.logit_factor)
    assert LightningSpec.from_softmax(softmax).query_scale == pytest.approx(softmax.query_scale)


def test_a_layer_without_positions_has_nothing_to_scale():
    assert SoftmaxSpec(4, 2, 16, THETA, rope_scaling=YARN).without_positions().query_scale == 0.25
    with pytest.raises(ValueError, match="rope_theta is None"):
        SoftmaxSpec(4, 2, 16, rope_scaling=YARN)
