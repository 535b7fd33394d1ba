"""The two TPU kernels of the losses, for one chunk of tokens: logits with what a softmax needs of
them, then the gradients.

Both go through the vocabulary tile by tile, with all tokens of the chunk on the chip. Logits are
written, and read once for every block of columns: to multiply them out again would cost more than
to move them. Past the end of the vocabulary a tile holds whatever was there before.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.cost import cost
from pallas_kernels.linear_loss.tpu_plan import TpuPlan
from pallas_kernels.products import contract

LOWEST = -1e30  # of a logit that is none: its exponential is 0, and 0 times it is not NaN

Logits = Float[Array, "V C"]


def scores(
    plan: TpuPlan,
    hidden: tuple[Float[Array, "C _"], ...],
    heads: tuple[Float[Array, "V _"], ...],
    labels: tuple[Int[Array, "1 C"], ...],
    *,
    keep: bool,
) -> tuple[tuple[Logits, ...], tuple[Float[Array, "J 1 C"], ...]]:
    """Logits over the temperature (none unless kept), and the maxima and sums of each tile."""
    logits = tuple(jax.ShapeDtypeStruct((plan.vocabulary, plan.tokens), jnp.float32) for _ in heads)
    logits *= keep
    line = jax.ShapeDtypeStruct((plan.tiles, 1, plan.tokens), jnp.float32)
    sums = (line,) * plan.loss.sums_per_tile
    arrays = hidden, heads, labels
    pairs = plan.vocabulary * plan.tokens
    return pl.pallas_call(
        functools.partial(_scores, plan),
        grid=(plan.tiles,),
        in_specs=(
            tuple(pl.BlockSpec(x.shape, lambda j: (0, 0)) for x in hidden),
            tuple(pl.BlockSpec((plan.rows, x.shape[1]), lambda j: (j, 0)) for x in heads),
            tuple(pl.BlockSpec(x.shape, lambda j: (0, 0)) for x in labels),
        ),
        out_specs=(
            tuple(pl.BlockSpec((plan.rows, plan.tokens), lambda j: (j, 0)) for _ in logits),
            tuple(pl.BlockSpec((None, 1, plan.tokens), lambda j: (j, 0, 0)) for _ in sums),
        ),
        out_shape=(logits, sums),
        compiler_params=_parameters(plan, "parallel"),
        cost_estimate=cost(
            sum(2 * pairs * x.shape[1] for x in heads),
            len(heads) * pairs,
            (arrays, logits, sums),
        ),
        interpret=plan.interpret,
        name="linear_loss_scores",
    )(*arrays)


def gradients(
    plan: TpuPlan,
    d_head: Float[Array, "V D"],
    hidden: Float[Array, "C D"],
    head: Float[Array, "V D"],
    logits: tuple[Logits, ...],
    lines: Float[Array, "n C"],
    labels: tuple[Int[Array, "1 C"], ...],
) -> tuple[Float[Array, "C D"], Float[Array, "V D"]]:
    """Float32 gradient toward hidden, and `d_head` with this chunk's gradient added in place.

    The gradients of logits are rounded to hidden's dtype, as they are multiplied.
    """
    parts = head.shape[1] // plan.columns
    tokens, rows = (plan.tokens, plan.columns), (plan.rows, plan.columns)
    arrays = d_head, hidden, head, logits, lines, labels
    d_hidden = jax.ShapeDtypeStruct(hidden.shape, jnp.float32)
    pairs = plan.vocabulary * plan.tokens
    return pl.pallas_call(
        functools.partial(_gradients, plan),
        grid=(parts, plan.tiles),
        in_specs=(
            pl.BlockSpec(rows, lambda d, j: (j, d)),
            pl.BlockSpec(tokens, lambda d, j: (0, d)),
            pl.BlockSpec(rows, lambda d, j: (j, d)),
            tuple(pl.BlockSpec((plan.rows, plan.tokens), lambda d, j: (j, 0)) for _ in logits),
            pl.BlockSpec(lines.shape, lambda d, j: (0, 0)),
            tuple(pl.BlockSpec(x.shape, lambda d, j: (0, 0)) for x in labels),
        ),
        out_specs=(
            pl.BlockSpec(tokens, lambda d, j: (0, d)),
            pl.BlockSpec(rows, lambda d, j: (j, d)),
        ),
        out_shape=(d_hidden, jax.ShapeDtypeStruct(d_head.shape, jnp.float32)),
        input_output_aliases={0: 1},
        compiler_params=_parameters(plan, "parallel", "arbitrary"),
        cost_estimate=cost(
            4 * pairs * head.shape[1],
            len(logits) * parts * pairs,
            (arrays, d_hidden, d_head, (parts - 1) * logits),
        ),
        interpret=plan.interpret,
        name="linear_loss_gradients",
    )(*arrays)


def _scores(plan: TpuPlan, hidden: Any, heads: Any, labels: Any, logits: Any, sums: Any) -> None:
    index = plan.index(pl.program_id(0))
    values = [
        contract(head[...], x[...], (1, 1)) / plan.loss.temperature
        for x, head in zip(hidden, heads, strict=True)
    ]
    for ref, x in zip(logits, values, strict=False):  # there is none where none is kept
        ref[...] = x
    values = [_inside(plan, index, x, LOWEST) for x in values]
    lines = plan.loss.tile_sums(values, index, tuple(x[...] for x in labels))
    for ref, line in zip(sums, lines, strict=True):
        ref[...] = line


def _gradients(
    plan: TpuPlan,
    before: Any,
    hidden: Any,
    head: Any,
    logits: Any,
    lines: Any,
    labels: Any,
    d_hidden: Any,
    d_head: Any,
) -> None:
    tile = pl.program_id(1)
    index = plan.index(tile)
    values = [x[...] for x in logits]
    d_logits = plan.loss.d_logits(values, lines[...], index, tuple(x[...] for x in labels))
    d_logits = _inside(plan, index, d_logits, 0.0).astype(hidden.dtype)
    matrix = _inside(plan, index, head[...], 0.0)
    d_head[...] = before[...] + contract(d_logits, hidden[...], (1, 0))

    @pl.when(tile == 0)
    def _():
        d_hidden[...] = jnp.zeros(d_hidden.shape, jnp.float32)

    d_hidden[...] += contract(d_logits, matrix, (0, 0))


def _inside(
    plan: TpuPlan, index: Int[Array, "S 1"], x: Float[Array, "S _"], outside: float
) -> Float[Array, "S _"]:
    if plan.vocabulary % plan.rows == 0:
        return x
    inside: Bool[Array, "S 1"] = index < plan.vocabulary
    return jnp.where(inside, x.astype(jnp.float32), outside).astype(x.dtype)


def _parameters(plan: TpuPlan, *dimensions: Any) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=dimensions, vmem_limit_bytes=plan.vmem)
