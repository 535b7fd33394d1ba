"""Greedy choice of softmax layers: every set of them gets its closed-form start and is scored without training.

From the student that is recurrent everywhere, one layer after another is restored: that with which the refitted student
(`halo/closed_form/student_fit.py`) is nearest to the teacher. L + (L - 1) + ... students are fitted, so a few batches
each must do.
Source: the search of arXiv 2606.16429 (Taylor-Calibrate), with the start of this project.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Collection, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float

from hypenet_jax import axes
from hypenet_jax.axes import Hidden, Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.halo.closed_form.streams import OUTPUT, advance, embed, layer_of
from hypenet_jax.halo.closed_form.student_fit import neutral_student, refitted
from hypenet_jax.halo.method import Fitted, Models, Work
from hypenet_jax.halo.selection.scores import Score
from hypenet_jax.losses import distillation_by_row, real_tokens
from hypenet_jax.model.config import hypenet
from hypenet_jax.model.decoder import Decoder, output_head
from hypenet_jax.sharding import constrain, on_mesh

log = logging.getLogger("hypenet_jax")

Step = tuple[int, float]
"""A layer that was restored, and KL of the student to its teacher in nats from then on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GreedySearch:
    """The search, with what it needs of a stage.

    Attributes:
      work: of the stage.
      batches: of its text, to which every candidate is fitted.
      ridge: of the regression.
      rows: held-out rows that a candidate is scored on.
    """

    work: Work
    batches: int
    ridge: float
    rows: int

    def run(self, keep: int) -> tuple[Step, ...]:
        """The layers to keep, in the order in which they were restored. Each candidate's score is kept."""
        steps: list[Step] = []
        count = self.work.models.teacher.config.num_layers
        with on_mesh(self.work.mesh):
            while len(steps) < keep:
                chosen = [layer for layer, _ in steps]
                others = [layer for layer in range(count) if layer not in chosen]
                found = {layer: self._scored({*chosen, layer}, layer) for layer in others}
                best = min(others, key=lambda layer: (found[layer], -layer))
                steps.append((best, found[best]))
                log.info("layer %d joins layers %s: KL %.4f", best, chosen, found[best])
        return tuple(steps)

    def _scored(self, layers: Collection[int], added: int) -> float:
        name = f"softmax layers {', '.join(map(str, sorted(layers)))}"
        (score,) = self.work.keep(name, lambda: [self._score(name, layers, added)])
        return score.mean

    def _score(self, name: str, layers: Collection[int], added: int) -> Score:
        """KL of every held-out row."""
        models = self._models(layers)
        student = {**self._kept}
        for i in set(range(models.teacher.config.num_layers)) - {*layers}:
            student[f"layer_{i}"] = self._recurrent[f"layer_{i}"]
        text = self.work.batches(self.batches)
        fitted = refitted(self.work, models, student, text, ridge=self.ridge, fit=_solved)
        parts = [_divergences(self.work, models, fitted, batch) for batch in self._heldout]
        kl, tokens = (np.concatenate(column) for column in zip(*parts, strict=True))
        values, weights = (tuple(map(float, x[tokens > 0])) for x in (kl, tokens))
        return Score(layer=added, kind="kl", task=name, values=values, weights=weights)

    def _models(self, layers: Collection[int]) -> Models:
        models = self.work.models
        own = {"mixer": models.mixer, "recurrent": models.recurrent}
        config = hypenet(models.teacher.config, tuple(sorted(layers)), **own)
        return dataclasses.replace(models, student=models.student.clone(config=config))

    @functools.cached_property
    def _kept(self) -> Params:
        """Parameters with every layer softmax; a candidate takes its layers from here."""
        layers = range(self.work.models.teacher.config.num_layers)
        return neutral_student(self.work, self._models(layers))

    @functools.cached_property
    def _recurrent(self) -> Params:
        """The same with none."""
        return neutral_student(self.work, self._models(()))

    @functools.cached_property
    def _heldout(self) -> Sequence[Batch]:
        return [*self.work.heldout(self.rows)]


def _solved(number: int, count: int, kernel: Array, solve: Callable[[], Fitted]) -> Array:
    """What a candidate's kernel becomes; its score alone is kept."""
    return solve()[0]


def _divergences(
    work: Work, models: Models, student: Params, batch: Batch
) -> tuple[np.ndarray, np.ndarray]:
    """KL(teacher || student) of each row, and its tokens; no program is compiled for a plan."""
    teacher, frozen = models.teacher, work.weights.teacher
    x = embed(teacher, {"embed": student["embed"]}, batch)
    for i in range(teacher.config.num_layers):
        for sublayer in OUTPUT:
            layer = layer_of(models.student, i)
            x = advance(layer, sublayer, student[f"layer_{i}"], x, batch)
    ends = {name: leaf for name, leaf in student.items() if not name.startswith("layer_")}
    kl, tokens = _row_divergences(teacher, ends, frozen, x, batch)
    return np.asarray(kl), np.asarray(tokens)


@functools.partial(jax.jit, static_argnums=0)
def _row_divergences(
    teacher: Decoder, ends: Params, frozen: Params, x: Hidden, batch: Batch
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    hidden = teacher.bind({"params": ends}).final_norm(x)
    tokens = constrain(batch.tokens, (axes.BATCH, axes.TIME))
    target = teacher.apply({"params": frozen}, tokens, batch.positions, batch.segment_ids).hidden
    ours, theirs = (output_head(params, teacher.config) for params in (ends, frozen))
    rows = distillation_by_row(hidden, ours, target, theirs, real_tokens(batch.segment_ids))
    return constrain(rows.value(), (None,)), constrain(rows.weight, (None,))
