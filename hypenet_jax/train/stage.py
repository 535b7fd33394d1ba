"""Stage: the only interface between the training loop and a method."""

import dataclasses
from collections.abc import Callable

from jaxtyping import Array, Int

from hypenet_jax.axes import Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.losses import Mean

Loss = Callable[[Params, Params | None, Batch], tuple[Mean, dict[str, Mean]]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A training method: its loss and which parameters are trained.

    Attributes:
      name: stored in checkpoints; a run refuses to resume from another stage's checkpoint.
      loss: (student, frozen, batch) -> (mean to minimise, further means to log). Pure and
        traceable.
      trainable: whether the student leaf at this path is trained; other leaves have no gradient
        and no optimizer state.
      heldout: the same as `loss` with further means, for held-out text; None is `loss`.
      loss_at: the loss after so many batches (a traced number), where it changes; None is `loss` all along.
    """

    name: str
    loss: Loss
    trainable: Callable[[tuple[str, ...]], bool]
    heldout: Loss | None = None
    loss_at: Callable[[Int[Array, ""]], Loss] | None = None

    def at(self, step: Int[Array, ""]) -> Loss:
        """The loss after so many batches."""
        return self.loss if self.loss_at is None else self.loss_at(step)

    def with_losses(self, change: Callable[[Loss], Loss]) -> "Stage":
        """The same stage with losses of training that are changed alike."""
        at, loss_at = self.loss_at, None
        if at is not None:
            loss_at = lambda step: change(at(step))  # noqa: E731
        return dataclasses.replace(self, loss=change(self.loss), loss_at=loss_at)
