"""Published models as values. Each number is the one of the model's own `config.json`.

Teachers: the Qwen3 family (arXiv 2505.09388), SmolLM2 (arXiv 2502.02737). Students: the released HypeNet
models (arXiv 2601.22156).
"""

import functools

from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.mixers import SoftmaxSpec

HYPENET_2B_SOFTMAX_LAYERS = (2, 3, 6, 8, 9, 21, 25)
HYPENET_5B_SOFTMAX_LAYERS = (0, 1, 7, 14, 15, 22, 24, 31, 33)
HYPENET_9B_SOFTMAX_LAYERS = (1, 2, 4, 6, 7, 10, 24, 33, 34)


def qwen3(
    layers: int, d_model: int, d_mlp: int, num_heads: int, *, tie_embeddings: bool
) -> ModelConfig:
    """A Qwen3 of any size: what its family shares is fixed here."""
    mixer = SoftmaxSpec(num_heads, num_kv_heads=8, head_dim=128, rope_theta=1e6)
    return ModelConfig(
        vocab_size=151_936,
        d_model=d_model,
        d_mlp=d_mlp,
        mixers=(mixer,) * layers,
        tie_embeddings=tie_embeddings,
    )


qwen3_0p6b = functools.partial(qwen3, 28, 1024, 3072, 16, tie_embeddings=True)
"""Qwen3-0.6B."""
qwen3_1p7b = functools.partial(qwen3, 28, 2048, 6144, 16, tie_embeddings=True)
"""Qwen3-1.7B; the teacher of HypeNet-2B."""
qwen3_4b = functools.partial(qwen3, 36, 2560, 9728, 32, tie_embeddings=True)
"""Qwen3-4B; the teacher of HypeNet-5B."""
qwen3_8b = functools.partial(qwen3, 36, 4096, 12288, 32, tie_embeddings=False)
"""Qwen3-8B, a head of its own; the teacher of HypeNet-9B."""
qwen3_14b = functools.partial(qwen3, 40, 5120, 17408, 40, tie_embeddings=False)
"""Qwen3-14B, a head of its own."""
qwen3_32b = functools.partial(qwen3, 64, 5120, 25600, 64, tie_embeddings=False)
"""Qwen3-32B, a head of its own."""


def smollm2_135m() -> ModelConfig:
    """SmolLM2-135M, base and Instruct: a Llama without q/k norms."""
    mixer = SoftmaxSpec(9, num_kv_heads=3, head_dim=64, rope_theta=1e5, qk_norm=False)
    return ModelConfig(
        vocab_size=49_152,
        d_model=576,
        d_mlp=1536,
        mixers=(mixer,) * 30,
        tie_embeddings=True,
        norm_eps=1e-5,
    )


def hypenet_2b() -> ModelConfig:
    """HypeNet-2B, from Qwen3-1.7B: 7 of 28 layers keep softmax attention."""
    return hypenet(qwen3_1p7b(), HYPENET_2B_SOFTMAX_LAYERS)


def hypenet_5b() -> ModelConfig:
    """HypeNet-5B, from Qwen3-4B: 9 of 36 layers keep softmax attention."""
    return hypenet(qwen3_4b(), HYPENET_5B_SOFTMAX_LAYERS)


def hypenet_9b() -> ModelConfig:
    """HypeNet-9B, from Qwen3-8B: 9 of 36 layers keep softmax attention.

    The head stays untied, as the teacher's is; the released checkpoint ties it, and its own `config.json` says so.
    """
    return hypenet(qwen3_8b(), HYPENET_9B_SOFTMAX_LAYERS)
