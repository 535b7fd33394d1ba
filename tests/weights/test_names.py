"""The table pairs names one to one, and its transformations undo each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.decoder import Decoder, init_params
from hypenet_jax.model.mixers import SoftmaxSpec
from hypenet_jax.weights.names import flatten, nest, tensors, to_ours

SOFTMAX = SoftmaxSpec(num_heads=6, num_kv_heads=3, head_dim=4, rope_theta=1e4)
QWEN3 = ModelConfig(
    vocab_size=11, d_model=10, d_mlp=14, mixers=(SOFTMAX,) * 3, tie_embeddings=False
)
HYPENET = hypenet(QWEN3, (1,))
BARE = dataclasses.replace(
    HYPENET,
    tie_embeddings=True,
    mixers=tuple(
        dataclasses.replace(spec, output_gate=False)
        if isinstance(spec, SoftmaxSpec)
        else dataclasses.replace(spec, output_gate=False, output_norm=False, qk_norm=False)
        for spec in HYPENET.mixers
    ),
)
MODELS = pytest.mark.parametrize("config", [QWEN3, HYPENET, BARE], ids=["qwen3", "hypenet", "bare"])


@MODELS
def test_names_pair_one_to_one(config):
    table = tensors(config)
    assert len({t.ours for t in table}) == len({t.theirs for t in table}) == len(table)


@MODELS
def test_the_table_names_every_parameter_of_the_decoder_with_its_shape(config):
    shapes = jax.eval_shape(
        lambda: init_params(Decoder(config, jnp.dtype(jnp.float32), scan=False), jax.random.key(0))
    )
    expected = {path: leaf.shape for path, leaf in flatten(shapes).items()}
    assert {t.ours: t.our_shape for t in tensors(config)} == expected


@MODELS
def test_there_and_back_is_the_identity(config):
    for tensor in tensors(config):
        ours = np.arange(np.prod(tensor.our_shape)).reshape(tensor.our_shape)
        theirs = tensor.to_theirs(ours)
        assert theirs.shape == tensor.their_shape
        np.testing.assert_array_equal(to_ours(theirs, tensor.our_shape, tensor.groups), ours)


def test_a_projection_is_torchs_linear_layer_with_heads_outermost():
    query = next(t for t in tensors(QWEN3) if t.theirs.endswith("layers.2.self_attn.q_proj.weight"))
    weight = np.random.default_rng(0).normal(size=(24, 10))
    x = np.random.default_rng(1).normal(size=10)
    by_head = np.einsum("d,dnh->nh", x, to_ours(weight, query.our_shape, query.groups))
    np.testing.assert_allclose(by_head.reshape(-1), weight @ x, rtol=1e-12)


def test_an_output_map_takes_merged_heads():
    out = next(t for t in tensors(QWEN3) if t.theirs.endswith("layers.0.self_attn.o_proj.weight"))
    weight = np.random.default_rng(0).normal(size=(10, 24))
    x = np.random.default_rng(1).normal(size=(6, 4))
    np.testing.assert_allclose(
        np.einsum("nh,nhd->d", x, to_ours(weight, out.our_shape, out.groups)),
        weight @ x.reshape(-1),
        rtol=1e-12,
    )


def test_official_names_of_a_lightning_layer():
    names = {t.theirs for t in tensors(HYPENET) if t.theirs.startswith("model.layers.0.self_attn.")}
    keys = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "z_proj", "o_norm")
    assert names == {f"model.layers.0.self_attn.{key}.weight" for key in keys}


@pytest.mark.extended
def test_merged_axes_split_over_the_mesh_as_their_first_letter():
    query, norm = (
        next(t for t in tensors(HYPENET) if t.ours == f"layer_0/mixer/{name}")
        for name in ("q/kernel", "output_norm/scale")
    )
    assert query.their_partition(("fsdp", "tensor", None)) == ("tensor", "fsdp")
    assert query.their_partition(("fsdp",)) == (None, "fsdp")
    assert query.their_partition(("fsdp", None, "tensor")) == (None, "fsdp")
    assert norm.their_partition(("tensor", None)) == ("tensor",)


def test_flatten_undoes_nest():
    leaves = {"a/b/c": 1, "a/b/d": 2, "e": 3}
    assert flatten(nest(leaves)) == leaves
