"""What stage 2 makes small: a divergence of the student from its teacher, and beside it the gaps of hidden states and
the cross entropy of the text, each with a weight that may change from step to step.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypenet_jax import axes
from hypenet_jax.axes import Params, Scalar
from hypenet_jax.data.batch import Batch
from hypenet_jax.halo.layer_metrics import layer_metrics
from hypenet_jax.halo.schedule import Weight, peak, problem, vanishes_at
from hypenet_jax.losses import (
    Mean,
    distillation,
    distillation_and_next_token,
    next_token,
    predicting,
    real_tokens,
    token_gap,
)
from hypenet_jax.model.decoder import Decoder, Output, Tap, output_head
from pallas_kernels import Divergence

Means = dict[str, Mean]


class TermWeights(NamedTuple):
    """A number for each term of the loss."""

    divergence: Scalar | float
    cross_entropy: Scalar | float
    hidden: Scalar | float


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationTerms:
    """The terms of the loss; as they are, the published one: KL(teacher || student).

    Attributes:
      divergence: what is small where the student follows the teacher; see `linear_distillation`.
      temperature: of both softmaxes of the divergence, which is multiplied by its square.
      divergence_weight, cross_entropy_weight, hidden_weight: weights of the divergence, of the student's cross entropy
        of the text, and of the mean relative squared gap between what student and teacher layers read; pairs of a step
        and a weight (`halo/schedule.py`) make one that changes.
      layer_weights: weight in that mean of what each layer from the second on reads; () is alike.
      layer_metrics: on held-out text also tell, of each layer, the gap between what it reads in both models, how open
        its output gate is and how large its recurrent state (`halo/layer_metrics.py`).
    """

    divergence: Divergence = "kl"
    temperature: float = 1.0
    divergence_weight: Weight = 1.0
    cross_entropy_weight: Weight = 0.0
    hidden_weight: Weight = 0.0
    layer_weights: tuple[float, ...] = ()
    layer_metrics: bool = False

    def __post_init__(self) -> None:
        names = ("divergence_weight", "cross_entropy_weight", "hidden_weight")
        problems = [problem(name, getattr(self, name)) for name in names]
        if self.temperature <= 0:
            problems.append(f"temperature {self.temperature} must be above 0")
        if self.layer_weights and not peak(self.hidden_weight):
            problems.append("layer_weights weigh what hidden_weight 0 leaves out")
        if self.layer_weights and (min(self.layer_weights) < 0 or not sum(self.layer_weights)):
            problems.append(f"layer_weights {self.layer_weights} need one above 0, and none below")
        if not any(problems) and (step := vanishes_at(self._weights)) is not None:
            problems.append(f"{', '.join(names)} are all 0 at step {step}")
        if found := [text for text in problems if text]:
            raise ValueError(f"{type(self).__name__}: {'; '.join(found)}")

    @property
    def _weights(self) -> tuple[Weight, ...]:
        return self.divergence_weight, self.cross_entropy_weight, self.hidden_weight

    @property
    def scheduled(self) -> bool:
        """Whether a weight changes from step to step."""
        return any(isinstance(weight, tuple) for weight in self._weights)

    def weights(self, number: Callable[[Weight], Scalar | float]) -> TermWeights:
        """A number for each weight."""
        return TermWeights(*map(number, self._weights))

    def check_layers(self, layers: int, evaluates: bool) -> None:
        """Raises ValueError if `layer_weights` are not those of a model with so many layers, or if `layer_metrics` are
        asked for and held-out text is not read.
        """
        if self.layer_metrics and not evaluates:
            raise ValueError(
                "layer_metrics are of held-out text: set training.loop.evaluate_every, or leave them off"
            )
        if len(self.layer_weights) not in (0, layers - 1):
            raise ValueError(
                f"layer_weights has {len(self.layer_weights)} numbers; a model of {layers} layers needs {layers - 1}, "
                "one for each layer from the second on"
            )


class _Outputs(NamedTuple):
    """What both models make of a batch, their heads, and the weights of its positions."""

    batch: Batch
    student: Output
    teacher: Output
    heads: tuple[jax.Array, jax.Array]
    counted: axes.Weights

    @property
    def sides(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Hidden states and head of the student, then of the teacher."""
        return self.student.hidden, self.heads[0], self.teacher.hidden, self.heads[1]


