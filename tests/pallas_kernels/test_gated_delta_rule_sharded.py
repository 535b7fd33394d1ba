"""On a mesh that cuts rows, the sequence and heads, the gated delta rule is what it is on one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from meshes import AXES, mesh_of
from test_decode_attention import collectives
from test_gated_delta_rule import SCALE, inputs

from pallas_kernels import gated_delta_rule

pytestmark = pytest.mark.brief


sharded = functools.partial(gated_delta_rule, scale=SCALE, mesh_axes=AXES)


def packed():
    """Documents that end in a part of 16 tokens, between two, and go on over a part of padding."""
    rows = np.ones((2, 64), np.int32)
    rows[0] = np.repeat([0, 5, 0, 5], 16)
    rows[1, :10], rows[1, 10:32], rows[1, 32:40] = 3, 1, 2
    return jnp.asarray(rows)


def on_devices(sizes, function, *arrays):
    mesh = mesh_of(*sizes)
    with jax.set_mesh(mesh):
        out, last = results = jax.jit(function)(*arrays)
    for x, names in ((out, ("data", "sequence", "tensor")), (last, ("data", "tensor"))):
        assert x.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(*names)), 4)
    return results


@pytest.mark.parametrize(("sizes", "channels"), [((1, 4, 2), False), ((2, 2, 1), True)])
def test_the_parts_of_several_devices_equal_one_device(sizes, channels):
    arrays = inputs(channels, length=64)
    for segment_ids in (packed(), None):
        op = functools.partial(sharded, segment_ids=segment_ids)
        got = on_devices(sizes, op, *arrays)
        ids = None if segment_ids is None else np.asarray(segment_ids)
        oracles.assert_close(got, oracles.delta_recurrence(*arrays, ids, SCALE), 5e-6)


def test_gradients_go_through_what_is_exchanged():
    arrays = inputs(False, batch=1, length=32)
    exact = functools.partial(oracles.delta_rule, segment_ids=None, scale=SCALE)
    with jax.set_mesh(mesh_of(1, 4)):
        got = oracles.with_gradients(sharded, *arrays)
    oracles.assert_close(got, oracles.value_and_gradients(exact, *arrays), 5e-6)


def test_only_a_state_and_a_matrix_are_exchanged_along_the_sequence():
    def exchanged(length):
        ids = jnp.ones((1, length), jnp.int32)
        program = jax.jit(sharded).lower(*inputs(False, batch=1, length=length), ids).compile()
        return collectives(program.as_text())

    with jax.set_mesh(mesh_of(1, 4)):
        short, long = exchanged(16), exchanged(64)
    states, open_documents = 2 * 8 * (8 + 6), 2
    assert short == long == {"all-gather": 4 * 4 * (states + open_documents)}
