"""Stage: the only interface between the training loop and a method."""

import dataclasses
from collections.abc import Callable

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
    """

    name: str
    loss: Loss
    trainable: Callable[[tuple[str, ...]], bool]
    heldout: Loss | None = None
