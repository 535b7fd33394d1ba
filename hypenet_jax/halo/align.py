"""Stage 1: each new mixer learns to imitate the softmax mixer that it will replace.

One pass of the teacher serves all layers: each student mixer gets the input of its teacher layer (the teacher's own
normed stream, with its positions) and is compared with the output of that layer; nothing of it enters the next layer.
Source: arXiv 2601.22156, hidden-state alignment; the ridge start is ours (`halo/closed_form/ridge.py`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
import tyro

from hypenet_jax.axes import Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.halo.closed_form.ridge import ridge_start
from hypenet_jax.halo.imitation import imitate
from hypenet_jax.halo.method import AbstractParams, Models, TrainedMethod, Weights, Work
from hypenet_jax.halo.transfer import transfer_mixers
from hypenet_jax.losses import Mean, norm_gap, real_tokens, relative_gap, squared_gap
from hypenet_jax.model.cost import WITH_GRADIENTS, Flops, layers_flops
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.mixers import MixerSpec
from hypenet_jax.model.stacking import unstack_layers
from hypenet_jax.train.stage import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignConfig(TrainedMethod):
    """Stage 1: starts from the teacher's attention, leaves {"mixers": a mixer for every layer, stacked on axis 0}.

    Attributes:
      loss: "mse", mean square over layers, tokens and width; or "l2norm", mean norm over layers and tokens / sqrt(D).
      ridge_batches: so many first batches of the text, before those of training, give the output projections in closed
        form (`ridge_start`); 0 starts from the teacher's, as published.
      ridge: strength of that regression; see `halo/closed_form/regression.py`.
    """

    reads_teacher: ClassVar[bool] = True

    start_from: Annotated[None, tyro.conf.Fixed] = dataclasses.field(default=None, init=False)
    loss: Literal["mse", "l2norm"] = "mse"
    ridge_batches: int = 0
    ridge: float = 1e-2

    def __post_init__(self) -> None:
        if self.ridge_batches < 0 or self.ridge <= 0:
            raise ValueError(f"{self}: ridge_batches must not be negative, and ridge above 0")

    @property
    def loss_name(self) -> str:
        return {"mse": "mean squared error", "l2norm": "mean norm of the error"}[self.loss]

    def stage(self, models: Models) -> Stage:
        return align_stage(self, models.teacher, models.aligned_spec)

    def params(self, models: Models) -> AbstractParams:
        return models.aligned_mixers()

    def initial_weights(
        self, models: Models, weights: Weights, keys: Callable[[str], jax.Array], shardings: Params
    ) -> Params:
        config, spec, key = models.teacher.config, models.aligned_spec, keys("align")

        def start(teacher: Params) -> Params:
            return {"mixers": transfer_mixers(config, unstack_layers(teacher), spec, key)}

        return jax.jit(start, out_shardings=shardings)(weights.teacher)

    def run(self, work: Work) -> Params:
        if self.ridge_batches == 0:
            return work.train()
        start = functools.partial(ridge_start, work, self.ridge_batches, self.ridge)
        return work.train(start, self.ridge_batches)

    def flops(self, models: Models, length: int) -> Flops:
        """The teacher's layers forward; of every mixer the forward pass, the gradient of its weights, and that of the
        outputs of its heads. The inputs of the mixers are constants, so no gradient goes there.
        """
        teacher, spec = models.teacher.config, models.aligned_spec
        inward, outward = spec.projection_flops(teacher.d_model)
        mixer = length * (2 * inward + WITH_GRADIENTS * outward)
        mixer += WITH_GRADIENTS * spec.mixing_flops(length, before=0)
        return Flops(layers_flops(teacher, length) + teacher.num_layers * mixer)


def align_stage(config: AlignConfig, teacher: Decoder, spec: MixerSpec) -> Stage:
    """Trains {"mixers": stacked mixers of all layers}, each of this spec, against the frozen teacher."""
    gap = {"mse": squared_gap, "l2norm": norm_gap}[config.loss]

    def loss(student: Params, frozen: Params | None, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        output = teacher.apply(
            {"params": frozen}, batch.tokens, batch.positions, batch.segment_ids, taps=True
        )
        taps = jax.lax.stop_gradient(output.taps)
        imitations = imitate(spec, student, teacher, taps, batch)
        weights = real_tokens(batch.segment_ids)
        gaps, relative = [], {}
        for i in range(teacher.config.num_layers):
            gaps.append(gap(imitations[i], taps.outputs[i], weights))
            relative[f"relative_error/{i}"] = relative_gap(imitations[i], taps.outputs[i], weights)
        total = jnp.mean(jnp.stack([each.total for each in gaps]))
        return Mean(total, gaps[0].weight), jax.lax.stop_gradient(relative)

    return Stage("align", loss, trainable=lambda path: True)
