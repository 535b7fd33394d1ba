"""Tiny models whose every axis has another size, so that a wrong transposition cannot pass."""

from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.mixers import SoftmaxSpec

QWEN3 = ModelConfig(
    vocab_size=40,
    d_model=24,
    d_mlp=36,
    mixers=(SoftmaxSpec(num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e6),) * 3,
    tie_embeddings=False,
)
HYPENET = hypenet(QWEN3, (0,))
