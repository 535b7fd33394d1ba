"""Published models as values. Each number is the one of the model's own `config.json`.

Teachers: the Qwen3 family (arXiv 2505.09388). Students: the released HypeNet models (arXiv 2601.22156).
"""

from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.mixers import SoftmaxSpec

QWEN3_VOCABULARY = 151_936
QWEN3_ROPE_THETA = 1e6
QWEN3_HEAD_DIM = 128
QWEN3_KV_HEADS = 8

HYPENET_2B_SOFTMAX_LAYERS = (2, 3, 6, 8, 9, 21, 25)
HYPENET_5B_SOFTMAX_LAYERS = (0, 1, 7, 14, 15, 22, 24, 31, 33)
HYPENET_9B_SOFTMAX_LAYERS = (1, 2, 4, 6, 7, 10, 24, 33, 34)


def qwen3(
    *, layers: int, d_model: int, d_mlp: int, num_heads: int, tie_embeddings: bool
) -> ModelConfig:
    """A Qwen3 of any size: what its family shares is fixed here."""
    mixer = SoftmaxSpec(num_heads, QWEN3_KV_HEADS, QWEN3_HEAD_DIM, QWEN3_ROPE_THETA)
    return ModelConfig(QWEN3_VOCABULARY, d_model, d_mlp, (mixer,) * layers, tie_embeddings)


def qwen3_0p6b() -> ModelConfig:
    """Qwen3-0.6B: 28 layers, 16 heads."""
    return qwen3(layers=28, d_model=1024, d_mlp=3072, num_heads=16, tie_embeddings=True)


def qwen3_1p7b() -> ModelConfig:
    """Qwen3-1.7B: 28 layers, 16 heads; the teacher of HypeNet-2B."""
    return qwen3(layers=28, d_model=2048, d_mlp=6144, num_heads=16, tie_embeddings=True)


def qwen3_4b() -> ModelConfig:
    """Qwen3-4B: 36 layers, 32 heads; the teacher of HypeNet-5B."""
    return qwen3(layers=36, d_model=2560, d_mlp=9728, num_heads=32, tie_embeddings=True)


def qwen3_8b() -> ModelConfig:
    """Qwen3-8B: 36 layers, 32 heads, a head of its own; the teacher of HypeNet-9B."""
    return qwen3(layers=36, d_model=4096, d_mlp=12288, num_heads=32, tie_embeddings=False)


def qwen3_14b() -> ModelConfig:
    """Qwen3-14B: 40 layers, 40 heads, a head of its own."""
    return qwen3(layers=40, d_model=5120, d_mlp=17408, num_heads=40, tie_embeddings=False)


def qwen3_32b() -> ModelConfig:
    """Qwen3-32B: 64 layers, 64 heads, a head of its own."""
    return qwen3(layers=64, d_model=5120, d_mlp=25600, num_heads=64, tie_embeddings=False)


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
