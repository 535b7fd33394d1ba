"""Stage 2: the student's next-token distribution follows the teacher's, KL(teacher || student), everything trainable.

The teacher's forward pass is inside the jitted step, so nothing of it is stored. Source: arXiv 2601.22156.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from hypenet_jax import axes
from hypenet_jax.axes import Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.halo.method import (
    AbstractParams,
    Models,
    TrainedMethod,
    Weights,
    abstract_params,
)
from hypenet_jax.halo.transfer import transfer, with_mixers
from hypenet_jax.losses import Mean, distillation, next_token, predicting, real_tokens, token_gap
from hypenet_jax.model.cost import Flops, head_flops, layers_flops
from hypenet_jax.model.decoder import Decoder, Output, Tap, output_head
from hypenet_jax.model.stacking import stack_layers, unstack_layers
from hypenet_jax.train.stage import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainedMethod):
    """Stage 2: starts from the teacher with the mixers of stage 1, or from a student; leaves the whole student.

    Attributes:
      start_from: name of the stage 1 whose mixers the recurrent layers start from.
      from_student: `start_from` left a whole student, such as that of a refit, and training starts from it.
      temperature: of both softmaxes; the loss is multiplied by its square.
      hidden_weight: weight of the mean relative squared gap between what student and teacher layers read; 0 is the
        published recipe.
    """

    reads_teacher: ClassVar[bool] = True

    start_from: str
    from_student: bool = False
    temperature: float = 1.0
    hidden_weight: float = 0.0

    @property
    def loss_name(self) -> str:
        return "KL, nats"

    def stage(self, models: Models) -> Stage:
        only = models.answers_only
        return distill_stage(self, models.student, models.teacher, answers_only=only)

    def parent(self, models: Models) -> AbstractParams:
        return abstract_params(models.student) if self.from_student else models.aligned_mixers()

    def initial_weights(
        self, models: Models, weights: Weights, keys: Callable[[str], jax.Array], shardings: Params
    ) -> Params:
        if self.from_student:
            return weights.parent
        teacher, student, key = models.teacher.config, models.student.config, keys("distill")

        def start(params: Params, mixers: Params) -> Params:
            single = transfer(teacher, unstack_layers(params), student, key)
            return stack_layers(with_mixers(single, student, mixers), student)

        return jax.jit(start, out_shardings=shardings)(weights.teacher, weights.parent["mixers"])

    def flops(self, models: Models, length: int) -> Flops:
        """The teacher forward, the student with gradients."""
        student, teacher = models.student_flops(length), models.teacher.config
        forward = layers_flops(teacher, length) + head_flops(teacher, length)
        return dataclasses.replace(student, model=student.model + forward)


def distill_stage(
    config: DistillConfig, student: Decoder, teacher: Decoder, *, answers_only: bool = False
) -> Stage:
    """Trains the whole student against the frozen teacher, both with their groups of layers stacked.

    On held-out text it also measures the cross entropies of both, whose difference says how far perplexities are apart.

    Args:
      answers_only: tokens count by the loss weight of the next one, which they predict; False counts all alike.
    """
    pair = _Pair(config, student, teacher, answers_only)
    return Stage("distill", pair.loss, trainable=lambda path: True, heldout=pair.heldout)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A student and its teacher, read side by side."""

    config: DistillConfig
    student: Decoder
    teacher: Decoder
    answers_only: bool

    def loss(
        self, params: Params, frozen: Params | None, batch: Batch
    ) -> tuple[Mean, dict[str, Mean]]:
        assert frozen is not None
        return self._compared(params, frozen, batch, *self._outputs(params, frozen, batch))

    def heldout(
        self, params: Params, frozen: Params | None, batch: Batch
    ) -> tuple[Mean, dict[str, Mean]]:
        assert frozen is not None
        output, target = self._outputs(params, frozen, batch)
        total, means = self._compared(params, frozen, batch, output, target)
        for name, head, hidden in (
            ("cross_entropy", output_head(params, self.student.config), output.hidden),
            ("teacher_cross_entropy", output_head(frozen, self.teacher.config), target.hidden),
        ):
            means[name] = next_token(hidden, head, batch.tokens, batch.loss_weight)
        return total, means

    def _outputs(self, params: Params, frozen: Params, batch: Batch) -> tuple[Output, Output]:
        text = (batch.tokens, batch.positions, batch.segment_ids)
        taps = self.config.hidden_weight > 0
        target = self.teacher.apply({"params": frozen}, *text, taps=taps)
        output = self.student.apply({"params": params}, *text, taps=taps)
        return output, jax.lax.stop_gradient(target)

    def _compared(
        self, params: Params, frozen: Params, batch: Batch, output: Output, target: Output
    ) -> tuple[Mean, dict[str, Mean]]:
        real = real_tokens(batch.segment_ids)
        weights = predicting(batch.loss_weight) if self.answers_only else real
        kl = distillation(
            output.hidden,
            output_head(params, self.student.config),
            target.hidden,
            output_head(frozen, self.teacher.config),
            weights,
            temperature=self.config.temperature,
        )
        if output.taps is None or target.taps is None:
            return kl, {"kl": kl}
        gap = _hidden_gap(output.taps, target.taps, weights)
        total = Mean(kl.total + self.config.hidden_weight * gap.total, kl.weight)
        return total, jax.lax.stop_gradient({"kl": kl, "hidden_gap": gap})


def _hidden_gap(student: Tap, teacher: Tap, weights: axes.Weights) -> Mean:
    """Mean over layers of the streams' squared gap per token; the first layer's stream is the embedding itself."""
    gaps = [
        token_gap(ours, theirs, weights)
        for ours, theirs in zip(student.inputs[1:], teacher.inputs[1:], strict=True)
    ]
    return Mean(jnp.mean(jnp.stack([gap.total for gap in gaps])), gaps[0].weight)
