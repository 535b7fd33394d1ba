"""Gated delta net and Kimi delta attention as layers: made from a teacher, in pieces, in folders, on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoders import BATCH, CAPACITY, TEACHER, TIME, Model

from hypenet_jax.halo.transfer import transfer
from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.cost import layers_flops, state_bytes
from hypenet_jax.model.decoder import decode_state
from hypenet_jax.model.mixers import GatedDeltaSpec, KimiDeltaSpec
from hypenet_jax.plan.config import ServeConfig
from hypenet_jax.plan.programs import serving_program
from hypenet_jax.sharding import MeshConfig, make_mesh
from hypenet_jax.testing import random_params
from hypenet_jax.train.optimizer import decay_mask
from hypenet_jax.weights import read_hf, save_hf
from hypenet_jax.weights.hf_config import CheckpointError, from_hf, to_hf

pytestmark = pytest.mark.brief

ALL = {"qk_norm": True, "short_conv": True}
GDN = GatedDeltaSpec(4, 8, 2, 1e4, output_gate=True, qkv_bias=True, **ALL)
KDA = KimiDeltaSpec(4, 8, 1e4, **ALL)
PLAIN = (GatedDeltaSpec(4, 8, silu=True), KimiDeltaSpec(4, 8, qk_norm=False))


def config_of(*mixers) -> ModelConfig:
    return dataclasses.replace(TEACHER, mixers=mixers)


@pytest.fixture(scope="module")
def model() -> Model:
    """With everything that the two can have."""
    config = config_of(GDN, KDA)
    return Model(config, random_params(config))


def test_documents_and_padding_in_pieces_are_as_each_text_alone(model, tokens):
    """Two texts a row, the second begun anew; padding left, right and between, also within the reach of a filter."""
    marks = np.zeros((BATCH, TIME), np.int32)
    marks[0], marks[1] = [1] * 14 + [2] * 10, [0] * 3 + [1, 0, 1, 1, 0, 0, 1] + [7] * 9 + [0] * 5
    marks[2] = [4] * 24
    whole = model.hidden(tokens, segment_ids=marks)
    for row, ids in zip(range(BATCH), marks, strict=True):
        for number in set(ids) - {0}:
            text = np.zeros((BATCH, TIME), np.int32)
            text[0, : np.sum(ids == number)] = tokens[row][ids == number]
            ones = (np.arange(TIME) < np.sum(ids == number)).astype(np.int32)[None]
            alone = model.hidden(text, segment_ids=np.tile(ones, (BATCH, 1)))[0]
            expected = alone[: np.sum(ids == number)]
            np.testing.assert_allclose(whole[row, ids == number], expected, atol=1e-5)
    state, parts = model.empty(), []
    for cut in (slice(0, 11), slice(11, 12), slice(12, TIME)):
        piece, ids = np.zeros((2, BATCH, TIME), np.int32)
        size = cut.stop - cut.start
        piece[:, :size], ids[:, :size] = tokens[:, cut], marks[:, cut]
        hidden, state = model.go_on(state, piece, ids)
        parts.append(hidden[:, :size])
    parts = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(parts[marks != 0], whole[marks != 0], atol=1e-5)


def test_a_prompt_and_single_tokens_are_one_pass(model, tokens):
    """The tokens come without segment ids: nothing looks for padding."""
    ones = np.ones_like(tokens)
    whole, state = model.hidden(tokens, segment_ids=ones), model.empty()
    _, state = model.go_on(state, tokens, ones * (np.arange(TIME) < 20))
    for t in range(20, TIME):
        hidden, state = model.go_on(state, tokens[:, t : t + 1], None)
        np.testing.assert_allclose(hidden[:, 0], whole[:, t], atol=1e-5)


@pytest.mark.parametrize("name", ["gdn", "kda"])
def test_a_student_takes_over_projections_norms_positions_and_biases(name):
    softmax = dataclasses.replace(TEACHER.mixers[0], qkv_bias=True)
    teacher = dataclasses.replace(TEACHER, mixers=(softmax,) * 2)
    config, params = hypenet(teacher, (1,), mixer=name), random_params(teacher)
    student = transfer(teacher, params, config, jax.random.key(0))
    ours, theirs = student["layer_0"]["mixer"], params["layer_0"]["mixer"]
    assert (config.mixers[0].NAME, config.mixers[0].rope_theta) == (name, 1e4)
    for part in ("q", "o", "q_norm", "k_norm"):
        jax.tree.map(np.testing.assert_array_equal, ours[part], theirs[part])
    group = config.mixers[0].kv_heads // 2
    for part in ("k", "v"):
        repeated = jax.tree.map(lambda x: np.repeat(x, group, axis=-2), theirs[part])
        jax.tree.map(np.testing.assert_array_equal, ours[part], repeated)
    rates = np.exp(ours["rate"]["log_rate"]), jax.nn.softplus(ours["rate"]["bias"])
    for x, (least, most) in zip(rates, ((1, 16), (1e-3, 0.1)), strict=True):
        assert np.all((least * 0.999 <= x) & (x <= most * 1.001))


@pytest.mark.parametrize(
    "spec",
    [GDN, KDA, *PLAIN],
    ids=lambda spec: f"{spec.NAME}{spec.silu if spec.NAME == 'gdn' else ''}",
)
def test_what_starts_from_softmax_has_the_parameters_of_the_module(spec):
    config, teacher = (
        config_of(spec),
        config_of(dataclasses.replace(TEACHER.mixers[0], qkv_bias=spec.qkv_bias)),
    )
    made = transfer(teacher, random_params(teacher), config, jax.random.key(0))
    shapes = jax.tree.map(lambda x: x.shape, random_params(config))
    assert jax.tree.map(lambda x: x.shape, made) == shapes


@pytest.mark.parametrize("mixers", [(GDN, KDA), PLAIN], ids=["all", "plain"])
def test_a_hugging_face_folder_gives_them_back(mixers, tmp_path):
    config = config_of(TEACHER.mixers[0].without_positions(), *mixers)
    params = random_params(config)
    save_hf(tmp_path / "student", config, params, dtype="float32")
    read, leaves = read_hf(tmp_path / "student")
    assert read == config
    jax.tree.map(np.testing.assert_array_equal, leaves, params)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"gdn_nkv": 3}, "gdn_nh 4 is no multiple of gdn_nkv 3"),
        ({"gdn_activation": "relu"}, "gdn_activation 'relu' is neither null nor 'silu'"),
        ({"kda_head_dim": 4}, "kda_head_dim differs from head_dim"),
        ({"kda_conv_size": 3}, "kda_conv_size 3 is not supported, only 4"),
        ({"gdn_use_gate": None}, "gdn_use_gate must be bool"),
    ],
)
def test_fields_that_cannot_be_computed_are_refused_by_name(change, match):
    with pytest.raises(CheckpointError, match=match):
        from_hf({**to_hf(config_of(GDN, KDA), "float32"), **change})


def test_a_model_that_has_no_fields_and_a_spec_that_contradicts_itself_are_refused():
    wide = dataclasses.replace(TEACHER.mixers[0].without_positions(), head_dim=16)
    with pytest.raises(ValueError, match="one head_dim, 16; gdn layers have 8"):
        to_hf(config_of(wide, GatedDeltaSpec(4, 8)), "float32")
    with pytest.raises(ValueError, match="set silu or short_conv"):
        GatedDeltaSpec(4, 8, silu=True, short_conv=True)


def test_costs_are_those_of_the_arrays():
    for mixers in ((GDN, KDA), PLAIN):
        config = config_of(*mixers)
        state = decode_state(config, 1, CAPACITY, jnp.float32)
        nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        assert state_bytes(config, CAPACITY, jnp.float32) == nbytes
        assert layers_flops(config, 7) + layers_flops(config, 5, 7) == layers_flops(config, 12)
        kernels = jax.tree_util.tree_leaves_with_path(random_params(config))
        sizes = {"mlp": 0, "mixer": 0}
        for path, leaf in kernels:
            if path[-1].key == "kernel":
                sizes[path[1].key] += 2 * leaf.size
        flops = sum(sum(spec.projection_flops(config.d_model)) for spec in mixers)
        assert flops == sizes["mixer"]


def test_rates_norms_and_biases_do_not_decay():
    layer = random_params(config_of(KDA))["layer_0"]
    decays = decay_mask(jax.tree.map(lambda x: x[None], layer))
    assert decays["mixer"]["rate"] == {"bias": False, "log_rate": False}
    assert decays["mixer"]["decay_out"] == {"kernel": True}


def test_a_plan_shards_heads_and_the_inputs_of_filters():
    config = dataclasses.replace(config_of(GDN, PLAIN[1]), vocab_size=62)
    serve = ServeConfig(
        model=config, task="decode", batch=4, context_length=32, mesh=MeshConfig(tensor=2)
    )
    mesh = make_mesh(serve.mesh)
    first, second = serving_program(serve, mesh).arguments[2].context.state.layers
    for x, shape in ((first.recurrent_state, (1, 2, 8, 8)), (first.k_inputs, (1, 3, 1, 8))):
        assert x.sharding.shard_shape(x.shape) == shape
    assert second.k_inputs is None
