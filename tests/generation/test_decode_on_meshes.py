"""Reading prompts and writing tokens on meshes: the tokens of one device, and caches that stay where they are."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.generation.generate import generate
from hypenet_jax.model.config import hypenet, with_logit_scale
from hypenet_jax.model.decoder import Decoder, decode_state
from hypenet_jax.model.hype import LogLengthScale
from hypenet_jax.sharding import MeshConfig, make_mesh, on_mesh
from hypenet_jax.testing import random_params, tiny_teacher

pytestmark = pytest.mark.brief

BATCH, TIME, NEW = 3, 24, 8
MESHES = (
    {"fsdp": 2, "sequence": 2, "tensor": 2},
    pytest.param({"sequence": 4}, marks=pytest.mark.slow),
    pytest.param({"tensor": 2}, marks=pytest.mark.slow),
)
# Softmax, two lightning layers, softmax; a strong logit scale, so that positions show in every layer.
CONFIG = with_logit_scale(hypenet(tiny_teacher(64, layers=4), (0, 3)), LogLengthScale(4.0))
DECODER, PARAMS = Decoder(CONFIG, jnp.float32, scan=False), random_params(CONFIG)


def mesh_of(sizes):
    config = MeshConfig(**{"fsdp": 1, **sizes})
    return make_mesh(config, jax.devices()[: math.prod(sizes.values())])


def written():
    """Greedy tokens after prompts of different lengths; two parts of the last hold no token of theirs."""
    prompts = (
        np.random.default_rng(5).integers(0, CONFIG.vocab_size, (BATCH, TIME)).astype(np.int32)
    )
    real = np.arange(TIME)[None] >= np.asarray([0, 5, 13])[:, None]
    return generate(DECODER, PARAMS, prompts, segment_ids=real.astype(np.int32), max_new_tokens=NEW)


@pytest.fixture(scope="module")
def alone():
    return written()


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_tokens_are_those_of_one_device(alone, sizes):
    with on_mesh(mesh_of(sizes)):
        np.testing.assert_array_equal(written(), alone)


def test_each_device_holds_its_slots_and_heads():
    """Four rows of 32 slots, two key/value heads and four heads of recurrent state."""
    step = jax.jit(lambda params, x, s: DECODER.apply({"params": params}, x, state=s).state)
    with on_mesh(mesh_of({"fsdp": 2, "sequence": 2, "tensor": 2})):
        state = decode_state(CONFIG, 4, 32, DECODER.dtype)
        after = step(PARAMS, np.zeros((4, 1), np.int32), state)
    for now in (state, after):
        keys, recurrent = now.layers[0].keys, now.layers[1].recurrent_state
        assert keys.sharding.shard_shape(keys.shape) == (2, 16, 1, 8)
        assert recurrent.sharding.shard_shape(recurrent.shape) == (2, 2, 8, 8)
