"""Weights in and out: Hugging Face folders of Transformers (`FAMILIES`) and HypeNet, without torch."""

from hypenet_jax.weights.export import save_hf
from hypenet_jax.weights.families import FAMILIES
from hypenet_jax.weights.hf_config import CheckpointError, read_config
from hypenet_jax.weights.safetensors import load_hf, read_hf

__all__ = ["FAMILIES", "CheckpointError", "load_hf", "read_config", "read_hf", "save_hf"]
