"""Folders that the paper's authors released load; what would compute something else is refused by name."""

import json

import numpy as np
import pytest
from tiny_models import HYPENET, QWEN3

from hypenet_jax.model.config import hypenet, with_logit_scale
from hypenet_jax.model.hype import LogLengthScale
from hypenet_jax.testing import random_params
from hypenet_jax.weights import CheckpointError, read_hf, save_hf
from hypenet_jax.weights.hf_config import from_hf, to_hf
from hypenet_jax.weights.names import flatten

STUDENT = with_logit_scale(HYPENET, LogLengthScale(500.0))
RELEASED = {
    "architectures": ["HybridForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_hybrid.HybridConfig",
        "AutoModelForCausalLM": "modeling_hybrid.HybridForCausalLM",
    },
    "model_type": "hybrid",
    "attn_sqrtd": True,
    "expand_kv_proj": True,
    "fused_ce_loss": True,
    "loss_fn": "kl_div",
    "gdn_nh": 16,
    "gdn_use_gate": True,
    "kda_head_dim": 128,
    "mamba2_d_state": 128,
    "sliding_window_pattern": None,
    "pruned_heads": {},
    "_attn_implementation_autoset": True,
    "unsloth_version": "2026.1",
}


def released(config=STUDENT, **changes):
    return {**to_hf(config, "bfloat16"), **RELEASED, **changes}


def test_a_released_config_is_that_of_the_same_hypenet():
    assert from_hf(released()) == STUDENT


def test_a_released_folder_is_read_and_written_as_ours(tmp_path):
    params = random_params(STUDENT)
    save_hf(tmp_path / "released", STUDENT, params, dtype="float32")
    for file in (tmp_path / "released").glob("*.py"):
        file.rename(file.with_name(file.name.replace("hypenet", "hybrid")))
    (tmp_path / "released" / "config.json").write_text(json.dumps(released()))
    config, read = read_hf(tmp_path / "released")
    assert config == STUDENT
    for path, leaf in flatten(read).items():
        np.testing.assert_array_equal(leaf, flatten(params)[path])
    save_hf(tmp_path / "ours", config, read, dtype="float32")
    fields = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (fields["model_type"], "attn_sqrtd" in fields) == ("hypenet", False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attn_sqrtd": False}, "attn_sqrtd False is not supported, only true"),
        ({"attn_sqrtd": None}, "attn_sqrtd None is not supported"),
        ({"mixer_types": ["attn", "gdn", "lightning-attn"]}, "gdn"),
        ({"lightning_use_short_conv": True}, "lightning_use_short_conv"),
        ({"attn_window": 128}, "attn_window"),
        ({"attn_use_rope": None}, "attn_use_rope must be bool"),
    ],
)
def test_what_changes_the_computation_is_refused(change, words):
    with pytest.raises(CheckpointError, match=words):
        from_hf(released(**change))


def test_a_qwen3_has_no_fields_of_the_official_code():
    with pytest.raises(CheckpointError, match="attn_sqrtd"):
        from_hf({**to_hf(QWEN3, "bfloat16"), "attn_sqrtd": True})
    with pytest.raises(CheckpointError, match="attn_sqrtd"):
        from_hf({**to_hf(hypenet(QWEN3, (0,)), "bfloat16"), "attn_sqrtd": False})