@dataclasses.dataclass(frozen=True)
class ModelPair:
    """A student and its teacher, read side by side.

    Attributes:
      answers_only: tokens count by the loss weight of the next one, which they predict; False counts all alike.
    """

    terms: DistillationTerms
    student: Decoder
    teacher: Decoder
    answers_only: bool

    def loss(
        self, weights: TermWeights, params: Params, frozen: Params | None, batch: Batch
    ) -> tuple[Mean, Means]:
        """The weighted sum of the terms, and each of them."""
        taps = peak(self.terms.hidden_weight) > 0
        return self._compared(weights, self._read(params, frozen, batch, taps))

    def heldout(
        self, weights: TermWeights, params: Params, frozen: Params | None, batch: Batch
    ) -> tuple[Mean, Means]:
        """The same with KL, whatever the divergence, and with the cross entropies of both models."""
        layers = self.terms.layer_metrics
        taps = layers or peak(self.terms.hidden_weight) > 0
        both = self._read(params, frozen, batch, taps)
        loss, means = self._compared(weights, both)
        if layers and both.student.taps is not None:
            inputs = both.student.taps.inputs
            means |= layer_metrics(self.student, params, inputs, batch, both.counted)
        if "kl" not in means:
            means["kl"] = distillation(
                *both.sides, both.counted, temperature=self.terms.temperature
            )
        if "cross_entropy" not in means:
            text = batch.tokens, batch.loss_weight
            means["cross_entropy"] = next_token(*both.sides[:2], *text)
            means["teacher_cross_entropy"] = next_token(*both.sides[2:], *text)
        return loss, means

    def _read(self, params: Params, frozen: Params | None, batch: Batch, taps: bool) -> _Outputs:
        assert frozen is not None
        text = (batch.tokens, batch.positions, batch.segment_ids)
        target = self.teacher.apply({"params": frozen}, *text, taps=taps)
        output = self.student.apply({"params": params}, *text, taps=taps)
        heads = (
            output_head(params, self.student.config),
            output_head(frozen, self.teacher.config),
        )
        real = real_tokens(batch.segment_ids)
        counted = predicting(batch.loss_weight) if self.answers_only else real
        return _Outputs(batch, output, jax.lax.stop_gradient(target), heads, counted)

    def _compared(self, weights: TermWeights, both: _Outputs) -> tuple[Mean, Means]:
        loss, means = self._of_distributions(weights, both)
        if both.student.taps is not None and both.teacher.taps is not None:
            gaps = _hidden_gaps(both.student.taps, both.teacher.taps, both.counted)
            shares = self.terms.layer_weights or (1.0,) * len(gaps)
            totals = [share * gap.total for share, gap in zip(shares, gaps, strict=True)]
            means["hidden_gap"] = Mean(jnp.sum(jnp.stack(totals)) / sum(shares), loss.weight)
            means |= {f"hidden_gap/{i}": gap for i, gap in enumerate(gaps, start=1)}
            loss = Mean(loss.total + weights.hidden * means["hidden_gap"].total, loss.weight)
        return loss, jax.lax.stop_gradient(means)

    def _of_distributions(self, weights: TermWeights, both: _Outputs) -> tuple[Mean, Means]:
        """The weighted divergence and cross entropy, and the means that they are made of."""
        terms, batch = self.terms, both.batch
        if terms.divergence == "kl" and not peak(terms.cross_entropy_weight):
            kl = distillation(*both.sides, both.counted, temperature=terms.temperature)
            return Mean(weights.divergence * kl.total, kl.weight), {"kl": kl}
        whole = weights.divergence + weights.cross_entropy
        loss, *means = distillation_and_next_token(
            *(*both.sides, batch.tokens, both.counted, batch.loss_weight),
            # Of nothing there is no share, as where hidden states are aligned alone.
            share=weights.cross_entropy / jnp.where(whole > 0, whole, 1.0),
            divergence=terms.divergence,
            temperature=terms.temperature,
        )
        names = (terms.divergence, "cross_entropy", "teacher_cross_entropy")
        return Mean(whole * loss.total, loss.weight), dict(zip(names, means, strict=True))


def _hidden_gaps(student: Tap, teacher: Tap, weights: axes.Weights) -> list[Mean]:
    """The streams' squared gap per token in each layer but the first, whose stream is the embedding itself."""
    return [
        token_gap(ours, theirs, weights)
        for ours, theirs in zip(student.inputs[1:], teacher.inputs[1:], strict=True)
    ]
