"""FLOPs of models by formula. XLA's own count takes the body of a scan once and a Pallas kernel for nothing.

A product of an [a, b] and a [b, c] matrix counts 2 a b c; norms, gates, rotations and softmaxes count nothing. Softmax
attention counts the causal half of the pairs, as if every row were one document. Lightning attention counts its
recurrent form, 4 N H^2 per token: what a chunked kernel does beyond that is how it does it, not what is asked.
"""

import dataclasses

from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.mixers import MixerSpec, SoftmaxSpec

# Weight and input of a product each need one more product in the backward pass.
FORWARD, WITH_GRADIENTS = 1, 3


@dataclasses.dataclass(frozen=True)
class Flops:
    """Of one call of a program, over all devices.

    Attributes:
      model: what the mathematics asks for.
      recomputed: what the backward pass computes a second time, beside `model`.
    """

    model: float
    recomputed: float = 0.0


def layers_flops(config: ModelConfig, length: int, before: int = 0) -> float:
    """Forward pass of `length` tokens that follow `before` others, through every layer and no head."""
    return sum(
        length * (sum(projections_flops(spec, config.d_model)) + 6 * config.d_model * config.d_mlp)
        + mixing_flops(spec, length, before)
        for spec in config.mixers
    )


def head_flops(config: ModelConfig, tokens: int) -> float:
    """Logits of this many tokens."""
    return 2.0 * tokens * config.d_model * config.vocab_size


def projections_flops(spec: MixerSpec, d_model: int) -> tuple[float, float]:
    """Per token: from the stream to the heads (queries, keys, values, gate), and back."""
    kv_heads = spec.num_kv_heads if isinstance(spec, SoftmaxSpec) else spec.num_heads
    heads = spec.num_heads * (1 + spec.output_gate) + 2 * kv_heads
    return 2.0 * d_model * heads * spec.head_dim, 2.0 * d_model * spec.num_heads * spec.head_dim


def mixing_flops(spec: MixerSpec, length: int, before: int) -> float:
    if isinstance(spec, SoftmaxSpec):
        pairs = length * before + length * (length + 1) / 2
        return 4.0 * spec.num_heads * spec.head_dim * pairs
    return 4.0 * length * spec.num_heads * spec.head_dim**2
