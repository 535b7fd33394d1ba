"""Every implementation of norm and rotary positions answers the same questions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels import UnsupportedError, dispatch
from pallas_kernels.norm_rotary import IMPLEMENTATIONS, norm_rotary, tpu

EPS = 1e-6
every = pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Three steps of a kernel, the last one not full; interpreted."""
    monkeypatch.setattr(tpu, "BLOCK_BYTES", 4 * 32 * 48)
    with dispatch.interpreted():
        yield


def inputs(length=70, heads=3, width=16, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, length, heads, width)) * rng.lognormal(size=(2, length, heads, 1))
    angles = rng.uniform(0, 1e4, (2, length, width // 2))
    scale = rng.uniform(0.5, 2, width)
    return jnp.asarray(x, dtype), jnp.asarray(scale, jnp.float32), jnp.asarray(angles, jnp.float32)


@functools.partial(jax.jit, static_argnames="implementation")
def run(x, scale, angles, implementation=None):
    return norm_rotary(x, scale, angles, eps=EPS, implementation=implementation)


@functools.partial(jax.jit, static_argnames="implementation")
def gradients(x, scale, angles, implementation=None):
    def loss(x, scale):
        return oracles.scalar(run(x, scale, angles, implementation))

    return jax.grad(loss, (0, 1))(x, scale)


@functools.cache
def float64():
    """Written with complex numbers: a rotation is a product with e^(i angle)."""
    x, scale, angles = inputs()
    turn = np.exp(1j * np.asarray(angles, np.float64))[:, :, None]

    def definition(x, scale):
        y = x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + EPS) * scale[None, None, None]
        half = y.shape[-1] // 2
        turned = (y[..., :half] + 1j * y[..., half:]) * turn
        return jnp.concatenate([turned.real, turned.imag], -1)

    return oracles.value_and_gradients(definition, x, scale)


@every
def test_outputs_and_gradients_match_float64(implementation):
    out, grads = float64()
    oracles.assert_close(run(*inputs(), implementation), out, 1e-6)
    oracles.assert_close(gradients(*inputs(), implementation), grads, 1e-6)


@every
def test_bfloat16_loses_only_roundings(implementation):
    x, scale, angles = inputs(dtype=jnp.bfloat16)
    out = run(x, scale, angles, implementation)
    assert out.dtype == jnp.bfloat16
    want = run(x.astype(jnp.float32), scale, angles, "reference")
    oracles.assert_close(out, want, 4e-3)
    assert gradients(x, scale, angles, implementation)[0].dtype == jnp.bfloat16


@every
@pytest.mark.parametrize("length", [1, 31, 33])
def test_any_length_equals_the_reference(implementation, length):
    arguments = inputs(length, heads=5, width=8)
    got = run(*arguments, implementation), gradients(*arguments, implementation)
    want = run(*arguments, "reference"), gradients(*arguments, "reference")
    oracles.assert_close(got, want, 1e-6)


@every
def test_products_of_queries_and_keys_depend_on_distance_alone(implementation):
    q, scale, _ = inputs(length=64, heads=1)
    positions = jnp.arange(64, dtype=jnp.float32)[None, :, None]
    frequencies = jnp.exp2(-jnp.arange(8, dtype=jnp.float32))[None, None]

    def products(shift):
        angles = jnp.broadcast_to((positions + shift) * frequencies, (2, 64, 8))
        y = run(q, scale, angles, implementation)
        return jnp.einsum("btnh,bsnh->bts", y, y)

    oracles.assert_close(products(100.0), products(0.0), 1e-5)


@every
def test_the_angles_are_constants(implementation):
    x, scale, angles = inputs()
    gradient = jax.jit(jax.grad(lambda a: jnp.sum(run(x, scale, a, implementation))))(angles)
    assert not np.any(gradient)


def on_tpu(*axes):
    device = AbstractDevice("TPU v5 lite", 1, "tpu")
    sizes, kinds = tuple(axes), (jax.sharding.AxisType.Auto,) * len(axes)
    mesh = AbstractMesh(sizes, tuple("abc"[: len(axes)]), kinds, abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def test_forward_and_backward_lower_for_a_tpu():
    def loss(x, scale, angles):
        return jnp.sum(norm_rotary(x, scale, angles, eps=EPS), dtype=jnp.float32)

    def kernels(length, dtype):
        x, scale, angles = inputs(length, width=128, dtype=dtype)
        traced = jax.jit(jax.grad(loss, (0, 1))).trace(x, scale, angles)
        return traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call")

    with dispatch._interpreting(False), on_tpu():
        assert kernels(64, jnp.bfloat16) == 2
        assert kernels(70, jnp.float32) == 2
        assert kernels(1, jnp.float32) == 0
    with dispatch._interpreting(False), on_tpu(2):
        assert kernels(64, jnp.bfloat16) == 0


def test_what_a_tpu_cannot_run_is_refused_with_what_would():
    def run(width=128):
        return jax.eval_shape(
            lambda: norm_rotary(*inputs(4, width=width), eps=EPS, implementation="tpu")
        )

    with dispatch._interpreting(False):
        with pytest.raises(UnsupportedError, match="needs a TPU, and this runs on cpu; use"):
            run()
        with on_tpu(), pytest.raises(UnsupportedError, match="multiple of 128, and it is 64; use"):
            run(64)
        with on_tpu(2), pytest.raises(UnsupportedError, match="the mesh has several devices; use"):
            run()


def test_angles_that_do_not_fit_the_width_are_refused():
    x, scale, angles = inputs()
    with pytest.raises(ValueError, match="has 4 angles for heads of 16; give half the width"):
        norm_rotary(x, scale, angles[..., :4], eps=EPS)
