"""The kernels of decode attention lower on a machine that has neither GPU nor TPU, and are chosen and
refused there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from meshes import CALL
from meshes import on_platform as on

from pallas_kernels import MeshAxes, UnsupportedError, decode_attention
from pallas_kernels.decode_attention.plan import spans

# JAX 0.11 says at every lowering that Pallas for Triton will go; gpu.py says why it is used.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")


def step(q, keys, values, slots, segment_ids, key_segment_ids, implementation=None):
    options = {"segment_ids": segment_ids, "key_segment_ids": key_segment_ids}
    options["implementation"] = implementation
    return decode_attention(q, keys, values, slots, scale=0.1, **options)


def shapes(batch=1, slots=65536, heads=16, kv_heads=8, width=128, dtype=jnp.bfloat16, packed=False):
    cache = jax.ShapeDtypeStruct((batch, slots, kv_heads, width), dtype)
    row = jax.ShapeDtypeStruct((batch,), jnp.int32)
    segments = jax.ShapeDtypeStruct((batch, slots), jnp.int32)
    q = jax.ShapeDtypeStruct((batch, heads, width), dtype)
    return q, cache, cache, row, *((row, segments) if packed else (None, None))


def lowered(platform, *arguments, implementation=None):
    # A new function each time: what was traced before would not be traced again.
    traced = jax.jit(lambda *a: step(*a, implementation=implementation)).trace(*arguments)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_none_chooses_one_kernel_that_reads_the_cache_where_it_lies(platform, dtype, packed):
    with on(platform):
        text = lowered(platform, *shapes(dtype=dtype, packed=packed))
    assert text.count(CALL[platform]) == 1
    copies = ("pad", "transpose", "convert", "concatenate", "gather")
    assert not any(
        f"stablehlo.{name}" in line and "65536x8x128" in line
        for line in text.splitlines()
        for name in copies
    )


@pytest.mark.parametrize(
    ("platform", "shape"),
    [
        ("cuda", (3, 1000, 5, 5)),
        ("cuda", (2, 1, 1, 1)),
        ("cuda", (4, 524288, 32, 2)),
        ("tpu", (3, 1000, 5, 1)),
        ("tpu", (2, 128, 8, 8)),
        ("tpu", (4, 524288, 32, 2)),
    ],
)
def test_odd_and_large_shapes_lower(platform, shape):
    with on(platform):
        assert CALL[platform] in lowered(platform, *shapes(*shape, packed=True))


@pytest.mark.parametrize("width", [8, 96, 256])
def test_gpu_heads_of_any_width_up_to_256_lower(width):
    with on("cuda"):
        assert CALL["cuda"] in lowered("cuda", *shapes(width=width))


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x"])
def test_the_tpu_kernel_lowers_for_every_generation(kind):
    with on("tpu", kind):
        assert CALL["tpu"] in lowered("tpu", *shapes())


def test_a_device_of_a_cut_cache_runs_the_kernel_on_its_own_slots():
    with on("cuda", length=4):
        cut = functools.partial(
            decode_attention, scale=0.1, mesh_axes=MeshAxes(sequence=("length",))
        )
        traced = jax.jit(cut).trace(*shapes()[:4])
        assert CALL["cuda"] in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_splits_share_what_a_row_has():
    counts = jnp.asarray([0, 1, 64, 65, 640, 1000])
    begin, end = (np.asarray(x) for x in spans(counts, 64, 4))
    assert np.all((begin[:, 1:] == end[:, :-1]) & (begin[:, :1] == 0))
    assert np.array_equal(end[:, -1], [0, 1, 1, 2, 10, 16])
    assert np.array_equal(np.max(end - begin, axis=1), [0, 1, 1, 1, 3, 4])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_call_says_what_a_full_cache_costs(platform, monkeypatch):
    costs = []
    real = pl.pallas_call

    def spy(*args, cost_estimate, **kwargs):
        costs.append(cost_estimate)
        return real(*args, cost_estimate=cost_estimate, **kwargs)

    monkeypatch.setattr(pl, "pallas_call", spy)
    with on(platform):
        lowered(platform, *shapes())
    (cost,) = costs
    assert cost.bytes_accessed == pytest.approx(2 * 65536 * 8 * 128 * 2, rel=0.01)
    assert cost.flops >= 4 * 65536 * 16 * 128


def test_what_a_kernel_cannot_run_is_refused_and_not_chosen():
    def refused(match, place, name, **changes):
        arguments = shapes(**changes)
        with place(), pytest.raises(UnsupportedError, match=match):
            jax.eval_shape(functools.partial(step, implementation=name), *arguments)
        with place():
            jaxpr = jax.make_jaxpr(step)(*arguments)
        assert "pallas_call" not in str(jaxpr)

    def gpu(kind="NVIDIA H200", **axes):
        return functools.partial(on, "cuda", kind, **axes)

    tpu = functools.partial(on, "tpu")
    refused(r"'gpu' takes heads up to 256 wide, .* 512; use 'chunked'", gpu(), "gpu", width=512)
    refused(r"takes up to 64 queries .* these are 128", gpu(), "gpu", heads=128, kv_heads=1)
    refused(r"needs a GPU of A100, .*, and this is Tesla V100", gpu("Tesla V100-SXM2-16GB"), "gpu")
    refused("the mesh has several devices", gpu(data=2), "gpu")
    refused("all bfloat16 or all float32, not float16", gpu(), "gpu", dtype=jnp.float16)
    refused("multiple of 128, and it is 64; use 'chunked'", tpu, "tpu", width=64)
    refused("at least 128 slots, and the cache has 64", tpu, "tpu", slots=64)
    refused("copy a cache of 5 key/value heads", tpu, "tpu", heads=5, kv_heads=5)
    refused("the mesh has several devices", functools.partial(tpu, data=2), "tpu")
    refused("all bfloat16 or all float32, not float16", tpu, "tpu", dtype=jnp.float16)
    with gpu()(), pytest.raises(UnsupportedError, match="needs a TPU, and this runs on gpu"):
        jax.eval_shape(functools.partial(step, implementation="tpu"), *shapes())
