"""On a mesh that cuts rows, the sequence and heads, lightning attention is what it is on one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec
from test_decode_attention import collectives
from test_lightning_attention import SCALE, decays, documents, inputs

from pallas_kernels import dispatch, lightning_attention
from pallas_kernels.lightning_attention.sharded import sharded

AXES = {"batch": "data", "sequence": "sequence", "heads": "tensor"}
TOKENS, MEMORY = ("data", "sequence", "tensor"), ("data", "tensor")
KINDS = (AxisType.Auto,) * 3


def mesh_of(*sizes):
    devices = jax.devices()[: np.prod(sizes)]
    return jax.make_mesh(sizes, tuple(AXES.values()), axis_types=KINDS, devices=devices)


def with_gradients(op, arrays, log_decay, segments):
    """Outputs, last memory, and the gradients of both."""

    def loss(*arrays):
        q, k, v, state = arrays
        out = op(q, k, v, log_decay, state, segments, scale=SCALE)
        return oracles.scalar(out), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))(*arrays)
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
    parts = functools.partial(sharded, implementation=implementation, **AXES)
    mesh = mesh_of(*sizes)
    with dispatch.interpreted(), jax.set_mesh(mesh):
        got = with_gradients(parts, *arguments(packed_rows))
    oracles.assert_close(got, on_one_device(packed_rows), 5e-6)
    for x, names in zip(got, (TOKENS, MEMORY), strict=False):
        where = NamedSharding(mesh, PartitionSpec(*names))
        assert x.sharding.is_equivalent_to(where, 4)


def test_only_memories_are_exchanged_along_the_sequence():
    def exchanged(length):
        q, k, v, state = inputs(batch=1, length=length, heads=2, width=8)
        run = functools.partial(sharded, scale=SCALE, implementation="chunked", **AXES)
        program = jax.jit(run).lower(q, k, v, decays(2), state, jnp.ones((1, length), jnp.int32))
        return collectives(program.compile().as_text())

    with jax.set_mesh(mesh_of(1, 4, 1)):
        short, long = exchanged(128), exchanged(1024)
    memory, factors, documents_open = 2 * 8 * 8, 2, 2
    assert short == long == {"all-gather": 4 * 4 * (memory + factors + documents_open)}


def test_a_tpu_mesh_runs_the_kernel_on_every_device():
    device = AbstractDevice("TPU v5 lite", 1, "tpu")
    tokens = jax.ShapeDtypeStruct((4, 256, 8, 128), jnp.bfloat16)
    state = jax.ShapeDtypeStruct((4, 8, 128, 128), jnp.float32)

    def kernels(sizes, **axes):
        mesh = AbstractMesh(sizes, tuple(AXES.values()), KINDS, abstract_device=device)
        run = functools.partial(sharded, scale=SCALE, **(AXES | axes))
        with jax.sharding.use_abstract_mesh(mesh):
            traced = jax.jit(run).trace(tokens, tokens, tokens, decays(8), state)
            return traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call")

    assert kernels((2, 1, 4)) == 1
    assert kernels((2, 2, 2)) == 1
    assert kernels((2, 2, 2), sequence=None) == 0  # the sequence is cut: left to the compiler
