"""On a mesh that cuts rows, the sequence and heads at once, ops are what they are on one device, and say little."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from meshes import AXES, mesh_of
from oracles import with_gradients
from test_decode_attention import collectives

from pallas_kernels import attention, norm_rotary

pytestmark = pytest.mark.brief

SCALE = 0.3


def inputs(heads, kv_heads, length=64):
    rng = np.random.default_rng(0)
    shapes = ((4, length, n, 8) for n in (heads, kv_heads, kv_heads))
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)


def documents(length=64):
    """That end within a part of a quarter of the tokens and between two; and padding."""
    segments = np.ones((4, length), np.int32)
    segments[0] = np.repeat([1, 2, 0, 5], length // 4)
    segments[1, :5], segments[1, 5:50], segments[1, 50:] = 0, 3, 4
    return jnp.asarray(segments)


# Heads that are dealt out over the sequence's devices, as they are or each key/value head repeated.
@pytest.mark.parametrize(
    ("kv_heads", "sizes", "packed"), [(2, (1, 4, 1), True), (4, (2, 2, 2), False)]
)
def test_attention_with_exchanged_heads_equals_one_device(kv_heads, sizes, packed):
    arrays, segments = inputs(8, kv_heads), documents() if packed else None
    whole = functools.partial(attention, scale=SCALE, segment_ids=segments)
    parts = functools.partial(whole, mesh_axes=AXES)
    expected = with_gradients(whole, *arrays)
    with jax.set_mesh(mesh_of(*sizes)):
        got = with_gradients(parts, *arrays)
    oracles.assert_close(got, expected, 5e-6)


def test_heads_are_changed_for_tokens_and_nothing_is_gathered():
    arrays = inputs(8, 4)
    with jax.set_mesh(mesh_of(1, 4, 1)):
        run = functools.partial(attention, scale=SCALE, mesh_axes=AXES)
        found = collectives(jax.jit(run).lower(*arrays).compile().as_text())
    assert set(found) == {"all-to-all"}


def test_a_prompt_read_against_a_cut_cache_equals_one_device_and_moves_no_key():
    q, keys, values = inputs(8, 4)
    segments = documents()
    slots = jnp.broadcast_to(20 + jnp.arange(16)[None], (4, 16))
    arrays = q[:, :16], keys, values
    visible = {"segment_ids": segments[:, 20:36], "key_segment_ids": segments}
    whole = functools.partial(attention, scale=SCALE, query_slots=slots, **visible)
    expected = jax.jit(whole)(*arrays)
    with jax.set_mesh(mesh_of(2, 2, 2)):
        run = jax.jit(functools.partial(whole, mesh_axes=AXES))
        got = run(*arrays)
        text = run.lower(*arrays).compile().as_text()
    oracles.assert_close(got, expected, 5e-6)
    assert set(collectives(text)) == {"all-reduce"}


def test_norm_and_rotary_over_several_devices_equal_one_and_say_nothing_to_each_other():
    x, scale = inputs(4, 4)[0], jnp.linspace(0.5, 2, 8)
    angles = jnp.arange(4 * 64 * 4, dtype=jnp.float32).reshape(4, 64, 4) / 7
    whole = functools.partial(norm_rotary, angles=angles, eps=1e-6)
    parts = functools.partial(whole, mesh_axes=AXES)
    expected = with_gradients(whole, x, scale)
    with jax.set_mesh(mesh_of(2, 2, 2)):
        got = with_gradients(parts, x, scale)
        text = jax.jit(parts).lower(x, scale).compile().as_text()
    oracles.assert_close(got, expected, 5e-6)
    assert not collectives(text)
