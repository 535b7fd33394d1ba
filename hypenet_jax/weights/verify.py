"""Float32 logits of a checkpoint folder on fixed tokens: here, and in transformers, the oracle."""

import importlib
import importlib.util
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from hypenet_jax.axes import Params
from hypenet_jax.weights.families import FAMILIES
from hypenet_jax.weights.hf_config import read_json
from hypenet_jax.weights.safetensors import load_hf


def our_logits(folder: str | os.PathLike[str]) -> np.ndarray:
    """Logits, "B T V", of this project's decoder."""
    decoder, params = load_hf(folder, dtype=jnp.float32)

    @jax.jit
    def logits(params: Params, tokens: jax.Array) -> jax.Array:
        bound = decoder.bind({"params": params})
        return bound.logits(bound(tokens).hidden)

    return np.asarray(logits(params, _tokens(decoder.config.vocab_size)))


def transformers_can_read(folder: str | os.PathLike[str]) -> bool:
    """Is transformers installed, and the folder a model that it has (one of `FAMILIES`, not HypeNet)?"""
    kind = read_json(pathlib.Path(folder) / "config.json")["model_type"]
    return kind in FAMILIES and importlib.util.find_spec("transformers") is not None


def their_logits(folder: str | os.PathLike[str]) -> np.ndarray:
    """The same of transformers; needs `transformers_can_read`."""
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    )
    tokens = torch.tensor(_tokens(model.config.vocab_size))
    with torch.no_grad():
        return model(tokens).logits.numpy()


def _tokens(vocab_size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, (2, 96), dtype=np.int32)
