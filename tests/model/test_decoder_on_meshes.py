"""The decoder on meshes: outputs of one device, little communication along a cut sequence, kernels on every device."""

import dataclasses
import functools
import math
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from tiny_decoders import BATCH, TIME, Model

from hypenet_jax import axes
from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.decoder import Decoder, Layer, init_params
from hypenet_jax.model.layers import Initialization, look_up
from hypenet_jax.model.mixers import LightningSpec, SoftmaxSpec
from hypenet_jax.model.token_layout import TokenLayout
from hypenet_jax.sharding import MESH_AXES, MeshConfig, constrain, make_mesh, on_mesh
from hypenet_jax.testing import random_params

pytestmark = [pytest.mark.extended, pytest.mark.brief]

COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


def mesh_of(**sizes):
    config = MeshConfig(**{"fsdp": 1, **sizes})
    return make_mesh(config, jax.devices()[: math.prod(sizes.values())])


def collectives(hlo: str) -> list[tuple[str, int]]:
    """Kind and number of elements of every array that a compiled program communicates."""
    found = []
    for shapes, kind in re.findall(rf"= (.*?) ({COLLECTIVES})(?:-start)?\(", hlo):
        for numbers in re.findall(r"\w+\[([\d,]*)\]", shapes):
            found.append((kind, math.prod(int(n) for n in numbers.split(",") if n)))
    return found


def packed() -> np.ndarray:
    """Segments that end inside and between the parts of a cut sequence, one that spans them all, padding anywhere."""
    rows = np.ones((BATCH, TIME), np.int32)
    rows[0] = np.repeat([1, 2, 2, 3, 0, 7], TIME // 6)
    rows[1] = np.repeat([0, 0, 4, 4, 4, 9, 9, 0], TIME // 8)
    rows[2, 5:9] = 0
    return rows


# Heads that divide over the sequence's devices are exchanged; the others' keys and values are gathered.
@pytest.mark.parametrize(
    "sizes",
    [
        {"sequence": 8},
        pytest.param({"sequence": 4}, marks=pytest.mark.slow),
        {"fsdp": 2, "sequence": 2, "tensor": 2},
    ],
    ids=["gathered", "exchanged", "mixed, rows whole"],
)
def test_packed_rows_read_as_on_one_device(hybrid, tokens, sizes):
    # A vocabulary that divides; the tokens are those of the smaller one.
    config = dataclasses.replace(hybrid.config, vocab_size=64)
    model = Model(config, random_params(config))
    expected = model.hidden(tokens, None, packed())
    with on_mesh(mesh_of(**sizes)):
        actual = model.hidden(tokens, None, packed())
    real = packed() != 0
    np.testing.assert_allclose(
        actual[real], expected[real], atol=1e-5 * np.abs(expected[real]).max()
    )


def test_a_table_cut_both_ways_is_read_without_gathering_it():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(64, 32)), jnp.float32)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 64, (4, 2)), jnp.int32)

    def loss(table, tokens):
        table = constrain(table, (axes.VOCAB, axes.EMBED))
        x = constrain(look_up(table, tokens, jnp.float32), (axes.BATCH, axes.TIME, axes.HIDDEN))
        return jnp.sum(jnp.sin(x)), x

    run = jax.jit(jax.grad(loss, has_aux=True))
    expected = run(table, tokens)
    with on_mesh(mesh_of(fsdp=2, sequence=2, tensor=2)):
        compiled = run.lower(table, tokens).compile()
        actual = run(table, tokens)
    chex.assert_trees_all_close(jax.device_get(actual), jax.device_get(expected), rtol=1e-6)
    # What moves is tokens, their embeddings, and the sum over the sequence of each device's part of the gradient.
    assert max(size for _, size in collectives(compiled.as_text())) <= table.size // 4


def lightning_layer(time: int, mesh) -> str:
    """The compiled program of a layer and its gradients, all that comes with the tokens cut along the sequence."""
    config = ModelConfig(
        vocab_size=8, d_model=32, d_mlp=48, mixers=(LightningSpec(4, 8, 1e4),), tie_embeddings=True
    )
    layer = Layer(config.mixers[0], config, jnp.float32, Initialization(), tap=False)

    def read(params, x, positions, documents):
        place = functools.partial(constrain, logical_names=(axes.BATCH, axes.TIME))
        x = constrain(x, (axes.BATCH, axes.TIME, axes.HIDDEN))
        return layer.apply(params, x, None, TokenLayout(place(positions), place(documents)))[0]

    def loss(params, x, *arrays):
        return jnp.mean(jnp.square(read(params, x, *arrays)))

    x, numbers = jnp.ones((2, time, 32)), jnp.ones((2, time), jnp.int32)
    start = lambda: layer.init(jax.random.key(0), x, None, TokenLayout(numbers, numbers))  # noqa: E731
    params = nn.meta.unbox(jax.eval_shape(start))
    with on_mesh(mesh):
        return (
            jax.jit(jax.grad(loss, (0, 1))).lower(params, x, numbers, numbers).compile().as_text()
        )


def test_a_lightning_layer_moves_no_more_for_a_longer_sequence():
    mesh = mesh_of(sequence=8)
    short, long = (collectives(lightning_layer(time, mesh)) for time in (64, 128))
    assert sorted(short) == sorted(long)
    # The memories of all devices, [8 B N H H], and nothing as large as the text is gathered.
    assert max(size for kind, size in long if kind == "all-gather") == 8 * 2 * 4 * 8 * 8
    assert not any(kind in ("all-to-all", "collective-permute") for kind, _ in long)


@pytest.mark.parametrize("sizes", [(1, 2, 1, 1), (2, 2, 2, 2), (1, 1, 4, 1)])
def test_a_tpu_mesh_runs_every_kernel_on_every_device(sizes):
    mixer = SoftmaxSpec(num_heads=8, num_kv_heads=4, head_dim=128, rope_theta=1e4)
    config = hypenet(
        ModelConfig(vocab_size=64, d_model=64, d_mlp=64, mixers=(mixer,) * 2, tie_embeddings=True),
        (1,),
    )
    decoder = Decoder(config)
    device = AbstractDevice("TPU v5 lite", 1, "tpu")
    mesh = AbstractMesh(sizes, MESH_AXES, (AxisType.Auto,) * 4, abstract_device=device)
    params = jax.eval_shape(functools.partial(init_params, decoder), jax.random.key(0))
    text = jax.ShapeDtypeStruct((4, 512), jnp.int32)

    def read(params, tokens, segment_ids):
        return decoder.apply({"params": params}, tokens, None, segment_ids).hidden

    with jax.sharding.use_abstract_mesh(mesh):
        lowered = jax.jit(read).trace(params, text, text).lower(lowering_platforms=("tpu",))
    # Norm and rotary of queries and keys, and the recurrence; then softmax attention (without positions).
    assert lowered.as_text().count("tpu_custom_call") == 4
