"""FLOPs of models by formula. XLA's own count takes the body of a scan once and a Pallas kernel for nothing.

A product of an [a, b] and a [b, c] matrix counts 2 a b c; norms, gates, rotations and softmaxes count nothing. Softmax
attention counts the causal half of the pairs, as if every row were one document. Lightning attention counts its
recurrent form, 4 N H^2 per token: what a chunked kernel does beyond that is how it does it, not what is asked.
"""

import dataclasses

from hypenet_jax.config import StageConfig
from hypenet_jax.convert.models import student_config
from hypenet_jax.halo.align import AlignConfig
from hypenet_jax.halo.distill import DistillConfig
from hypenet_jax.halo.transfer import aligned_spec
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


def training_flops(run: StageConfig) -> Flops:
    """FLOPs of one step of a stage.

    align: the teacher's layers forward; of every mixer the forward pass, the gradient of its weights, and that of the
    outputs of its heads. distill: teacher forward, student with gradients. finetune: student with gradients.
    """
    assert run.training is not None
    rows, length = run.data.sequences_per_step, run.data.context_length
    teacher = layers_flops(run.teacher, length)
    if isinstance(run.method, AlignConfig):
        return Flops(rows * (teacher + _aligning(run.teacher, length)))
    student = student_config(run)
    layers = layers_flops(student, length)
    model = WITH_GRADIENTS * (layers + head_flops(student, length))
    if isinstance(run.method, DistillConfig):
        model += FORWARD * (teacher + head_flops(run.teacher, length))
    again = layers if run.training.remat == "full" else 0.0
    return Flops(rows * model, rows * again)


def layers_flops(config: ModelConfig, length: int, before: int = 0) -> float:
    """Forward pass of `length` tokens that follow `before` others, through every layer and no head."""
    return sum(
        length * (sum(_projections(spec, config.d_model)) + 6 * config.d_model * config.d_mlp)
        + _mixing(spec, length, before)
        for spec in config.mixers
    )


def head_flops(config: ModelConfig, tokens: int) -> float:
    """Logits of this many tokens."""
    return 2.0 * tokens * config.d_model * config.vocab_size


def _aligning(teacher: ModelConfig, length: int) -> float:
    """Mixers of all layers: what they read is a constant, so no gradient goes there."""
    spec = aligned_spec(teacher)
    inward, outward = _projections(spec, teacher.d_model)
    mixing = WITH_GRADIENTS * _mixing(spec, length, 0)
    one = length * (2 * inward + WITH_GRADIENTS * outward) + mixing
    return teacher.num_layers * one


def _projections(spec: MixerSpec, d_model: int) -> tuple[float, float]:
    """Per token: from the stream to the heads (queries, keys, values, gate), and back."""
    kv_heads = spec.num_kv_heads if isinstance(spec, SoftmaxSpec) else spec.num_heads
    heads = spec.num_heads * (1 + spec.output_gate) + 2 * kv_heads
    return 2.0 * d_model * heads * spec.head_dim, 2.0 * d_model * spec.num_heads * spec.head_dim


def _mixing(spec: MixerSpec, length: int, before: int) -> float:
    if isinstance(spec, SoftmaxSpec):
        pairs = length * before + length * (length + 1) / 2
        return 4.0 * spec.num_heads * spec.head_dim * pairs
    return 4.0 * length * spec.num_heads * spec.head_dim**2
