"""Where stage 1 can start: every output projection by ridge regression on what its teacher mixer writes.

The copied projection follows a norm that makes every token unit length, while a softmax mixer writes little in its
first layers: it starts up to hundreds of times too loud. Gates start at zero weights, which is one half everywhere.
"""

import functools

import jax
import jax.numpy as jnp

from hypenet_jax.axes import Hidden, Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.halo.closed_form.regression import TokenSums, fit_kernel, token_sums
from hypenet_jax.halo.closed_form.streams import (
    OUTPUT,
    advance,
    embed,
    layer_of,
    layer_params,
    product,
    take,
)
from hypenet_jax.halo.method import Work
from hypenet_jax.losses import real_tokens
from hypenet_jax.model.decoder import Layer
from hypenet_jax.sharding import on_mesh


def ridge_start(work: Work, batches: int, ridge: float, student: Params) -> Params:
    """{"mixers": ...} of stage 1 with neutral gates and fitted output projections, layer after layer.

    Args:
      work: whose text and teacher are read; it keeps every layer's kernel.
      batches: how many.
      ridge: see `regression`; what little text says nothing about shrinks to zero.
      student: {"mixers": ...} as copied from the teacher.
    Raises:
      NumericsError: a layer whose regression has no solution.
    """
    models, teacher = work.models, work.weights.teacher
    decoder, count = models.teacher, models.teacher.config.num_layers
    mixers = dict(student["mixers"])
    if "gate" in mixers:
        gate = mixers["gate"]["kernel"]
        mixers["gate"] = {"kernel": jnp.zeros_like(gate, device=gate.sharding)}
    fit = functools.partial(
        fit_kernel, mesh=work.mesh, sublayer="mixer", ridge=ridge, around="zero"
    )
    old, kernels = mixers["o"]["kernel"], []
    with on_mesh(work.mesh):
        text = work.batches(batches)
        streams = [embed(decoder, {"embed": teacher["embed"]}, batch) for batch in text]
        for i in range(count):
            layer, params = layer_of(decoder, i), layer_params(decoder, teacher, i)
            ours, mixer = layer.clone(spec=models.aligned_spec), take(mixers, jnp.int32(i))
            pairs = zip(streams, text, strict=True)
            sums = (_sums(layer, params, ours, mixer, x, batch) for x, batch in pairs)
            kernel = mixer["o"]["kernel"]
            solve = functools.partial(fit, sums, kernel, layer=i)
            kernels.append(work.fit(i, count, kernel, solve))
            for k, batch in enumerate(text):
                for sublayer in OUTPUT:
                    streams[k] = advance(layer, sublayer, params, streams[k], batch)
        stack = jax.jit(lambda rows: jnp.stack(rows), out_shardings=old.sharding)
        return {"mixers": {**mixers, "o": {"kernel": stack(kernels)}}}


@functools.partial(jax.jit, static_argnames=("layer", "student"))
def _sums(
    layer: Layer, params: Params, student: Layer, mixer: Params, x: Hidden, batch: Batch
) -> TokenSums:
    """What the student's mixer gives its output projection, and what the teacher's mixer writes."""
    targets = product(layer, "mixer", params, x, batch).compute()
    features = product(student, "mixer", {**params, "mixer": mixer}, x, batch).features()
    return token_sums(features, targets, real_tokens(batch.segment_ids))
