"""config.json in both generations of keys; what could change the computation is refused."""

import dataclasses
import json

import pytest
from strange_values import check_strange_values

from hypenet_jax.model.config import MixerOptions, ModelConfig, hypenet, with_logit_scale
from hypenet_jax.model.hype import LogLengthScale
from hypenet_jax.model.mixers import LightningSpec, SoftmaxSpec
from hypenet_jax.weights.hf_config import CheckpointError, from_hf, read_config, to_hf

SOFTMAX = SoftmaxSpec(num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e6)
QWEN3 = ModelConfig(vocab_size=40, d_model=24, d_mlp=36, mixers=(SOFTMAX,) * 3, tie_embeddings=True)
HYPENET = hypenet(QWEN3, (1,))


def old(fields: dict) -> dict:
    """The file as transformers 4 writes it."""
    return {k: v for k, v in fields.items() if k not in ("rope_parameters", "dtype")}


def new(fields: dict) -> dict:
    """The file as transformers 5 writes it."""
    dropped = ("rope_theta", "rope_scaling", "torch_dtype")
    return {k: v for k, v in fields.items() if k not in dropped}


@pytest.mark.parametrize("generation", [dict, old, new])
@pytest.mark.parametrize(
    "config",
    [
        QWEN3,
        HYPENET,
        hypenet(QWEN3, ()),
        hypenet(QWEN3, (0, 1, 2)),
        hypenet(QWEN3, (0,), softmax=MixerOptions(rope=True)),
        with_logit_scale(HYPENET, LogLengthScale(500.0)),
        with_logit_scale(HYPENET, LogLengthScale(361.5)),
        with_logit_scale(HYPENET, 1.25),
        dataclasses.replace(QWEN3, tie_embeddings=False, norm_eps=1e-5),
    ],
)
def test_export_then_import_is_the_identity(config, generation):
    fields = json.loads(json.dumps(to_hf(config, "bfloat16")))
    assert from_hf(generation(fields)) == config


def test_export_names_qwen3_and_hypenet():
    assert to_hf(QWEN3, "bfloat16")["architectures"] == ["Qwen3ForCausalLM"]
    fields = to_hf(HYPENET, "bfloat16")
    assert (fields["model_type"], fields["architectures"]) == ("hypenet", ["HypeNetForCausalLM"])
    assert fields["mixer_types"] == ["lightning-attn", "attn", "lightning-attn"]
    assert "auto_map" not in fields


def test_export_takes_over_token_ids_but_no_architecture():
    source = {"eos_token_id": [7, 8], "max_position_embeddings": 4096, "hidden_size": 1}
    fields = to_hf(QWEN3, "bfloat16", source)
    assert fields["eos_token_id"] == [7, 8]
    assert fields["max_position_embeddings"] == 4096
    assert fields["hidden_size"] == 24


def test_lightning_heads_may_share_keys_and_values():
    fields = {**to_hf(HYPENET, "bfloat16"), "lightning_nkv": 2, "expand_kv_proj": False}
    config = from_hf(fields)
    assert config.mixers[0] == LightningSpec(4, 8, 1e6, num_kv_heads=2)
    assert to_hf(config, "bfloat16") == fields


def test_the_readmes_spelling_of_the_layer_plan_is_read():
    fields = to_hf(HYPENET, "bfloat16")
    fields["mixer_type"] = fields.pop("mixer_types")
    assert from_hf(fields) == HYPENET


@pytest.mark.parametrize(
    ("written", "scale"),
    [
        (None, None),
        (2, 2.0),
        (0.5, 0.5),
        ("hype", LogLengthScale(362.0)),
        ("hype 500", LogLengthScale(500.0)),
    ],
)
def test_spellings_of_the_logit_scale(written, scale):
    config = from_hf({**to_hf(HYPENET, "bfloat16"), "attn_logits_scaling": written})
    assert config.mixers[1].logit_scale == scale


REFUSED = [
    ({"model_type": "gemma"}, "model_type 'gemma'"),
    ({"rope_theta": None, "rope_parameters": None}, "rotary base"),
    ({"rope_theta": 1e4}, "disagree"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling"),
    ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "linear"}}, "rope_parameters"),
    ({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}, "rope_parameters"),
    ({"use_sliding_window": True}, "use_sliding_window"),
    ({"sliding_window": 128}, "sliding_window"),
    ({"layer_types": ["sliding_attention"] * 3}, "layer_types"),
    ({"attention_bias": True}, "attention_bias"),
    ({"attention_dropout": 0.1}, "attention_dropout"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"hidden_size": "24"}, "hidden_size must be int"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings must be bool"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"mixer_types": ["attn"] * 2}, "must list num_hidden_layers"),
    ({"mixer_types": ["attn", "mamba2", "attn"]}, "mamba2"),
    ({"mixer_type": ["attn"] * 3}, "exactly one of"),
    ({"attn_logits_scaling": "hype 1"}, "attn_logits_scaling"),
    ({"attn_logits_scaling": "log"}, "attn_logits_scaling"),
    ({"lightning_nkv": 3}, "lightning_nh 4 is no multiple of lightning_nkv 3"),
    ({"lightning_head_dim": 4}, "lightning_head_dim"),
    ({"lightning_scale": "d"}, "lightning_scale"),
    ({"lightning_use_short_conv": True}, "lightning_use_short_conv"),
    ({"lightning_rope_scaling": True}, "lightning_rope_scaling"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=[str(c)[1:40] for c, _ in REFUSED])
def test_what_would_be_computed_differently_is_refused(change, words):
    fields = {**to_hf(HYPENET, "bfloat16"), **change}
    if "sliding_window" in change:
        fields.pop("use_sliding_window", None)
    with pytest.raises(CheckpointError, match=words):
        from_hf(fields)


@pytest.mark.parametrize("key", ["lightning_use_output_gate", "attn_logits_scaling", "mixer_types"])
def test_no_field_is_filled_with_a_default(key):
    fields = to_hf(HYPENET, "bfloat16")
    del fields[key]
    with pytest.raises(CheckpointError, match=key):
        from_hf(fields)


def test_fields_of_hypenet_are_unknown_in_qwen3():
    with pytest.raises(CheckpointError, match="attn_use_rope"):
        from_hf({**to_hf(QWEN3, "bfloat16"), "attn_use_rope": False})


def test_one_error_lists_everything():
    fields = {**to_hf(QWEN3, "bfloat16"), "attention_bias": True, "surprise": 1, "head_dim": -8}
    del fields["vocab_size"]
    with pytest.raises(CheckpointError) as error:
        from_hf(fields)
    for word in ("attention_bias", "surprise", "head_dim", "vocab_size"):
        assert word in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 2}', "\udcff"])
def test_a_file_that_is_no_config_is_refused_with_its_path(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "mixers",
    [
        (SOFTMAX, dataclasses.replace(SOFTMAX, num_kv_heads=4)),
        (SOFTMAX, LightningSpec(4, 8, 1e4)),
        (dataclasses.replace(SOFTMAX, rope_theta=None), LightningSpec(4, 16, 1e4)),
    ],
)
def test_a_plan_without_fields_to_say_it_is_not_exported(mixers):
    with pytest.raises(ValueError, match=r"config\.json"):
        to_hf(dataclasses.replace(QWEN3, mixers=mixers), "bfloat16")


@pytest.mark.parametrize("config", [QWEN3, HYPENET], ids=["qwen3", "hypenet"])
def test_strange_values_are_read_or_refused_and_never_crash(config):
    check_strange_values(to_hf(config, "bfloat16"))
