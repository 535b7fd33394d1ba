"""FLOPs and bytes of a model, by formula; each mixer's are in its file.

A product of an [a, b] and a [b, c] matrix counts 2 a b c; norms, gates, rotations and softmaxes count nothing. Softmax
attention counts the causal half of the pairs, as if every row were one segment. XLA's own count takes the body of a
scan once and a Pallas kernel for nothing.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.decoder import Decoder, init_params

# Weight and input of a product each need one more product in the backward pass.
WITH_GRADIENTS = 3


@dataclasses.dataclass(frozen=True)
class Flops:
    """Of one call of a program, over all devices: what the mathematics asks for, and what the backward pass repeats."""

    model: float
    recomputed: float = 0.0


@dataclasses.dataclass(frozen=True)
class Work:
    """The least that a program moves and computes: bytes read or written, and FLOPs."""

    bytes: int
    flops: float


def layers_flops(config: ModelConfig, tokens: int, before: int = 0) -> float:
    """Forward pass of this many tokens that follow `before` others, through every layer and no head."""
    mlp = 6.0 * config.d_model * config.d_mlp
    return sum(
        tokens * (sum(spec.projection_flops(config.d_model)) + mlp)
        + spec.mixing_flops(tokens, before)
        for spec in config.mixers
    )


def head_flops(config: ModelConfig, tokens: int) -> float:
    """Logits of this many tokens."""
    return 2.0 * tokens * config.d_model * config.vocab_size


def state_bytes(config: ModelConfig, capacity: int, dtype: DTypeLike) -> int:
    """Bytes of one row of `decode_state`: those of its mixers, and 4 (capacity + 4) of its cache position."""
    size = jnp.dtype(dtype).itemsize
    return sum(spec.state_bytes(capacity, size) for spec in config.mixers) + 4 * (capacity + 4)


def weight_bytes(config: ModelConfig, dtype: DTypeLike) -> int:
    """Bytes of the parameters that every token reads: all but the embedding, unless it is also the head."""
    shapes = jax.eval_shape(lambda key: init_params(Decoder(config), key), jax.random.key(0))
    numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    if not config.tie_embeddings:
        numbers -= config.vocab_size * config.d_model
    return numbers * jnp.dtype(dtype).itemsize


def decode_work(config: ModelConfig, length: int, dtype: DTypeLike) -> Work:
    """The last token of one row of this length: all weights are read once, and the states."""
    states = [spec.decode_bytes(length, jnp.dtype(dtype).itemsize) for spec in config.mixers]
    flops = layers_flops(config, 1, before=length - 1) + head_flops(config, 1)
    return Work(weight_bytes(config, dtype) + sum(states), flops)


def prefill_work(config: ModelConfig, length: int, dtype: DTypeLike) -> Work:
    """One row of this length and the logits after it: all weights are read once, the states written."""
    states = [spec.state_bytes(length, jnp.dtype(dtype).itemsize) for spec in config.mixers]
    flops = layers_flops(config, length) + head_flops(config, 1)
    return Work(weight_bytes(config, dtype) + sum(states), flops)
