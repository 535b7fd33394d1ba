"""Every implementation of decode attention answers the same questions."""

import functools
import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import MeshAxes, UnsupportedError, attention, decode_attention, dispatch
from pallas_kernels.decode_attention import IMPLEMENTATIONS, chunked, gpu, tpu

pytestmark = pytest.mark.brief

SCALE, BLOCK, SLOTS = 0.3, 16, 69  # the last block is short
UNSHARDED, OVER_SLOTS = MeshAxes(), MeshAxes(sequence=("length",))
TOLERANCE = {"float32": 5e-6, "bfloat16": 5e-3}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(chunked, "BLOCK", BLOCK)
    monkeypatch.setattr(tpu, "block_slots", lambda keys: BLOCK)
    monkeypatch.setattr(gpu, "tile_slots", lambda keys: BLOCK)
    monkeypatch.setattr(gpu, "MIN_TILES", 2)


def inputs(batch=3, slots=SLOTS, heads=6, kv_heads=3, width=8, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((batch, heads, width))
    keys, values = rng.standard_normal((2, batch, slots, kv_heads, width))
    return tuple(jnp.asarray(x, dtype) for x in (q, keys, values))


def documents():
    """Two documents and padding in each row; the last query is padding."""
    segments = np.repeat([[1, 1, 2], [4, 0, 7], [3, 3, 3]], SLOTS // 3, axis=1)
    return {"segment_ids": jnp.asarray([2, 4, 0]), "key_segment_ids": jnp.asarray(segments)}


@functools.partial(jax.jit, static_argnames=("implementation", "mesh_axes"))
def compiled(q, keys, values, slots, implementation, mesh_axes=UNSHARDED, **segments):
    """Within, Pallas kernels are interpreted."""
    axis = {"mesh_axes": mesh_axes, "implementation": implementation}
    return decode_attention(q, keys, values, slots, scale=SCALE, **segments, **axis)


def run(arrays, slots, implementation, **segments):
    with dispatch.interpreted():
        return compiled(*arrays, jnp.asarray(slots, jnp.int32), implementation, **segments)


def float64(arrays, slots, segment_ids=None, key_segment_ids=None):
    q, keys, values = (np.asarray(x, np.float64) for x in arrays)
    segments = {}
    if segment_ids is not None:
        segments["segment_ids"] = np.asarray(segment_ids)[:, None]
        segments["key_segment_ids"] = np.asarray(key_segment_ids)
    with jax.enable_x64(True):
        slots = np.asarray(slots)[:, None]
        return np.asarray(
            oracles.attention(q[:, None], keys, values, SCALE, query_slots=slots, **segments)
        )[:, 0]


@pytest.mark.parametrize("implementation", oracles.each(IMPLEMENTATIONS))
class TestEveryImplementation:
    @pytest.mark.parametrize(
        "visible", [1, BLOCK - 1, BLOCK, BLOCK + 1, 4 * BLOCK, SLOTS - 1, SLOTS]
    )
    def test_equals_the_softmax_over_the_visible_slots(self, implementation, visible):
        arrays, slots = inputs(), [visible - 1] * 3
        got = run(arrays, slots, implementation)
        oracles.assert_close(got, float64(arrays, slots), TOLERANCE["float32"])

    def test_each_ragged_row_equals_the_row_alone(self, implementation):
        arrays, slots = inputs(), [40, 2, SLOTS + 5]
        together = run(arrays, slots, implementation)
        oracles.assert_close(together, float64(arrays, slots), TOLERANCE["float32"])
        for row in range(3):
            alone = run([x[row : row + 1] for x in arrays], slots[row : row + 1], implementation)
            oracles.assert_close(together[row : row + 1], alone, 1e-6)

    def test_documents_and_padding_are_apart(self, implementation):
        arrays, slots = inputs(), [60, 50, SLOTS]
        got = run(arrays, slots, implementation, **documents())
        oracles.assert_close(got, float64(arrays, slots, **documents()), TOLERANCE["float32"])
        assert not np.any(got[2])

    @pytest.mark.parametrize("segments", [{}, documents()], ids=["slots", "documents"])
    def test_a_row_that_sees_nothing_gives_zeros(self, implementation, segments):
        got = run(inputs(), [-1, 30, -1], implementation, **segments)
        assert not np.any(got[0])
        assert np.all(np.isfinite(got))
        assert not np.any(run(inputs(), [-1] * 3, implementation, **segments))

    @pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 1), (5, 5), (24, 2), (40, 2)])
    def test_any_number_of_heads_per_group(self, implementation, heads, kv_heads):
        arrays, slots = inputs(heads=heads, kv_heads=kv_heads), [40, 2, 68]
        got = run(arrays, slots, implementation)
        oracles.assert_close(got, float64(arrays, slots), TOLERANCE["float32"])

    @pytest.mark.parametrize("slots", [1, 5, BLOCK, 2 * BLOCK])
    def test_any_capacity(self, implementation, slots):
        arrays = inputs(slots=slots, width=24)
        got = run(arrays, [slots - 1] * 3, implementation)
        oracles.assert_close(got, float64(arrays, [slots - 1] * 3), TOLERANCE["float32"])

    @pytest.mark.extended
    def test_a_bfloat16_cache_gives_bfloat16_close_to_float64(self, implementation):
        arrays, slots = inputs(dtype=jnp.bfloat16), [40, 2, 68]
        got = run(arrays, slots, implementation, **documents())
        assert got.dtype == jnp.bfloat16
        oracles.assert_close(got, float64(arrays, slots, **documents()), TOLERANCE["bfloat16"])

    def test_large_scores_do_not_overflow(self, implementation):
        q, keys, values = inputs()
        got = run((300 * q, keys, values), [40, 2, 68], implementation)
        expected = run((300 * q, keys, values), [40, 2, 68], "reference")
        assert np.all(np.isfinite(got))
        oracles.assert_close(got, expected, 1e-4)

    def test_equals_attention_of_one_token(self, implementation):
        q, keys, values = inputs()
        slots, segments = jnp.asarray([60, 50, SLOTS]), documents()
        expected = attention(
            q[:, None],
            keys,
            values,
            scale=SCALE,
            query_slots=slots[:, None],
            segment_ids=segments["segment_ids"][:, None],
            key_segment_ids=segments["key_segment_ids"],
        )
        got = run((q, keys, values), slots, implementation, **segments)
        oracles.assert_close(got, expected[:, 0], 1e-6)

    @pytest.mark.parametrize("documents_too", [False, True])
    def test_a_cache_cut_by_length_gives_the_same(self, implementation, documents_too):
        arrays, slots = inputs(slots=96), [90, 13, -1]
        segments = {}
        if documents_too:
            key_segment_ids = jnp.repeat(jnp.asarray([[1, 2, 2], [4, 0, 7], [3, 3, 3]]), 32, axis=1)
            segments = {"segment_ids": jnp.asarray([2, 4, 0]), "key_segment_ids": key_segment_ids}
        expected = run(arrays, slots, "reference", **segments)
        with mesh(8):
            got = run(arrays, slots, implementation, mesh_axes=OVER_SLOTS, **segments)
        oracles.assert_close(got, expected, 1e-6)


