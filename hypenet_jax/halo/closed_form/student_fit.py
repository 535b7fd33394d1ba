"""A whole student without training: teacher and mixers of stage 1, output projections refitted on its own stream.

Stage 1 trains every mixer on the teacher's stream. In the student their errors add up, its MLPs see streams that they
never saw, and kept softmax layers, which lost their rotary positions, write something else. Layer after layer, with s
the student's stream and h the teacher's after the same sublayer, W_o and then W_down are moved to write h - s: all that
the student lacks there, errors of earlier layers included (`halo/closed_form/regression.py`). No gradient is computed.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hypenet_jax.axes import Hidden, Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.halo.closed_form.regression import (
    TokenSums,
    fit_kernel,
    relative_weights,
    token_sums,
)
from hypenet_jax.halo.closed_form.streams import (
    OUTPUT,
    Sublayer,
    advance,
    embed,
    layer_of,
    layer_params,
    product,
)
from hypenet_jax.halo.method import Fit, Models, Work, abstract_params
from hypenet_jax.halo.transfer import transfer, with_mixers, with_neutral_gates
from hypenet_jax.losses import real_tokens
from hypenet_jax.model.decoder import Layer
from hypenet_jax.model.stacking import unstack_layers


def neutral_student(work: Work, models: Models) -> Params:
    """The student of these models before the refit, with neutral gates, in single layers."""
    weights, config, teacher = work.weights, models.student.config, models.teacher.config
    shardings = abstract_params(models.student.clone(scan=False)).shardings(work.mesh)

    def start(params: Params, mixers: Params) -> Params:
        # The key decides gates alone, and those of kept layers become neutral.
        single = transfer(teacher, unstack_layers(params), config, jax.random.key(0))
        return with_neutral_gates(with_mixers(single, config, mixers), config)

    return jax.jit(start, out_shardings=shardings)(weights.teacher, weights.parent["mixers"])


def refitted(
    work: Work, models: Models, student: Params, text: Sequence[Batch], *, ridge: float, fit: Fit
) -> Params:
    """The student, in single layers, with every output projection fitted, from the first to the last.

    Args:
      text: all of which is kept as two streams: 2 B T D numbers per batch.
      ridge: strength of the regression.
      fit: keeps every kernel, or solves it alone.
    """
    decoder, teacher = models.student, models.teacher
    student = dict(student)
    ours = [embed(teacher, {"embed": student["embed"]}, batch) for batch in text]
    theirs = [embed(teacher, {"embed": work.weights.teacher["embed"]}, batch) for batch in text]
    solve_kernel = functools.partial(fit_kernel, mesh=work.mesh, ridge=ridge, around="kernel")
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
        solve = functools.partial(solve_kernel, sums, kernel, layer=i, sublayer=sublayer)
        kernel = fit(number, len(fits), kernel, solve)
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
