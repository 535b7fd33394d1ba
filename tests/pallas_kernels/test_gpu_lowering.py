"""The GPU kernels lower for CUDA on a machine that has no GPU, and are chosen and refused there."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels import UnsupportedError, dispatch, lightning_attention
from pallas_kernels.lightning_attention import gpu

# JAX 0.11 says at every lowering that Pallas for Triton will go; gpu.py says why it is used.
pytestmark = [
    pytest.mark.brief,
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated"),
]
CALL = "stablehlo.custom_call @__gpu$xla.gpu.triton("


def on(kind="NVIDIA H200", platform="cuda", **axes):
    device = AbstractDevice(kind, 1, platform)
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def attention(q, k, v, state, segment_ids, implementation="gpu"):
    log_decay = -jnp.exp2(-8 * jnp.arange(1, q.shape[2] + 1) / q.shape[2])
    return lightning_attention(
        q, k, v, log_decay, state, segment_ids, scale=0.1, implementation=implementation
    )


def with_gradients(q, k, v, state, segment_ids):
    out, pull_back = jax.vjp(lambda *a: attention(*a, segment_ids), q, k, v, state)
    return out, pull_back(out)


def shapes(batch=1, length=16384, heads=16, width=128, dtype=jnp.bfloat16, packed=False):
    tokens = jax.ShapeDtypeStruct((batch, length, heads, width), dtype)
    state = jax.ShapeDtypeStruct((batch, heads, width, width), jnp.float32)
    segments = jax.ShapeDtypeStruct((batch, length), jnp.int32) if packed else None
    return tokens, tokens, tokens, state, segments


def random(shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(x.shape), x.dtype) for x in shapes[:4]]


def lowered(function, *arguments):
    # A new function each time: what was traced before would not be traced again.
    traced = jax.jit(lambda *a: function(*a)).trace(*arguments)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=str)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("width", [16, 128])
def test_every_kernel_lowers(dtype, packed, width):
    arguments = shapes(dtype=dtype, packed=packed, width=width)
    with on():
        assert lowered(attention, *arguments).count(CALL) == 2
        assert lowered(with_gradients, *arguments).count(CALL) == 6


def test_heads_that_fill_the_gpu_need_no_spans():
    with on():
        assert lowered(with_gradients, *shapes(batch=12, length=512)).count(CALL) == 4


@pytest.mark.parametrize(("length", "heads", "width"), [(1000, 5, 96), (130, 3, 8), (1, 1, 4)])
def test_odd_shapes_lower_without_copies_of_their_tokens(length, heads, width):
    with on():
        text = lowered(with_gradients, *shapes(2, length, heads, width, packed=True))
    assert CALL in text
    assert not any("pad" in line and "bf16" in line for line in text.splitlines())


@pytest.mark.parametrize(
    ("shape", "spans"),
    [((1, 16384, 16), 8), ((2, 16384, 16), 4), ((1, 16384, 32), 4), ((12, 512, 16), 1)],
)
def test_spans_give_every_multiprocessor_a_block(shape, spans):
    batch, length, heads = shape
    plan = gpu._plan(jnp.zeros((batch, length, heads, 1), jnp.bfloat16), 1.0, terms=2)
    assert plan.spans == spans
    assert plan.tokens * (spans - 1) < length <= plan.tokens * spans


def test_every_call_says_what_it_costs(monkeypatch):
    costs = collections.Counter()
    real = pl.pallas_call

    def spy(*args, cost_estimate, **kwargs):
        costs.update(flops=cost_estimate.flops, bytes=cost_estimate.bytes_accessed, calls=1)
        return real(*args, cost_estimate=cost_estimate, **kwargs)

    monkeypatch.setattr(pl, "pallas_call", spy)
    with on():
        lowered(attention, *shapes())
    tensor, states = 2 * 16384 * 16 * 128, 4 * 16 * 128 * 128
    assert costs["calls"] == 2
    assert costs["bytes"] == pytest.approx(6 * tensor + 18 * states, rel=1e-3)
    assert costs["flops"] == 2 * 16384 * 16 * 128 * (2 * 128 + 4 * 64 + 4 * 128)


def test_none_chooses_the_kernels_where_they_run():
    def chosen(kind="NVIDIA H200", **changes):
        function = functools.partial(attention, implementation=None)
        with on(kind):
            return CALL in lowered(function, *shapes(length=256, **changes))

    assert chosen()
    assert not chosen(width=256)
    assert not chosen("NVIDIA A100-SXM4-80GB")


def test_what_the_kernels_cannot_run_is_refused():
    def why(match, place, **changes):
        with place, pytest.raises(UnsupportedError, match=match):
            jax.eval_shape(attention, *shapes(length=64, **changes))

    why("'gpu' takes heads up to 128 wide, and these are 256; use 'chunked'", on(), width=256)
    why("all bfloat16 or all float32, not float16", on(), dtype=jnp.float16)
    why("needs a GPU, and this runs on tpu", on("TPU v5 lite", "tpu"))
    why("needs a GPU of H100, .*, and this is NVIDIA A100", on("NVIDIA A100-SXM4-80GB"))
    why("the mesh has several devices", on(data=2))


@pytest.mark.parametrize(
    ("dtype", "tolerance", "length", "width", "packed"),
    [
        (jnp.float32, 5e-6, 523, 6, False),
        (jnp.float32, 5e-6, 523, 6, True),
        (jnp.bfloat16, 5e-3, 523, 6, True),
        # A memory in two parts, the second short.
        (jnp.bfloat16, 5e-3, 330, 72, False),
        (jnp.bfloat16, 5e-3, 330, 72, True),
    ],
    ids=str,
)
def test_many_spans_and_ragged_ends_match_float64(packed, dtype, tolerance, length, width):
    """Spans of several chunks, a last one that is short, and a head that fades to 0 on the way."""
    q, k, v, state = random(shapes(1, length, 3, width, dtype))
    log_decay = -jnp.asarray([3.0, 0.6, 0.002])
    segments = np.ones((1, length), np.int32)
    segments[0, 100:190], segments[0, 300:420], segments[0, 420:] = 0, 5, 2
    segments = segments if packed else None
    function = functools.partial(
        oracles.lightning, log_decay=log_decay, segment_ids=segments, scale=0.3
    )
    out, gradients = oracles.value_and_gradients(function, q, k, v, state)

    given = None if segments is None else jnp.asarray(segments)

    @jax.jit
    def both(*arrays):
        def loss(*arrays):
            got = lightning_attention(
                *arrays[:3], log_decay, arrays[3], given, scale=0.3, implementation="gpu"
            )
            return oracles.scalar(got), got

        return jax.grad(loss, (0, 1, 2, 3), has_aux=True)(*arrays)

    with dispatch.interpreted():
        got_gradients, got = both(q, k, v, state)
    oracles.assert_close(got, out, tolerance)
    oracles.assert_close(got_gradients, gradients, tolerance)
