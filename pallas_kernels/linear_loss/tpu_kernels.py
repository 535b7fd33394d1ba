"""The two TPU kernels of the losses, for one chunk of tokens: logits with what a softmax needs of
them, then the gradients; and how they cut their work: as much at once as a core's VMEM holds.

Both go through the vocabulary tile by tile, with all tokens of the chunk on the chip. Logits are
written, and read once for every block of columns: to multiply them out again would cost more than
to move them. Past the end of the vocabulary a tile holds whatever was there before.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.cost import cost
from pallas_kernels.linear_loss.tpu_losses import TileLoss
from pallas_kernels.products import contract

LANES = 128
TOKENS = (128, 256, 512, 1024)  # more would save few bytes, and hold more logits
ROWS, COLUMNS = 512, 2048
VMEM_PER_COLUMN = 2**14  # bytes; fewer columns only on v4
INTERPRETED = 32, 32, 12  # tokens, rows, columns
LOWEST = -1e30  # of a logit that is none: its exponential is 0, and 0 times it is not NaN

Logits = Float[Array, "V C"]


@dataclasses.dataclass(frozen=True)
class TpuPlan:
    """All that a kernel knows before it sees arrays.

    Attributes:
      vocabulary: rows of the head, on this device.
      tokens: of a chunk.
      rows: of the head per grid step.
      columns: of hidden and head per grid step of the gradients.
      vmem: bytes that a kernel may take; None is the compiler's limit.
      interpret: run each step on the host.
    """

    loss: TileLoss
    vocabulary: int
    tokens: int
    rows: int
    columns: int
    vmem: int | None
    interpret: bool

    @property
    def tiles(self) -> int:
        return pl.cdiv(self.vocabulary, self.rows)

    def index(self, tile: Int[Array, ""]) -> Int[Array, "S 1"]:
        """Rows of the head that a tile holds."""
        return tile * self.rows + jax.lax.broadcasted_iota(jnp.int32, (self.rows, 1), 0)


def plan(loss: TileLoss, vocabulary: int, hidden: tuple[Float[Array, "T _"], ...]) -> TpuPlan:
    """For the bfloat16 hidden states of the student, then of the teacher if there is one.

    Half of the VMEM is for what stays there from tile to tile, which sets the tokens of a chunk;
    the other half for what comes and goes twice buffered, which sets the rows of a tile.
    """
    if dispatch.interprets():
        return TpuPlan(loss, vocabulary, *INTERPRETED, vmem=None, interpret=True)
    info = pltpu.get_tpu_info()
    half, length = info.vmem_capacity_bytes // 2, len(hidden[0])
    columns = _columns(hidden[0].shape[1], info)
    width = sum(x.shape[1] for x in hidden)
    # In bytes: hidden; and of the gradients hidden and a float32 sum.
    per_token = max(4 * width, 12 * columns)
    most = max(n for n in TOKENS if n * per_token <= half or n == TOKENS[0])
    chunks = pl.cdiv(length, most)
    tokens = pl.cdiv(length, chunks * LANES) * LANES
    # Heads and logits; and of the gradients also float32 sums, read and written.
    scores = 4 * width + 12 * tokens * len(hidden)
    gradients = 24 * columns + 16 * tokens * len(hidden)
    rows = max(half // max(scores, gradients) // LANES, 1) * LANES
    rows = min(rows, ROWS, vocabulary)
    return TpuPlan(loss, vocabulary, tokens, rows, columns, vmem=7 * half // 4, interpret=False)


def _columns(width: int, info: pltpu.TpuInfo) -> int:
    """All, or as many for each core, unless the VMEM is small."""
    most = min(COLUMNS, info.vmem_capacity_bytes // VMEM_PER_COLUMN)
    parts = [n for n in range(1, width // LANES + 1) if width % (n * LANES) == 0]
    fitting = [n for n in parts if width // n <= most]
    return width // min([n for n in fitting if n % info.num_cores == 0] or fitting)


def scores(
    plan: TpuPlan,
    hidden: tuple[Float[Array, "C _"], ...],
    heads: tuple[Float[Array, "V _"], ...],
    labels: tuple[Int[Array, "1 C"], ...],
    *,
    keep: bool,
) -> tuple[tuple[Logits, ...], tuple[Float[Array, "J 1 C"], ...]]:
    """Logits over the temperature (none unless kept), and the maxima and sums of each tile."""
    logits = (jax.ShapeDtypeStruct((plan.vocabulary, plan.tokens), jnp.float32),)
    logits *= len(heads) * keep
    sums = (jax.ShapeDtypeStruct((plan.tiles, 1, plan.tokens), jnp.float32),)
    sums *= plan.loss.sums_per_tile
    arrays = hidden, heads, labels
    pairs = plan.vocabulary * plan.tokens
    return pl.pallas_call(
        functools.partial(_scores, plan),
        grid=(plan.tiles,),
        in_specs=(
            jax.tree.map(_whole, hidden),
            tuple(pl.BlockSpec((plan.rows, x.shape[1]), lambda j: (j, 0)) for x in heads),
            jax.tree.map(_whole, labels),
        ),
        out_specs=(
            (pl.BlockSpec((plan.rows, plan.tokens), lambda j: (j, 0)),) * len(logits),
            (pl.BlockSpec((None, 1, plan.tokens), lambda j: (j, 0, 0)),) * len(sums),
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
    of_tokens = pl.BlockSpec((plan.tokens, plan.columns), lambda d, j: (0, d))
    of_rows = pl.BlockSpec((plan.rows, plan.columns), lambda d, j: (j, d))
    of_logits = pl.BlockSpec((plan.rows, plan.tokens), lambda d, j: (j, 0))
    arrays = d_head, hidden, head, logits, lines, labels
    results = tuple(jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (hidden, d_head))
    pairs = plan.vocabulary * plan.tokens
    return pl.pallas_call(
        functools.partial(_gradients, plan),
        grid=(parts, plan.tiles),
        in_specs=(
            *(of_rows, of_tokens, of_rows, (of_logits,) * len(logits)),
            *jax.tree.map(_whole, (lines, labels)),
        ),
        out_specs=(of_tokens, of_rows),
        out_shape=results,
        input_output_aliases={0: 1},
        compiler_params=_parameters(plan, "parallel", "arbitrary"),
        cost_estimate=cost(
            4 * pairs * head.shape[1],
            len(logits) * parts * pairs,
            (arrays, results, (parts - 1) * logits),
        ),
        interpret=plan.interpret,
        name="linear_loss_gradients",
    )(*arrays)


def _scores(plan, hidden, heads, labels, logits, sums):
    index = plan.index(pl.program_id(0))
    values = [
        contract(head[...], x[...], (1, 1)) / plan.loss.settings.temperature
        for x, head in zip(hidden, heads, strict=True)
    ]
    for ref, x in zip(logits, values, strict=False):  # there is none where none is kept
        ref[...] = x
    values = [_inside(plan, index, x, LOWEST) for x in values]
    lines = plan.loss.tile_sums(values, index, tuple(x[...] for x in labels))
    for ref, line in zip(sums, lines, strict=True):
        ref[...] = line


def _gradients(plan, before, hidden, head, logits, lines, labels, d_hidden, d_head):
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
    return jnp.where(index < plan.vocabulary, x.astype(jnp.float32), outside).astype(x.dtype)


def _whole(x: Any) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda *_: (0, 0))


def _parameters(plan: TpuPlan, *dimensions: Any) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=dimensions, vmem_limit_bytes=plan.vmem)
