"""Stage: all the loop knows of a method."""

import dataclasses
from collections.abc import Callable

from hypenet_jax.axes import Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.losses import Mean

Loss = Callable[[Params, Params | None, Batch], tuple[Mean, dict[str, Mean]]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a training method says: its loss and what moves.

    The step sums gradients of `loss.total` over micro-batches and divides once by the summed
    weight, so any split of a batch gives the update of the whole batch.

    Attributes:
      name: written into checkpoints; a run refuses to go on from another stage's checkpoint.
      loss: (student, frozen, batch) -> (mean to be minimised, further means to be logged). Pure and
        traceable.
      trainable: whether the student leaf at this path is trained; the others have no gradient and
        no optimizer state.
    """

    name: str
    loss: Loss
    trainable: Callable[[tuple[str, ...]], bool]
