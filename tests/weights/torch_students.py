"""Tiny students, every option of whose mixers is on somewhere and off elsewhere, run here and by transformers."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypenet_jax.axes import Params
from hypenet_jax.model.config import ModelConfig, with_logit_scale
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.hype import LogLengthScale
from hypenet_jax.model.mixers import LightningSpec, SoftmaxSpec
from hypenet_jax.model.rope_scaling import LinearScaling, Llama3Scaling, YarnScaling
from hypenet_jax.testing import random_params
from hypenet_jax.weights import load_hf, save_hf

VOCABULARY = 40
SOFTMAX = SoftmaxSpec(num_heads=4, num_kv_heads=2, head_dim=8, output_gate=True)
LIGHTNING = LightningSpec(num_heads=3, head_dim=8, rope_theta=1e4)
PLAIN = LightningSpec(*(4, 6, None, "1/d"), qk_norm=False, output_norm=False, output_gate=False)


def student(*mixers: Any, tie_embeddings: bool = True) -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCABULARY, d_model=24, d_mlp=36, mixers=mixers, tie_embeddings=tie_embeddings
    )


HYBRID = with_logit_scale(student(LIGHTNING, SOFTMAX, LIGHTNING, SOFTMAX), LogLengthScale(20.0))
# So short that 150 tokens reach the frequencies that they change.
SCALINGS = {
    "linear": LinearScaling(2.0),
    "llama3": Llama3Scaling(4.0, 1.0, 4.0, 64),
    "yarn": YarnScaling(4.0, 64),
}
STUDENTS = {
    "hybrid": HYBRID,
    "grouped": student(
        dataclasses.replace(LIGHTNING, num_heads=4, num_kv_heads=2, qkv_bias=True), SOFTMAX
    ),
    "recurrent": student(LIGHTNING, LIGHTNING, tie_embeddings=False),
    "plain": with_logit_scale(
        student(PLAIN, dataclasses.replace(SOFTMAX, output_gate=False, num_kv_heads=4)), 1.5
    ),
    **{
        name: student(
            dataclasses.replace(LIGHTNING, rope_scaling=scaling, qkv_bias=True),
            dataclasses.replace(SOFTMAX, qk_norm=False, qkv_bias=True),
        )
        for name, scaling in SCALINGS.items()
    },
    "rotary": student(*[dataclasses.replace(SOFTMAX, rope_theta=1e4)] * 2),
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """One exported student: `theirs` is transformers' model of the folder."""

    folder: pathlib.Path
    decoder: Decoder
    params: Params
    theirs: Any

    def ours(self, tokens: np.ndarray, **layout: Any) -> np.ndarray:
        """Float32 logits."""
        layout = {name: jnp.asarray(value) for name, value in layout.items()}
        return np.asarray(_logits(self.decoder, self.params, jnp.asarray(tokens), layout))


@functools.partial(jax.jit, static_argnums=0)
def _logits(decoder: Decoder, params: Params, tokens: jax.Array, layout: Any) -> jax.Array:
    bound = decoder.bind({"params": params})
    return bound.logits(bound(tokens, **layout).hidden)


def export(folder: pathlib.Path, config: ModelConfig) -> Pair:
    """Writes random weights and loads them with both."""
    import torch
    from transformers import AutoModelForCausalLM

    save_hf(folder, config, random_params(config), dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32
    )
    return Pair(folder, *load_hf(folder), theirs.eval())


def random_tokens(rows: int, time: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (rows, time))
