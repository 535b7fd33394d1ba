"""Every implementation of softmax attention answers the same questions."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from meshes import on_platform

from pallas_kernels import UnsupportedError, attention, dispatch
from pallas_kernels.attention import chunked

pytestmark = pytest.mark.brief

SCALE = 0.3
every = pytest.mark.parametrize("implementation", ["reference", "dense", "chunked"])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, request):
    if "memory" not in request.node.name:
        monkeypatch.setattr(chunked, "QUERY_BLOCK", 32)
        monkeypatch.setattr(chunked, "KEY_BLOCK", 64)


def inputs(length=102, keys=102, heads=6, kv_heads=3, width=8, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, length, heads, width))
    k, v = rng.standard_normal((2, 2, keys, kv_heads, width))
    return tuple(jnp.asarray(x, dtype) for x in (q, k, v))


def seen(case, length=102):
    """What is visible: arguments of `attention`."""
    rng = np.random.default_rng(1)
    segments = np.repeat([[0, 1, 2, 0, 2, 3], [7, 7, 0, 0, 5, 5]], length // 6, axis=1)
    slots = rng.integers(-1, length, (2, length))
    everywhere = np.full((2, length), length + 5)
    return {
        "causal": {},
        "segments": {"segment_ids": segments, "key_segment_ids": segments},
        "slots": {"query_slots": slots},
        "slots and segments": {
            "query_slots": slots,
            "segment_ids": segments,
            "key_segment_ids": segments[:, ::-1].copy(),
        },
        "beyond the last slot": {"query_slots": everywhere},
    }[case]


@functools.partial(jax.jit, static_argnames="implementation")
def run(q, k, v, implementation=None, **visible):
    return attention(q, k, v, scale=SCALE, implementation=implementation, **visible)


@functools.cache
def float64(case, dtype=jnp.float32):
    function = functools.partial(oracles.attention, scale=SCALE, **seen(case))
    return oracles.value_and_gradients(function, *inputs(dtype=dtype))


@every
@pytest.mark.parametrize(
    "case", ["causal", "segments", "slots", "slots and segments", "beyond the last slot"]
)
def test_outputs_and_gradients_match_float64(implementation, case):
    arrays, visible = inputs(), seen(case)
    out, grads = float64(case)

    @jax.jit
    def both(*arrays):
        def loss(*arrays):
            out = run(*arrays, implementation=implementation, **visible)
            return oracles.scalar(out), out

        return jax.grad(loss, (0, 1, 2), has_aux=True)(*arrays)

    got_grads, got = both(*arrays)
    oracles.assert_close((got, got_grads), (out, grads), oracles.TOLERANCE["float32"])


@pytest.mark.extended
@every
def test_bfloat16_gives_bfloat16_close_to_float64(implementation):
    arrays = inputs(dtype=jnp.bfloat16)
    expected, _ = float64("causal", jnp.bfloat16)
    out = run(*arrays, implementation=implementation)
    assert out.dtype == jnp.bfloat16
    oracles.assert_close(out, expected, 6e-3)
    grads = jax.grad(lambda *a: jnp.sum(run(*a, implementation=implementation) ** 2), (0, 1, 2))
    assert [x.dtype for x in jax.eval_shape(grads, *arrays)] == [jnp.bfloat16] * 3


@every
@pytest.mark.parametrize("length", [1, 33, 64])
def test_any_length_and_head_count(implementation, length):
    arrays = inputs(length=length, keys=length, heads=5, kv_heads=5)
    out = run(*arrays, implementation=implementation)
    oracles.assert_close(out, run(*arrays, implementation="reference"), 1e-6)


@every
def test_query_heads_of_a_group_are_neighbours(implementation):
    q, k, v = inputs(length=40, keys=40)
    grouped = run(q, k, v, implementation=implementation)
    repeated = run(q, *(jnp.repeat(x, 2, axis=2) for x in (k, v)), implementation=implementation)
    oracles.assert_close(grouped, repeated, 1e-6)


@every
@pytest.mark.parametrize("start", [0, 60, 101])
def test_a_cache_read_from_any_slot_equals_the_full_pass(implementation, start):
    q, k, v = inputs()
    whole = run(q, k, v, implementation=implementation)
    room = [jnp.pad(x, ((0, 0), (0, 50), (0, 0), (0, 0)), constant_values=9.0) for x in (k, v)]
    slots = jnp.broadcast_to(jnp.arange(start, 102)[None], (2, 102 - start))
    rest = run(q[:, start:], *room, implementation=implementation, query_slots=slots)
    oracles.assert_close(rest, whole[:, start:], 1e-6)


@every
def test_packed_documents_equal_separate_ones(implementation):
    q, k, v = inputs()
    segments = jnp.broadcast_to(jnp.repeat(jnp.asarray([4, 9]), 51)[None], (2, 102))
    packed = run(
        q, k, v, implementation=implementation, segment_ids=segments, key_segment_ids=segments
    )
    for part in (slice(0, 51), slice(51, 102)):
        alone = run(q[:, part], k[:, part], v[:, part], implementation=implementation)
        oracles.assert_close(packed[:, part], alone, 1e-6)


@every
def test_a_query_that_sees_nothing_gives_zeros_and_finite_gradients(implementation):
    arrays = inputs()
    segments = jnp.asarray(seen("segments")["segment_ids"])

    def loss(*arrays):
        out = run(
            *arrays, implementation=implementation, segment_ids=segments, key_segment_ids=segments
        )
        return jnp.sum(jnp.sin(out + 1)), out

    grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)
    assert not np.any(np.asarray(out)[np.asarray(segments) == 0])
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in grads)
    nothing = run(*arrays, implementation=implementation, query_slots=jnp.full((2, 102), -1))
    assert not np.any(nothing)


@every
def test_no_output_depends_on_a_later_token(implementation):
    def early(*arrays):
        return jnp.sum(run(*arrays, implementation=implementation)[:, :70] ** 2)

    for gradient in jax.jit(jax.grad(early, (0, 1, 2)))(*inputs()):
        assert not np.any(gradient[:, 70:])


@every
def test_large_scores_stay_finite(implementation):
    q, k, v = inputs(length=40, keys=40)
    out = run(1e4 * q, k, v, implementation=implementation)
    oracles.assert_close(out, run(1e4 * q, k, v, implementation="reference"), 1e-5)


def test_memory_of_the_chunked_form_grows_with_the_length_alone():
    def temporaries(length):
        shape = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)

        def loss(*arrays):
            return jnp.sum(attention(*arrays, scale=SCALE, implementation="chunked"))

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(4096) < 2.5 * temporaries(2048)
    assert temporaries(4096) < 4 * 4096**2 / 2


@pytest.mark.extended
@pytest.mark.parametrize("case", ["causal", "segments"])
def test_splash_under_this_contract_matches_float64(case):
    """Interpreted; three blocks of 128, and two query heads for each of three key/value heads."""
    arrays = inputs(384, 384, dtype=jnp.bfloat16)
    visible = seen(case, 384)
    function = functools.partial(oracles.attention, scale=SCALE, **visible)
    expected = oracles.value_and_gradients(function, *arrays)

    def loss(*arrays):
        out = run(*arrays, implementation="splash", **visible)
        return oracles.scalar(out.astype(jnp.float32)), out

    with dispatch.interpreted():
        grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)
    oracles.assert_close((out, grads), expected, oracles.TOLERANCE["bfloat16"])
    if case == "segments":
        assert not np.any(np.asarray(out)[visible["segment_ids"] == 0])


@pytest.mark.extended
def test_on_a_tpu_splash_is_chosen_where_it_can_run():
    def kernels(length=640, dtype=jnp.bfloat16, devices=1):
        q = jax.ShapeDtypeStruct((1, length, 4, 128), dtype)
        k = jax.ShapeDtypeStruct((1, length, 2, 128), dtype)
        with on_platform("tpu", x=devices):
            traced = jax.jit(functools.partial(attention, scale=SCALE)).trace(q, k, k)
            return traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call")

    assert kernels() == 1
    assert kernels(length=600) == 0
    assert kernels(dtype=jnp.float32) == 0
    assert kernels(devices=2) == 0


@pytest.mark.parametrize("name", ["cudnn", "splash"])
def test_a_kernel_of_another_device_is_refused(name):
    with pytest.raises(UnsupportedError, match=f"{name}' needs a .PU, and this runs on cpu; use"):
        attention(*inputs(), scale=SCALE, implementation=name)


def test_arguments_that_do_not_belong_together_are_refused():
    q, k, v = inputs()
    segments = jnp.ones((2, 102), jnp.int32)
    with pytest.raises(ValueError, match="5 query heads, not a multiple of its 3"):
        attention(q[:, :, :5], k, v, scale=SCALE)
    with pytest.raises(ValueError, match="10 queries and 102 keys; give query_slots"):
        attention(q[:, :10], k, v, scale=SCALE)
    with pytest.raises(ValueError, match="give both or neither"):
        attention(q, k, v, scale=SCALE, key_segment_ids=segments)
    some = {"query_slots": jnp.zeros((2, 10), jnp.int32), "segment_ids": segments[:, :10]}
    with pytest.raises(ValueError, match="give both or neither"):
        attention(q[:, :10], k, v, scale=SCALE, **some)
    with pytest.raises(UnsupportedError, match="no implementation 'flash'"):
        inspect.unwrap(attention)(q, k, v, scale=SCALE, implementation="flash")  # types unchecked
