"""transformers reads what is written here and computes the same logits; and the other way round."""

import dataclasses

import numpy as np
import pytest
from tiny_models import HYPENET, QWEN3

from hypenet_jax.testing import random_params
from hypenet_jax.weights import read_hf, save_hf
from hypenet_jax.weights.verify import our_logits, their_logits, transformers_can_read

TIED = dataclasses.replace(QWEN3, tie_embeddings=True)


def test_logits_of_a_folder_are_float32_whatever_is_stored(tmp_path):
    save_hf(tmp_path, HYPENET, random_params(HYPENET), dtype="bfloat16")
    logits = our_logits(tmp_path)
    assert (logits.shape[-1], logits.dtype) == (40, np.float32)
    assert np.isfinite(logits).all()


def test_transformers_is_not_asked_about_hypenet(tmp_path):
    save_hf(tmp_path, HYPENET, random_params(HYPENET), dtype="float32")
    assert not transformers_can_read(tmp_path)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("config", [QWEN3, TIED])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_computes_the_logits_of_our_export(tmp_path, config, dtype):
    save_hf(tmp_path, config, random_params(config), dtype=dtype, max_shard_bytes=20_000)
    assert transformers_can_read(tmp_path)
    np.testing.assert_allclose(our_logits(tmp_path), their_logits(tmp_path), rtol=0, atol=1e-4)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_we_compute_the_logits_of_what_transformers_saved(tmp_path, tied, dtype):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    fields = transformers.Qwen3Config(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=tied,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(fields).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size=6_000)
    config, params = read_hf(tmp_path)
    assert config.tie_embeddings == tied
    assert params["embed"]["embedding"].dtype == dtype
    np.testing.assert_allclose(our_logits(tmp_path), their_logits(tmp_path), rtol=0, atol=1e-4)
