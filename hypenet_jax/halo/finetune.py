"""Stage 3: next-token prediction at a longer context, without the teacher. Source: arXiv 2601.22156.

The same stage pretrains a small teacher from scratch: an all-softmax plan with no parent.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax

from hypenet_jax.axes import Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.halo.method import Models, TrainedMethod, Weights
from hypenet_jax.losses import Mean, next_token
from hypenet_jax.model.cost import Flops
from hypenet_jax.model.decoder import Decoder, init_params, output_head
from hypenet_jax.model.layers import Initialization
from hypenet_jax.train.stage import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainedMethod):
    """Stage 3: starts from the stage before or from fresh weights, leaves the whole student.

    Attributes:
      start_from: name of the stage whose final weights this one starts from; None starts from scratch.
      start: initial weights where nothing is given.
    """

    reads_teacher: ClassVar[bool] = False

    start_from: str | None
    start: Initialization = dataclasses.field(default_factory=Initialization)

    @property
    def loss_name(self) -> str:
        return "cross entropy, nats"

    def stage(self, models: Models) -> Stage:
        return finetune_stage(models.student)

    def initial_weights(
        self, models: Models, weights: Weights, keys: Callable[[str], jax.Array], shardings: Params
    ) -> Params:
        if weights.parent is not None:
            return weights.parent
        student = models.student.clone(start=self.start)
        make = jax.jit(lambda key: init_params(student, key), out_shardings=shardings)
        return make(keys("init"))

    def flops(self, models: Models, length: int) -> Flops:
        return models.student_flops(length)


def finetune_stage(student: Decoder) -> Stage:
    """Trains every parameter on the text itself."""

    def loss(params: Params, frozen: Params | None, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        output = student.apply({"params": params}, batch.tokens, batch.positions, batch.segment_ids)
        head = output_head(params, student.config)
        return next_token(output.hidden, head, batch.tokens, batch.loss_weight), {}

    return Stage("finetune", loss, trainable=lambda path: True)
