"""Stage: all the loop knows of a method."""

import dataclasses
import typing
from collections.abc import Callable

import flax.struct

from hypenet_jax.axes import Params, Scalar
from hypenet_jax.data.batch import Batch


# Not checked at construction: tree functions build it with shapes as leaves.
@typing.no_type_check
@flax.struct.dataclass
class Mean:
    """A mean not yet divided, so that parts of a batch add up exactly: mean = total / weight.

    Attributes:
      total: weighted sum over tokens (or examples), float32.
      weight: sum of those weights, float32.
    """

    total: Scalar
    weight: Scalar

    def value(self) -> Scalar:
        return self.total / self.weight


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
