"""Families of teachers: what their config.json says, what it may leave out, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from strange_values import check_strange_values

from hypenet_jax.model.config import hypenet
from hypenet_jax.model.mixers import SoftmaxSpec
from hypenet_jax.model.rope_scaling import LinearScaling, Llama3Scaling, YarnScaling
from hypenet_jax.testing import random_params, tiny_teacher
from hypenet_jax.weights import FAMILIES, CheckpointError, read_hf, save_hf
from hypenet_jax.weights.hf_config import from_hf, to_hf

pytestmark = [pytest.mark.extended, pytest.mark.brief]
BARE = {"qk_norm": False}
COMMON = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_cache": True,
    "rms_norm_eps": 1e-5,
    "vocab_size": 32000,
}
LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def published(model_type: str, width: int, mlp: int, layers: int, heads: int, **more) -> dict:
    """Fields as they stand in a released config.json."""
    sizes = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers}
    return {"model_type": model_type, **COMMON, **sizes, "num_attention_heads": heads, **more}


LLAMA2_7B = published("llama", 4096, 11008, 32, 32, pretraining_tp=1, rope_scaling=None)
SMOLLM2_135M = published(
    *("llama", 576, 1536, 30, 9),
    num_key_value_heads=3,
    attention_bias=False,
    mlp_bias=False,
    rope_interleaved=False,
    is_llama_config=True,
    rope_theta=1e5,
    tie_word_embeddings=True,
    **{"transformers.js_config": {"dtype": "q4"}},
)
LLAMA32_1B = published(
    *("llama", 2048, 8192, 16, 32),
    num_key_value_heads=8,
    head_dim=64,
    rope_theta=5e5,
    rope_scaling=LLAMA3,
    tie_word_embeddings=True,
    eos_token_id=[128001, 128008, 128009],
)
QWEN25_HALF_B = published(
    *("qwen2", 896, 4864, 24, 14),
    num_key_value_heads=2,
    rope_theta=1e6,
    tie_word_embeddings=True,
    sliding_window=32768,
    max_window_layers=21,
    use_sliding_window=False,
    use_mrope=False,
)
MISTRAL_7B = published(
    *("mistral", 4096, 14336, 32, 32),
    num_key_value_heads=8,
    max_position_embeddings=32768,
    rope_theta=1e6,
    sliding_window=None,
    tie_word_embeddings=False,
)
SMOLLM3_3B = published(
    *("smollm3", 2048, 11008, 36, 16),
    num_key_value_heads=4,
    no_rope_layer_interval=4,
    no_rope_layers=[1, 1, 1, 0] * 9,
    layer_types=["full_attention"] * 36,
    pretraining_tp=2,
    rope_theta=5e6,
    sliding_window=None,
    use_sliding_window=False,
)


@pytest.mark.parametrize(
    ("fields", "mixer"),
    [
        (LLAMA2_7B, SoftmaxSpec(32, 32, 128, 1e4, **BARE)),
        (SMOLLM2_135M, SoftmaxSpec(9, 3, 64, 1e5, **BARE)),
        (
            LLAMA32_1B,
            SoftmaxSpec(
                *(32, 8, 64, 5e5), rope_scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192), **BARE
            ),
        ),
        (QWEN25_HALF_B, SoftmaxSpec(14, 2, 64, 1e6, qkv_bias=True, **BARE)),
        (MISTRAL_7B, SoftmaxSpec(32, 8, 128, 1e6, **BARE)),
        (SMOLLM3_3B, SoftmaxSpec(16, 4, 128, 5e6, **BARE)),
    ],
    ids=["llama2", "smollm2", "llama3.2", "qwen2.5", "mistral", "smollm3"],
)
def test_released_files_are_read(fields, mixer):
    config = from_hf(fields)
    assert config.num_layers == fields["num_hidden_layers"]
    nope = {mixer.without_positions()} if fields["model_type"] == "smollm3" else set()
    assert set(config.mixers) == {mixer, *nope}
    assert config.tie_embeddings == fields.get("tie_word_embeddings", bool(nope))


def test_layers_without_rotary_positions_follow_the_list_or_else_the_interval():
    listed = from_hf({**SMOLLM3_3B, "no_rope_layers": [0] + [1] * 35})
    assert [i for i, spec in enumerate(listed.mixers) if spec.rope_theta is None] == [0]
    every_third = {**SMOLLM3_3B, "no_rope_layers": None, "no_rope_layer_interval": 3}
    nope = [spec.rope_theta is None for spec in from_hf(every_third).mixers]
    assert nope == [False, False, True] * 12
    del every_third["no_rope_layer_interval"]
    assert from_hf(every_third) == from_hf(SMOLLM3_3B)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("said", "scaling"),
    [
        ({"type": "default"}, None),
        ({"type": "linear", "factor": 2}, LinearScaling(2.0)),
        (LLAMA3, Llama3Scaling(32.0, 1.0, 4.0, 8192)),
        (YARN, YarnScaling(4.0, 32768)),
        (
            {**YARN, "beta_fast": 16, "attention_factor": 1.0, "truncate": False},
            YarnScaling(4.0, 32768, beta_fast=16.0, attention_factor=1.0, truncate=False),
        ),
    ],
    ids=["default", "linear", "llama3", "yarn", "yarn with all"],
)
def test_scalings_of_rotary_positions_go_there_and_back(key, said, scaling):
    for family in FAMILIES:
        config = from_hf(
            {
                **to_hf(tiny_teacher(family=family), "float32"),
                "rope_scaling": None,
                "rope_parameters": None,
                key: said,
            }
        )
        assert config.mixers[0].rope_scaling == scaling
        for made in (config, hypenet(config, ())):
            assert from_hf(json.loads(json.dumps(to_hf(made, "float32")))) == made


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_and_its_students_go_there_and_back(family):
    config = dataclasses.replace(tiny_teacher(family=family, layers=3), norm_eps=1e-5)
    fields = to_hf(config, "bfloat16")
    assert fields["model_type"] == ("llama" if family == "mistral" else family)
    assert from_hf({**fields, "model_type": family, "sliding_window": None}) == config
    for kept in ((), (1,), (0, 1, 2)):
        student = hypenet(config, kept)
        assert to_hf(student, "bfloat16")["model_type"] == "hypenet"
        assert from_hf(json.loads(json.dumps(to_hf(student, "bfloat16")))) == student


def test_a_family_whose_tokens_are_unknown_has_none_rather_than_those_of_its_first_release():
    fields = to_hf(tiny_teacher(family="smollm3"), "float32", {"eos_token_id": 7})
    assert (fields["eos_token_id"], fields["pad_token_id"]) == (7, None)


def test_students_name_what_the_official_format_has_no_field_for_and_nothing_else():
    own = {"attn_use_qk_norm", "attn_use_qkv_bias", "lightning_use_qkv_bias", "attention_bias"}

    def named(family: str) -> dict:
        fields = to_hf(hypenet(tiny_teacher(family=family), (1,)), "float32")
        return {key: fields[key] for key in own & fields.keys()}

    assert named("qwen3") == {"attention_bias": False}
    assert named("llama") == {"attention_bias": False, "attn_use_qk_norm": False}
    biased = {"attn_use_qkv_bias": True, "lightning_use_qkv_bias": True}
    assert named("qwen2") == {"attn_use_qk_norm": False, **biased}


REFUSED = [
    (MISTRAL_7B, {"sliding_window": 4096}, "sliding_window 4096 .* at least .* 32768"),
    (MISTRAL_7B, {"sliding_window": 4096, "use_sliding_window": False}, "sliding_window 4096"),
    (LLAMA2_7B, {"attention_bias": True}, "attention_bias"),
    (LLAMA2_7B, {"mlp_bias": True}, "mlp_bias"),
    (LLAMA2_7B, {"hidden_size": 4100}, "head_dim is missing"),
    (LLAMA2_7B, {"no_rope_layers": [1] * 32}, "no_rope_layers"),
    (LLAMA2_7B, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "type 'dynamic'"),
    (LLAMA2_7B, {"rope_scaling": {"rope_type": "longrope"}}, "type 'longrope'"),
    (LLAMA2_7B, {"rope_scaling": {"type": "linear", "rope_type": "yarn"}}, "disagree"),
    (LLAMA2_7B, {"rope_scaling": {"type": "linear"}}, "factor must be float"),
    (LLAMA2_7B, {"rope_scaling": {"type": "linear", "factor": 0.5}}, "below 1"),
    (LLAMA2_7B, {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor"),
    (LLAMA2_7B, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "original_max_position"),
    (LLAMA2_7B, {"rope_scaling": {**YARN, "mscale": 1.0}}, "unknown: mscale"),
    (LLAMA2_7B, {"rope_scaling": {**YARN, "beta_fast": 0.5}}, "beta_fast"),
    (LLAMA2_7B, {"rope_scaling": YARN, "rope_parameters": LLAMA3}, "disagree"),
    (QWEN25_HALF_B, {"use_mrope": True}, "use_mrope"),
    (QWEN25_HALF_B, {"use_sliding_window": True}, "use_sliding_window"),
    (SMOLLM3_3B, {"no_rope_layers": [1, 0]}, "no_rope_layers must list"),
    (SMOLLM3_3B, {"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval"),
]


@pytest.mark.parametrize(("fields", "change", "words"), REFUSED, ids=[c[2][:30] for c in REFUSED])
def test_what_would_be_computed_differently_is_refused(fields, change, words):
    with pytest.raises(CheckpointError, match=words):
        from_hf({**fields, **change})


def test_a_mistral_that_names_no_window_has_one():
    unsaid = {key: value for key, value in MISTRAL_7B.items() if key != "sliding_window"}
    with pytest.raises(CheckpointError, match="sliding_window 4096"):
        from_hf(unsaid)
    assert from_hf({**unsaid, "max_position_embeddings": 4096}) == from_hf(MISTRAL_7B)


def test_nothing_that_a_qwen3_says_may_be_left_out():
    fields = to_hf(tiny_teacher(), "float32")
    for key in ("head_dim", "num_key_value_heads", "tie_word_embeddings"):
        with pytest.raises(CheckpointError, match=f"{key} is missing"):
            from_hf({name: value for name, value in fields.items() if name != key})


@pytest.mark.parametrize("fields", [LLAMA32_1B, QWEN25_HALF_B, MISTRAL_7B, SMOLLM3_3B])
def test_strange_values_are_read_or_refused_and_never_crash(fields):
    check_strange_values(fields)


def test_rotary_frequencies_beside_the_weights_are_passed_over(tmp_path):
    config = tiny_teacher(family="llama")
    params = random_params(config)
    save_hf(tmp_path, config, params, dtype="float32")
    file = tmp_path / "model.safetensors"
    frequencies = {"model.layers.1.self_attn.rotary_emb.inv_freq": np.ones(4, np.float64)}
    save_file(load_file(file) | frequencies, file, metadata={"format": "pt"})
    read, leaves = read_hf(tmp_path)
    assert read == config
    assert leaves["layer_1"].keys() == params["layer_1"].keys()