def mesh(length, data=1):
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.set_mesh(jax.make_mesh((data, length), ("data", "length"), axis_types=auto))


def collectives(hlo):
    """Bytes of the results of every collective in a compiled program, by its name."""
    found = {}
    names = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    for shapes, name in re.findall(rf"= (.*?) ({names})(?:-start)?\(", hlo):
        for numbers in re.findall(r"\w+\[([\d,]*)\]", shapes):
            count = 4 * math.prod(int(n) for n in numbers.split(",") if n)
            found[name] = found.get(name, 0) + count
    return found


@pytest.mark.extended
@pytest.mark.parametrize("data", [1, 2])
def test_no_key_or_value_of_a_cut_cache_moves(data):
    def moved(slots):
        arrays = inputs(batch=4, slots=slots)
        with mesh(8 // data, data):
            active = jax.sharding.get_mesh()
            rows = NamedSharding(active, PartitionSpec("data"))
            cache = NamedSharding(active, PartitionSpec("data", "length"))
            q, keys, values = (
                jax.device_put(x, s) for x, s in zip(arrays, (rows, cache, cache), strict=True)
            )
            args = (q, keys, values, jax.device_put(jnp.asarray([40, 2, 68, 9]), rows))
            program = compiled.lower(*args, "chunked", mesh_axes=OVER_SLOTS).compile()
            oracles.assert_close(program(*args), float64(arrays, [40, 2, 68, 9]), 5e-6)
            return collectives(program.as_text())

    short, long = moved(256), moved(2048)
    # Rows cut along another axis agree on the longest length, one number, too.
    numbers = 4 // data * 6 * (8 + 2) + (data > 1)
    assert short == long == {"all-reduce": 4 * numbers}


@pytest.mark.extended
def test_a_cache_the_mesh_cannot_cut_is_refused():
    with mesh(8), pytest.raises(ValueError, match=r"cache of 69 slots .* use 72 slots"):
        run(inputs(), [1, 2, 3], "chunked", mesh_axes=OVER_SLOTS)
    with (
        mesh(8),
        pytest.raises(ValueError, match=r"no mesh axis 'time'; the mesh has data, length"),
    ):
        run(inputs(), [1, 2, 3], "chunked", mesh_axes=MeshAxes(sequence=("time",)))


def test_the_chunked_form_computes_no_block_that_no_row_sees():
    q, keys, values = inputs()
    dead = jnp.arange(SLOTS)[None, :, None, None] >= 3 * BLOCK
    keys, values = (jnp.where(dead, jnp.nan, x) for x in (keys, values))
    for implementation in ("chunked", "tpu", "gpu"):
        assert np.all(np.isfinite(run((q, keys, values), [40, 2, 47], implementation)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
def test_the_chunked_form_holds_a_block_of_the_cache_and_never_all_of_it(dtype):
    q, keys, values = inputs(batch=1, slots=64 * BLOCK, dtype=dtype)
    program = compiled.lower(q, keys, values, jnp.asarray([9]), "chunked").compile()
    assert program.memory_analysis().temp_size_in_bytes < keys.nbytes / 4


def test_arguments_that_do_not_belong_together_are_refused():
    q, keys, values = inputs()
    slots = jnp.zeros((3,), jnp.int32)
    with pytest.raises(ValueError, match="6 query heads, not a multiple of its 4"):
        decode_attention(q, *inputs(kv_heads=4)[1:], slots, scale=SCALE)
    with pytest.raises(ValueError, match="give both or neither"):
        decode_attention(q, keys, values, slots, scale=SCALE, segment_ids=slots)
    with pytest.raises(UnsupportedError, match="it has reference, chunked, tpu, gpu, or None"):
        # Past the check of its types.
        inspect.unwrap(decode_attention)(
            q, keys, values, slots, scale=SCALE, implementation="flash"
        )
    for name in ("tpu", "gpu"):
        with pytest.raises(UnsupportedError, match=f"needs a {name.upper()}, and this runs on cpu"):
            decode_attention(q, keys, values, slots, scale=SCALE, implementation=name)
        mixed = (q.astype(jnp.bfloat16), keys, values)
        with pytest.raises(UnsupportedError, match="all bfloat16 or all"):
            run(mixed, [0, 0, 0], name)
