"""HALO in JAX: convert a pretrained Transformer into HypeNet, and run either. Only the front door."""

from hypenet_jax.generation.decode import Sampling
from hypenet_jax.generation.generate import generate
from hypenet_jax.model.config import MixerOptions, ModelConfig, hypenet, with_logit_scale
from hypenet_jax.model.decoder import Decoder, DecodeState, Output, decode_state, init_params
from hypenet_jax.model.hype import LogLengthScale
from hypenet_jax.model.mixers import LightningSpec, SoftmaxSpec
from hypenet_jax.model.presets import (
    hypenet_2b,
    hypenet_5b,
    hypenet_9b,
    qwen3_0p6b,
    qwen3_1p7b,
    qwen3_4b,
    qwen3_8b,
    qwen3_14b,
    qwen3_32b,
)
from hypenet_jax.model.stacking import stack_layers, unstack_layers
from hypenet_jax.weights import load_hf, save_hf

__all__ = [
    "DecodeState",
    "Decoder",
    "LightningSpec",
    "LogLengthScale",
    "MixerOptions",
    "ModelConfig",
    "Output",
    "Sampling",
    "SoftmaxSpec",
    "decode_state",
    "generate",
    "hypenet",
    "hypenet_2b",
    "hypenet_5b",
    "hypenet_9b",
    "init_params",
    "load_hf",
    "qwen3_0p6b",
    "qwen3_1p7b",
    "qwen3_4b",
    "qwen3_8b",
    "qwen3_14b",
    "qwen3_32b",
    "save_hf",
    "stack_layers",
    "unstack_layers",
    "with_logit_scale",
]
