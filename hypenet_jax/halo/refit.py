"""Between selection and distillation: output projections of mixers and MLPs, refitted on the student's own stream.

Stage 1 trains every mixer on the teacher's stream. In the student their errors add up, its MLPs see streams that they
never saw, and kept softmax layers, which lost their rotary positions, write something else. Layer after layer, with s
the student's stream and h the teacher's after the same sublayer, W_o and then W_down are moved to write h - s: all that
the student lacks there, errors of earlier layers included (`halo/regression.py`). No gradient is computed.
Ours; the published recipe has no such stage.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from hypenet_jax.axes import Hidden, Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.halo.method import AbstractParams, Method, Models, Work, abstract_params
from hypenet_jax.halo.regression import TokenSums, fit_kernel, relative_weights, token_sums
from hypenet_jax.halo.streams import (
    OUTPUT,
    Sublayer,
    advance,
    embed,
    layer_of,
    layer_params,
    product,
)
from hypenet_jax.halo.transfer import transfer, with_mixers, with_neutral_gates
from hypenet_jax.losses import real_tokens
from hypenet_jax.model.decoder import Layer
from hypenet_jax.model.stacking import stack_layers, unstack_layers
from hypenet_jax.sharding import on_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefitConfig(Method):
    """The refit: starts from the teacher with the mixers of stage 1 and neutral gates, leaves the whole student.

    Attributes:
      start_from: name of the stage 1 whose mixers the recurrent layers start from.
      batches: of the stage's text, all of which it keeps as streams: 2 B T D numbers each.
      ridge: strength of the regression; see `halo/regression.py`.
    """

    reads_teacher: ClassVar[bool] = True

    start_from: str
    batches: int
    ridge: float = 1e-2

    def __post_init__(self) -> None:
        if self.batches < 1 or self.ridge <= 0:
            raise ValueError(f"{self}: batches must be at least 1, and ridge above 0")

    def parent(self, models: Models) -> AbstractParams:
        return models.aligned_mixers()

    def run(self, work: Work) -> Params:
        with on_mesh(work.mesh):
            student = _refitted(self, work, _start(work))
            stacked = abstract_params(work.models.student).shardings(work.mesh)
            config = work.models.student.config
            return jax.jit(lambda single: stack_layers(single, config), out_shardings=stacked)(
                student
            )


def _start(work: Work) -> Params:
    """The student before the refit, in single layers."""
    models, weights = work.models, work.weights
    config, teacher = models.student.config, models.teacher.config
    shardings = abstract_params(models.student.clone(scan=False)).shardings(work.mesh)

    def start(params: Params, mixers: Params) -> Params:
        # The key decides gates alone, and those of kept layers become neutral.
        single = transfer(teacher, unstack_layers(params), config, jax.random.key(0))
        return with_neutral_gates(with_mixers(single, config, mixers), config)

    return jax.jit(start, out_shardings=shardings)(weights.teacher, weights.parent["mixers"])


def _refitted(config: RefitConfig, work: Work, student: Params) -> Params:
    """Fits every output projection of the student, in single layers, from the first to the last."""
    decoder, teacher = work.models.student, work.models.teacher
    text, student = work.batches(config.batches), dict(student)
    ours = [embed(decoder, {"embed": student["embed"]}, batch) for batch in text]
    theirs = [embed(teacher, {"embed": work.weights.teacher["embed"]}, batch) for batch in text]
    fit = functools.partial(fit_kernel, mesh=work.mesh, ridge=config.ridge, around="kernel")
    layers = range(decoder.config.num_layers)
    fits: list[tuple[int, Sublayer]] = [(i, sublayer) for i in layers for sublayer in OUTPUT]
    for number, (i, sublayer) in enumerate(fits):
        read = layer_of(teacher, i), sublayer, layer_params(teacher, work.weights.teacher, i)
        for k, batch in enumerate(text):
            theirs[k] = advance(*read, theirs[k], batch)
        layer, params = layer_of(decoder, i), student[f"layer_{i}"]
        streams = zip(ours, theirs, text, strict=True)
        sums = (_sums(layer, sublayer, params, *streams_of) for streams_of in streams)
        kernel = params[sublayer][OUTPUT[sublayer]]["kernel"]
        solve = functools.partial(fit, sums, kernel, layer=i, sublayer=sublayer)
        kernel = work.fit(number, len(fits), kernel, solve)
        fitted = {**params[sublayer], OUTPUT[sublayer]: {"kernel": kernel}}
        student[f"layer_{i}"] = params = {**params, sublayer: fitted}
        for k, batch in enumerate(text):
            ours[k] = advance(layer, sublayer, params, ours[k], batch)
    return student


@functools.partial(jax.jit, static_argnames=("layer", "sublayer"))
def _sums(
    layer: Layer, sublayer: Sublayer, params: Params, x: Hidden, target: Hidden, batch: Batch
) -> TokenSums:
    """What the student gives its output projection, and what it lacks of the teacher's stream after it."""
    target = target.astype(jnp.float32)
    weights = relative_weights(target, real_tokens(batch.segment_ids))
    features = product(layer, sublayer, params, x, batch).features()
    return token_sums(features, target - x.astype(jnp.float32), weights)
