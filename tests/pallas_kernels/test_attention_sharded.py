"""Heads that do not divide over the devices of a cut sequence: keys are gathered, and all devices do the same work."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from meshes import AXES, mesh_of
from oracles import with_gradients

from pallas_kernels import attention
from pallas_kernels.attention import chunked

pytestmark = pytest.mark.brief

SCALE, HEADS = 0.3, 6


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(chunked, "QUERY_BLOCK", 4)
    monkeypatch.setattr(chunked, "KEY_BLOCK", 4)


def inputs(length):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, length, HEADS, 8))
    k, v = rng.standard_normal((2, 2, length, 3, 8))
    return tuple(jnp.asarray(x, jnp.float32) for x in (q, k, v))


def packed(length):
    """Documents that end inside and between the parts of a cut sequence, one that spans them, padding anywhere."""
    rows = np.repeat([[1, 2, 2, 3, 0, 7, 7, 7], [0, 0, 4, 4, 4, 9, 9, 0]], length // 8, axis=1)
    rows[0, 3] = 0
    return jnp.asarray(rows)


# Six heads do not divide over the sequence's devices.
@pytest.mark.parametrize(
    ("sizes", "length"),
    [((1, 4), 64), ((2, 4), 24), ((1, 8), 8)],
    ids=["even parts", "odd parts", "a token each"],
)
@pytest.mark.parametrize("packed_rows", [False, True])
def test_the_parts_of_several_devices_equal_one_device(sizes, length, packed_rows):
    arrays, segments = inputs(length), packed(length) if packed_rows else None
    options = {"scale": SCALE, "implementation": "chunked", "segment_ids": segments}
    expected = with_gradients(functools.partial(attention, **options), *arrays)
    with jax.set_mesh(mesh_of(*sizes)):
        run = functools.partial(attention, **options, mesh_axes=AXES)
        got = with_gradients(run, *arrays)
    oracles.assert_close(got, expected, 5e-6)


@pytest.mark.parametrize("devices", [4, 8])
def test_every_device_multiplies_as_many_blocks_forward_and_backward(monkeypatch, devices):
    blocks, count = collections.Counter(), chunked._blocks_seen

    def counted(block, keys):
        seen = count(block, keys)
        add = lambda device, number: blocks.update({int(device): int(number)})  # noqa: E731
        jax.debug.callback(add, jax.lax.axis_index("sequence"), seen)
        return seen

    monkeypatch.setattr(chunked, "_blocks_seen", counted)
    length = 16 * devices
    with jax.set_mesh(mesh_of(1, devices)):
        run = functools.partial(attention, scale=SCALE, implementation="chunked", mesh_axes=AXES)
        jax.block_until_ready(with_gradients(run, *inputs(length)))
        jax.effects_barrier()
    # 2n chunks of two blocks of queries each see, on average, half of the 4n blocks of keys; twice, there and back.
    number = length // 4
    assert blocks == dict.fromkeys(range(devices), 2 * number * (number + 1) // 2 // devices)
