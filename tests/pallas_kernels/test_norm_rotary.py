"""Every implementation of norm and rotary positions answers the same questions."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from meshes import CALL
from meshes import on_platform as on

from pallas_kernels import UnsupportedError, dispatch
from pallas_kernels.norm_rotary import IMPLEMENTATIONS, gpu, norm_rotary, tpu

# JAX 0.11 says at every lowering that Pallas for Triton will go; gpu.py says why it is used.
pytestmark = [
    pytest.mark.brief,
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated"),
]
EPS = 1e-6
every = pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several steps of a kernel, the last one not full; interpreted."""
    monkeypatch.setattr(tpu, "BLOCK_BYTES", 4 * 32 * 48)
    monkeypatch.setattr(gpu, "TILE", 64 * 16)
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
    expected = run(x.astype(jnp.float32), scale, angles, "reference")
    oracles.assert_close(out, expected, 4e-3)
    assert gradients(x, scale, angles, implementation)[0].dtype == jnp.bfloat16


@every
@pytest.mark.parametrize("length", [1, 31, 33])
def test_any_length_equals_the_reference(implementation, length):
    arguments = inputs(length, heads=5, width=8)
    got = run(*arguments, implementation), gradients(*arguments, implementation)
    expected = run(*arguments, "reference"), gradients(*arguments, "reference")
    oracles.assert_close(got, expected, 1e-6)


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


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_none_chooses_one_kernel_forward_and_one_backward(platform):
    def loss(x, scale, angles):
        return jnp.sum(norm_rotary(x, scale, angles, eps=EPS), dtype=jnp.float32)

    def kernels(length, dtype, kind=None, **axes):
        x, scale, angles = inputs(length, width=128, dtype=dtype)
        with dispatch._interpreting(False), on(platform, kind, **axes):
            # With the value: newer JAX leaves out a forward kernel whose results nothing reads.
            traced = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(x, scale, angles)
            text = traced.lower(lowering_platforms=(platform,)).as_text()
        return text.count(CALL[platform])

    assert kernels(64, jnp.bfloat16) == 2
    assert kernels(70, jnp.float32) == 2
    assert kernels(1, jnp.float32) == 0
    assert kernels(64, jnp.bfloat16, data=2) == 0
    if platform == "cuda":
        assert kernels(64, jnp.float32, "Tesla V100-SXM2-16GB") == 0


@pytest.mark.parametrize(("heads", "width"), [(5, 96), (1, 2), (3, 512)])
def test_gpu_heads_of_any_number_and_width_lower_without_copies(heads, width):
    def both(*arrays):
        out, pull_back = jax.vjp(lambda *a: norm_rotary(*a, eps=EPS), *arrays)
        return out, pull_back(out)

    with dispatch._interpreting(False), on("cuda"):
        traced = jax.jit(both).trace(*inputs(131, heads, width, jnp.bfloat16))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count(CALL["cuda"]) == 2
    moves = [line for line in text.splitlines() if "stablehlo.pad" in line or "transpose" in line]
    assert not moves


def test_what_a_kernel_cannot_run_is_refused_with_what_would():
    def refused(match, name, place=None, width=128, dtype=jnp.float32):
        def run():
            return norm_rotary(*inputs(4, 3, width, dtype), eps=EPS, implementation=name)

        with place or contextlib.nullcontext(), pytest.raises(UnsupportedError, match=match):
            jax.eval_shape(run)

    with dispatch._interpreting(False):
        refused("needs a TPU, and this runs on cpu; use 'permuted'", "tpu")
        refused("multiple of 128, and it is 64; use", "tpu", on("tpu"), width=64)
        refused("the mesh has several devices; use", "tpu", on("tpu", data=2))
        refused("needs a GPU, and this runs on cpu; use 'reference'", "gpu")
        refused("needs a GPU of A100, .*, and this is Tesla", "gpu", on("cuda", "Tesla T4"))
        refused("takes bfloat16 or float32, and x is float16", "gpu", dtype=jnp.float16)
        refused("the mesh has several devices; use", "gpu", on("cuda", data=2))


def test_angles_that_do_not_fit_the_width_are_refused():
    x, scale, angles = inputs()
    with pytest.raises(ValueError, match="has 4 angles for heads of 16; give half the width"):
        norm_rotary(x, scale, angles[..., :4], eps=EPS)
