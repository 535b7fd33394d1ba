"""Stage 2: the student's next-token distribution follows the teacher's, KL(teacher || student), everything trainable.

The teacher's forward pass is inside the jitted step, so nothing of it is stored. Further terms of the loss are in
`halo/distillation_loss.py`. Source: arXiv 2601.22156.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
from jaxtyping import Array, Int

from hypenet_jax.axes import Params
from hypenet_jax.halo.distillation_loss import DistillationTerms, ModelPair
from hypenet_jax.halo.method import (
    AbstractParams,
    Models,
    TrainedMethod,
    Weights,
    abstract_params,
)
from hypenet_jax.halo.schedule import final, peak, weight_at
from hypenet_jax.halo.transfer import transfer, with_mixers, with_neutral_gates
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.cost import Flops, head_flops, layers_flops
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.stacking import stack_layers, unstack_layers
from hypenet_jax.train.stage import Loss, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig(DistillationTerms, TrainedMethod):
    """Stage 2: starts from the teacher with the mixers of stage 1, or from a student; leaves the whole student.

    The terms of its loss are those of `DistillationTerms`.

    Attributes:
      start_from: name of the stage 1 whose mixers the recurrent layers start from.
      from_student: `start_from` left a whole student, such as that of a refit or of a distillation before this one, and
        training starts from it.
      gates: how the new output gates of kept layers start. "official" is random, see `SoftmaxSpec.params_from_softmax`;
        "neutral" is one half everywhere before an output projection that is doubled, so that a kept layer differs from
        the teacher's by the rotary positions that it lost alone.
    """

    reads_teacher: ClassVar[bool] = True

    start_from: str
    from_student: bool = False
    gates: Literal["official", "neutral"] = "official"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.from_student and self.gates != "official":
            raise ValueError(
                f"gates {self.gates!r}: the student of {self.start_from} has its own, leave them out"
            )

    @property
    def loss_name(self) -> str:
        """That of a divergence alone is its own."""
        if peak(self.cross_entropy_weight) or peak(self.hidden_weight):
            return "combined loss, nats"
        names = {"kl": "KL", "reverse_kl": "reverse KL", "jensen_shannon": "Jensen-Shannon"}
        return f"{names[self.divergence]}, nats"

    def check(self, teacher: ModelConfig, evaluates: bool) -> None:
        self.check_layers(teacher.num_layers, evaluates)

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
            single = with_mixers(single, student, mixers)
            if self.gates == "neutral":
                single = with_neutral_gates(single, student)
            return stack_layers(single, student)

        return jax.jit(start, out_shardings=shardings)(weights.teacher, weights.parent["mixers"])

    def flops(self, models: Models, length: int) -> Flops:
        """The teacher forward, the student with gradients."""
        student, teacher = models.student_flops(length), models.teacher.config
        forward = layers_flops(teacher, length) + head_flops(teacher, length)
        return dataclasses.replace(student, model=student.model + forward)


def distill_stage(
    config: DistillationTerms, student: Decoder, teacher: Decoder, *, answers_only: bool = False
) -> Stage:
    """Trains the whole student against the frozen teacher, both with their groups of layers stacked.

    On held-out text the terms have the weights of the last step. There it also measures KL, whatever the divergence,
    and the cross entropies of both models, whose difference says how far perplexities are apart.

    Args:
      answers_only: tokens count by the loss weight of the next one, which they predict; False counts all alike.
    """
    pair, last = ModelPair(config, student, teacher, answers_only), config.weights(final)

    def loss_at(step: Int[Array, ""]) -> Loss:
        return functools.partial(pair.loss, config.weights(lambda weight: weight_at(weight, step)))

    return Stage(
        "distill",
        functools.partial(pair.loss, last),
        trainable=lambda path: True,
        heldout=functools.partial(pair.heldout, last),
        loss_at=loss_at if config.scheduled else None,
    )
