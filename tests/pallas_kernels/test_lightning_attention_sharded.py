"""On a mesh that cuts rows and heads, lightning attention is what it is on one device."""

import functools

import jax
import jax.numpy as jnp
import oracles
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec
from test_lightning_attention import SCALE, decays, documents, inputs

from pallas_kernels import dispatch, lightning_attention
from pallas_kernels.lightning_attention.sharded import sharded

AXES = {"batch": "data", "heads": "tensor"}


def with_gradients(op, arrays, log_decay, segments):
    """Outputs, last memory, and the gradients of both."""

    def loss(*arrays):
        q, k, v, state = arrays
        out = op(q, k, v, log_decay, state, segments, scale=SCALE)
        return oracles.scalar(out), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))(*arrays)
    return *out, *gradients


@pytest.mark.parametrize("implementation", ["chunked", "tpu"])
def test_rows_and_heads_on_four_devices_equal_one_device(implementation):
    arrays, log_decay, segments = inputs(heads=4, width=8), decays(4), jnp.asarray(documents())
    whole = functools.partial(lightning_attention, implementation="chunked")
    parts = functools.partial(sharded, implementation=implementation, **AXES)
    want = with_gradients(whole, arrays, log_decay, segments)
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with dispatch.interpreted(), jax.set_mesh(mesh):
        got = with_gradients(parts, arrays, log_decay, segments)
    oracles.assert_close(got, want, 5e-6)
    assert got[0].sharding.spec == PartitionSpec("data", None, "tensor")
    assert got[1].sharding.spec == PartitionSpec("data", "tensor")


def test_a_tpu_mesh_runs_the_kernel_on_every_device():
    device = AbstractDevice("TPU v5 lite", 1, "tpu")
    kinds = (AxisType.Auto,) * 3
    names = ("data", "sequence", "tensor")
    tokens = jax.ShapeDtypeStruct((4, 256, 8, 128), jnp.bfloat16)
    state = jax.ShapeDtypeStruct((4, 8, 128, 128), jnp.float32)

    def kernels(sizes):
        mesh = AbstractMesh(sizes, names, kinds, abstract_device=device)
        run = functools.partial(sharded, scale=SCALE, **AXES)
        with jax.sharding.use_abstract_mesh(mesh):
            traced = jax.jit(run).trace(tokens, tokens, tokens, decays(8), state)
            return traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call")

    assert kernels((2, 1, 4)) == 1
    assert kernels((2, 2, 2)) == 0  # the sequence is cut: left to the compiler
