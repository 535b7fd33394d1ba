"""Tiny models whose every axis has another size, so that a wrong transposition cannot pass."""

import jax.numpy as jnp
import numpy as np

from hypenet_jax.axes import Params
from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.mixers import SoftmaxSpec
from hypenet_jax.weights.names import nest, tensors

QWEN3 = ModelConfig(
    vocab_size=40,
    d_model=24,
    d_mlp=36,
    mixers=(SoftmaxSpec(num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e6),) * 3,
    tie_embeddings=False,
)
HYPENET = hypenet(QWEN3, (0,))


def random_params(config: ModelConfig, dtype: jnp.dtype = jnp.float32) -> Params:
    """Single layers, all values random and different, norms included."""
    draw = np.random.default_rng(0)
    leaves = {t.ours: 0.25 * draw.normal(size=t.our_shape) for t in tensors(config)}
    return nest(
        {path: jnp.asarray(x + path.endswith("scale"), dtype) for path, x in leaves.items()}
    )
