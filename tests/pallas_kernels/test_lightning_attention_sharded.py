"""On a mesh that cuts rows, the sequence and heads, lightning attention is what it is on one device."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec
from meshes import AXES, NAMES, mesh_of
from test_decode_attention import collectives
from test_lightning_attention import SCALE, decays, documents, inputs

from pallas_kernels import (
    NEGLIGIBLE_DECAY,
    dispatch,
    lightning_attention,
    neighbor_exchange,
)

pytestmark = pytest.mark.brief

sharded = functools.partial(lightning_attention, mesh_axes=AXES)

TOKENS, STATE = ("data", "sequence", "tensor"), ("data", "tensor")
KINDS = (AxisType.Auto,) * 3


def with_gradients(op, arrays, log_decay, segments):
    """Outputs, last state, and the gradients of both."""

    def run(q, k, v, state):
        return op(q, k, v, log_decay, state, segments, scale=SCALE)

    out, gradients = oracles.with_gradients(run, *arrays)
    return *out, *gradients


def packed():
    """Documents that end in a part of 32 tokens, between two, and go on over a part of padding."""
    rows = np.ones((4, 128), np.int32)
    rows[0] = documents(128)[0]
    rows[1] = np.repeat([0, 5, 0, 5], 32)
    rows[2] = np.repeat([1, 2], 64)
    return jnp.asarray(rows)


def arguments(packed_rows):
    segments = packed() if packed_rows else None
    return inputs(batch=4, length=128, heads=4, width=8), decays(4), segments


@functools.cache
def on_one_device(packed_rows):
    whole = functools.partial(lightning_attention, implementation="chunked")
    return with_gradients(whole, *arguments(packed_rows))


@pytest.mark.parametrize(
    ("implementation", "sizes", "packed_rows"),
    [
        ("tpu", (2, 1, 2), True),
        ("tpu", (1, 4, 2), True),
        ("chunked", (1, 4, 1), True),
        ("chunked", (2, 2, 2), False),
    ],
)
def test_the_parts_of_several_devices_equal_one_device(implementation, sizes, packed_rows):
    parts = functools.partial(sharded, implementation=implementation)
    mesh = mesh_of(*sizes)
    with dispatch.interpreted(), jax.set_mesh(mesh):
        got = with_gradients(parts, *arguments(packed_rows))
    oracles.assert_close(got, on_one_device(packed_rows), 5e-6)
    for x, names in zip(got, (TOKENS, STATE), strict=False):
        where = NamedSharding(mesh, PartitionSpec(*names))
        assert x.sharding.is_equivalent_to(where, 4)


def test_only_states_are_exchanged_along_the_sequence():
    def exchanged(length):
        q, k, v, state = inputs(batch=1, length=length, heads=2, width=8)
        run = functools.partial(sharded, scale=SCALE, implementation="chunked")
        program = jax.jit(run).lower(q, k, v, decays(2), state, jnp.ones((1, length), jnp.int32))
        return collectives(program.compile().as_text())

    with jax.set_mesh(mesh_of(1, 4, 1)):
        short, long = exchanged(128), exchanged(1024)
    state_numbers, factors, documents_open = 2 * 8 * 8, 2, 2
    assert short == long == {"all-gather": 4 * 4 * (state_numbers + factors + documents_open)}


def exchange(log_decay, state_factor=1.0, segments=None, short=True):
    """Outputs, last state and gradients on four devices with 32 tokens each."""
    q, k, v, state = inputs(batch=4, length=128, heads=4, width=8)
    arrays, run = (q, k, v, state_factor * state), sharded
    context = neighbor_exchange() if short else contextlib.nullcontext()
    with jax.set_mesh(mesh_of(2, 4, 1)), context:
        return with_gradients(run, arrays, jnp.full(4, log_decay, jnp.float32), segments)


@pytest.mark.parametrize("packed_rows", [False, True])
def test_states_of_neighbors_are_enough_where_parts_decay(packed_rows):
    segments = jnp.asarray(documents(128)[[0, 0, 0, 0]]) if packed_rows else None
    near, whole = (exchange(-1.0, segments=segments, short=short) for short in (True, False))
    oracles.assert_close(near, whole, 5e-6)


def test_what_neighbor_exchange_leaves_out_is_no_more_than_its_bound():
    """A first state so large that what the first part leaves of it shows in the second."""
    log_decay, factor = -0.55, 2.0**24
    near, whole = (exchange(log_decay, factor, short=short)[0] for short in (True, False))
    q, _, _, state = inputs(batch=4, length=128, heads=4, width=8)
    faded = jnp.exp(log_decay * jnp.arange(33, 65))[None, :, None, None]
    left_out = SCALE * jnp.einsum("btnk,bnkv->btnv", faded * q[:, 32:64], factor * state)
    gap = whole[:, 32:64] - near[:, 32:64]
    np.testing.assert_allclose(gap, left_out, atol=1e-3 * np.abs(left_out).max())
    assert jnp.exp(32 * log_decay) <= NEGLIGIBLE_DECAY


@pytest.mark.parametrize(
    ("log_decay", "row"),
    [(-0.5, np.ones(128)), (-0.6, np.repeat([1, 0, 1, 1], 32))],
    ids=["too slow", "padding"],
)
def test_parts_that_decay_too_little_exchange_all_states(log_decay, row):
    segments = jnp.asarray(np.tile(row.astype(np.int32), (4, 1)))
    near, whole = (exchange(log_decay, segments=segments, short=short) for short in (True, False))
    for one, other in zip(near, whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_neighbor_exchange_is_one_state_however_many_devices():
    q, k, v, state = inputs(batch=1, length=128, heads=2, width=8)
    run = functools.partial(sharded, scale=SCALE, implementation="chunked")
    state_numbers, factors, open_documents, choice = 2 * 8 * 8, 2, 2, 1
    for devices in (4, 8):
        with jax.set_mesh(mesh_of(1, devices, 1)), neighbor_exchange():
            program = jax.jit(run).lower(q, k, v, decays(2), state).compile()
        assert collectives(program.as_text()) == {
            "collective-permute": 4 * (state_numbers + 1),
            "all-reduce": 4 * (state_numbers + choice),
            "all-gather": 4 * devices * (state_numbers + factors + open_documents),  # the other way
        }


def test_a_tpu_mesh_runs_the_kernel_on_every_device():
    device = AbstractDevice("TPU v5 lite", 1, "tpu")
    tokens = jax.ShapeDtypeStruct((4, 256, 8, 128), jnp.bfloat16)
    state = jax.ShapeDtypeStruct((4, 8, 128, 128), jnp.float32)

    def kernels(sizes, **axes):
        mesh = AbstractMesh(sizes, NAMES, KINDS, abstract_device=device)
        run = functools.partial(sharded, scale=SCALE, mesh_axes=AXES._replace(**axes))
        with jax.sharding.use_abstract_mesh(mesh):
            traced = jax.jit(run).trace(tokens, tokens, tokens, decays(8), state)
            return traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call")

    assert kernels((2, 1, 4)) == 1
    assert kernels((2, 2, 2)) == 1
    assert kernels((2, 2, 2), sequence=()) == 0  # the sequence is cut: left to the compiler
