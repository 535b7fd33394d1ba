"""Every family as transformers computes it: logits, scaled positions, greedy tokens, and the tokens of a text."""

import dataclasses
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.data.tokenizer import load_tokenizer
from hypenet_jax.generation.generate import generate
from hypenet_jax.model.hype import rotary_angles
from hypenet_jax.testing import random_params, tiny_teacher, write_folder
from hypenet_jax.weights import FAMILIES, load_hf, read_config, save_hf
from hypenet_jax.weights.rotary import rotary_from_hf
from hypenet_jax.weights.verify import our_logits, their_logits, transformers_can_read

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

# Of width 8 and base 100 some frequencies turn often, some rarely in 32 tokens.
LONG = {"original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **LONG}
YARN = {"rope_type": "yarn", **LONG}
SCALINGS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {**LLAMA3, "factor": 8.0},
    "yarn": {**YARN, "factor": 4.0},
    "yarn with all": {
        **YARN,
        "factor": 4.0,
        "attention_factor": 0.8,
        "beta_fast": 4.0,
        "beta_slow": 0.5,
        "truncate": False,
    },
}
by_family = pytest.mark.parametrize("family", FAMILIES)
by_scaling = pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)


@pytest.fixture(scope="module")
def hf() -> Any:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    rope = pytest.importorskip("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS
    return types.SimpleNamespace(torch=torch, transformers=transformers, rope=rope)


def their_model(hf, family: str, scaling: dict, *, tied: bool, head_dim: int | None = 8):
    """A random model of theirs, norms and biases random too."""
    fields = {
        "vocab_size": 40,
        "hidden_size": 24,
        "intermediate_size": 36,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        "rope_parameters": {"rope_theta": 100.0, **scaling},
        "initializer_range": 0.3,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        **({"head_dim": head_dim} if head_dim else {}),
        **({"sliding_window": None} if family == "mistral" else {}),
    }
    hf.torch.manual_seed(0)
    config = hf.transformers.AutoConfig.for_model(family, **fields)
    model = hf.transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            mean = 0.0 if name.endswith("bias") else 1.0
            hf.torch.nn.init.normal_(parameter, mean, 0.3)
    return model


def agree(folder, tolerance: float = 1e-4) -> None:
    assert transformers_can_read(folder)
    np.testing.assert_allclose(our_logits(folder), their_logits(folder), rtol=0, atol=tolerance)


@by_family
@pytest.mark.parametrize("tied", [True, False])
def test_we_compute_what_transformers_saved(hf, family, tied, tmp_path):
    their_model(hf, family, SCALINGS["default"], tied=tied).save_pretrained(tmp_path)
    config = read_config(tmp_path)
    assert config.tie_embeddings == tied
    assert {spec.qkv_bias for spec in config.mixers} == {family == "qwen2"}
    nope = [spec.rope_theta is None for spec in config.mixers]
    assert nope == [False, False, False, family == "smollm3"]
    agree(tmp_path)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "smollm3"])
def test_heads_may_be_the_width_over_their_number(hf, family, tmp_path):
    their_model(hf, family, SCALINGS["default"], tied=True, head_dim=None).save_pretrained(tmp_path)
    assert read_config(tmp_path).mixers[0].head_dim == 6
    agree(tmp_path)


@by_scaling
@pytest.mark.parametrize("family", ["qwen3", "llama", "smollm3"])
def test_scaled_positions_are_theirs(hf, family, scaling, tmp_path):
    their_model(hf, family, scaling, tied=True).save_pretrained(tmp_path)
    agree(tmp_path)


@by_scaling
@by_family
def test_transformers_computes_what_we_export(hf, family, scaling, tmp_path):
    fields = {"rope_theta": 100.0, "rope_scaling": scaling}
    theta, scales = rotary_from_hf(fields)
    config = tiny_teacher(40, family=family, layers=3)
    mixers = tuple(
        spec
        if spec.rope_theta is None
        else dataclasses.replace(spec, rope_theta=theta, rope_scaling=scales)
        for spec in config.mixers
    )
    config = dataclasses.replace(config, mixers=mixers)
    save_hf(tmp_path, config, random_params(config), dtype="float32")
    agree(tmp_path, tolerance=3e-4)


@by_family
def test_greedy_tokens_are_theirs(hf, family, tmp_path):
    theirs = their_model(hf, family, SCALINGS["yarn"], tied=False).eval()
    theirs.save_pretrained(tmp_path)
    prompt = np.random.default_rng(0).integers(0, 40, (2, 20), dtype=np.int32)
    written = theirs.generate(hf.torch.tensor(prompt), max_new_tokens=12, do_sample=False)
    decoder, params = load_hf(tmp_path)
    ours = generate(decoder, params, jnp.asarray(prompt), max_new_tokens=12)
    np.testing.assert_array_equal(ours, written[:, 20:].numpy())


REAL = [
    ("llama", 5e5, {**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 8192}),
    ("llama", 5e5, {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192}),
    ("qwen3", 1e6, {**YARN, "factor": 4.0, "original_max_position_embeddings": 32768}),
]


@pytest.mark.parametrize(("family", "theta", "said"), REAL)
def test_frequencies_of_released_models_are_theirs(hf, family, theta, said):
    fields = {"hidden_size": 256, "num_attention_heads": 2, "head_dim": 128}
    rope = {"rope_theta": theta, **said}
    config = hf.transformers.AutoConfig.for_model(family, **fields, rope_parameters=dict(rope))
    theirs, factor = hf.rope[said["rope_type"]](config)
    _, scaling = rotary_from_hf({"rope_parameters": rope})
    ours = rotary_angles(jnp.ones((1, 1), jnp.int32), 128, theta, scaling)[0, 0]
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)
    assert scaling is not None
    assert scaling.logit_factor == pytest.approx(factor**2)


def test_the_tokens_of_a_text_are_theirs(hf, tmp_path):
    folder = write_folder(tmp_path / "model", tiny_teacher(family="llama"))
    theirs = hf.transformers.AutoTokenizer.from_pretrained(folder)
    text = "The quick brown fox jumps over 13 lazy dogs; naïve café, 你好\n\n  x = y[1:]"
    ours = load_tokenizer(folder).encode(text)
    assert ours.tolist() == theirs(text, add_special_tokens=False)["input_ids"]
