"""How much of every parameter of the published models each device holds; on paper, without memory."""

import functools
import math

import jax
import pytest
from jax.sharding import AbstractMesh

from hypenet_jax.model import presets
from hypenet_jax.model.decoder import Decoder, init_params, logical_axes
from hypenet_jax.sharding import MESH_AXES, shardings_of

pytestmark = pytest.mark.extended

FSDP, TENSOR = 4, 8
MESH = AbstractMesh((2, FSDP, 2, TENSOR), MESH_AXES)
MODELS = (
    *("qwen3_0p6b", "qwen3_1p7b", "qwen3_4b", "qwen3_8b", "qwen3_14b", "qwen3_32b"),
    *("hypenet_2b", "hypenet_5b", "hypenet_9b"),
)
# Parts of each axis of a parameter; those of layers are stacked on a first axis that is never cut.
PARTS = {
    "embed/embedding": (TENSOR, FSDP),
    "head/kernel": (TENSOR, FSDP),
    **{f"mixer/{name}/kernel": (1, FSDP, TENSOR, 1) for name in ("q", "k", "v", "gate")},
    "mixer/o/kernel": (1, TENSOR, 1, FSDP),
    "mixer/output_norm/scale": (1, TENSOR, 1),
    "mixer/q_norm/scale": (1, 1),
    "mixer/k_norm/scale": (1, 1),
    "mlp/gate/kernel": (1, FSDP, TENSOR),
    "mlp/up/kernel": (1, FSDP, TENSOR),
    "mlp/down/kernel": (1, TENSOR, FSDP),
    "mixer_norm/scale": (1, 1),
    "mlp_norm/scale": (1, 1),
    "final_norm/scale": (1,),
}


@pytest.mark.parametrize("name", MODELS)
def test_shards_have_the_sizes_of_the_table(name):
    decoder = Decoder(getattr(presets, name)())
    shapes = jax.eval_shape(functools.partial(init_params, decoder), jax.random.key(0))
    where = shardings_of(shapes, logical_axes(decoder), MESH)
    whole = mine = 0
    leaves = zip(jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(where), strict=True)
    for (path, leaf), sharding in leaves:
        inner = [key.key for key in path if not key.key.startswith("layers_")]
        parts = PARTS["/".join(inner)]
        wanted = tuple(size // n for size, n in zip(leaf.shape, parts, strict=True))
        assert sharding.shard_shape(leaf.shape) == wanted, path
        whole, mine = whole + leaf.size, mine + math.prod(wanted)
    assert mine == pytest.approx(whole / (FSDP * TENSOR), rel=5e-3)  # norms are on every device
