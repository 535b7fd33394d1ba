"""Stage 2: the student's next-token distribution follows the teacher's, KL(teacher || student), everything trainable.

The teacher's forward pass is inside the jitted step, so nothing of it is stored. Source: arXiv 2601.22156.
"""

import dataclasses

import jax
import jax.numpy as jnp

from hypenet_jax.axes import Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.halo.transfer import transfer, with_mixers
from hypenet_jax.losses import Mean, distillation, real_tokens, token_gap
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.decoder import Decoder, Tap, output_head
from hypenet_jax.train.stage import Stage


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """Stage 2.

    Attributes:
      start_from: name of the stage-1 run whose mixers the lightning layers start from.
      temperature: of both softmaxes; the loss is multiplied by its square.
      hidden_weight: weight of the mean relative squared gap between what student and teacher layers read; 0 is the
        published recipe.
    """

    start_from: str
    temperature: float = 1.0
    hidden_weight: float = 0.0


def distill_stage(config: DistillConfig, student: Decoder, teacher: Decoder) -> Stage:
    """Trains the whole student (stacked by runs) against the frozen teacher (stacked by runs)."""
    compare_hidden = config.hidden_weight > 0

    def loss(params: Params, frozen: Params | None, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        assert frozen is not None
        text = (batch.tokens, batch.positions, batch.segment_ids)
        want = jax.lax.stop_gradient(teacher.apply({"params": frozen}, *text, taps=compare_hidden))
        have = student.apply({"params": params}, *text, taps=compare_hidden)
        weights = real_tokens(batch.segment_ids)
        kl = distillation(
            have.hidden,
            output_head(params, student.config),
            want.hidden,
            output_head(frozen, teacher.config),
            weights,
            temperature=config.temperature,
        )
        if not compare_hidden:
            return kl, {"kl": kl}
        gap = _hidden_gap(have.taps, want.taps, batch)
        total = Mean(kl.total + config.hidden_weight * gap.total, kl.weight)
        return total, jax.lax.stop_gradient({"kl": kl, "hidden_gap": gap})

    return Stage("distill", loss, trainable=lambda path: True)


def distill_start(
    teacher_config: ModelConfig,
    teacher: Params,
    student_config: ModelConfig,
    mixers: Params,
    key: jax.Array,
) -> Params:
    """Where stage 2 starts: stage-1 mixers in the lightning layers, the teacher's attention in the others."""
    student = transfer(teacher_config, teacher, student_config, key)
    return with_mixers(student, student_config, mixers)


def _hidden_gap(student: Tap, teacher: Tap, batch: Batch) -> Mean:
    """Mean over layers of the streams' squared gap per token; the first layer's stream is the embedding itself."""
    weights = real_tokens(batch.segment_ids)
    gaps = [
        token_gap(have, want, weights)
        for have, want in zip(student.inputs[1:], teacher.inputs[1:], strict=True)
    ]
    return Mean(jnp.mean(jnp.stack([gap.total for gap in gaps])), gaps[0].weight)
