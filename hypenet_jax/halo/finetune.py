"""Stage 3: next-token prediction at a longer context, without the teacher. Source: arXiv 2601.22156.

The same stage pretrains a small teacher from scratch: an all-softmax plan with no parent.
"""

import dataclasses

from hypenet_jax.axes import Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.losses import Mean, next_token
from hypenet_jax.model.decoder import Decoder, output_head
from hypenet_jax.model.layers import Initialization
from hypenet_jax.train.stage import Stage


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Stage 3.

    Attributes:
      start_from: name of the run whose final weights this one starts from; None starts from scratch.
      start: initial weights where nothing is given.
    """

    start_from: str | None
    start: Initialization = dataclasses.field(default_factory=Initialization)


def finetune_stage(student: Decoder) -> Stage:
    """Trains every parameter on the text itself."""

    def loss(params: Params, frozen: Params | None, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        output = student.apply({"params": params}, batch.tokens, batch.positions, batch.segment_ids)
        head = output_head(params, student.config)
        return next_token(output.hidden, head, batch.tokens, batch.loss_weight), {}

    return Stage("finetune", loss, trainable=lambda path: True)
