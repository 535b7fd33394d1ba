"""Projections of a few tokens on NVIDIA GPUs: one kernel that reads every matrix once.

XLA makes a reduction of a small matrix's product with one row: of a [2048, 2048] matrix it wrote all 4 million
products to memory and summed them in a second kernel, 16 us on an H200 where reading the matrix takes 2. And norm and
gate were kernels of their own, of which each costs more than a microsecond.

A block of threads walks down some columns of one matrix, tile by tile through the matrix units, which take 16 rows of
the other operand at least: tokens, and zeros. There are as many blocks as run at once; where a walk down a whole matrix
would be too few of them, several share it, and XLA sums what they found where the results are used.

Written in Pallas for Triton; `pallas_kernels.products` says why.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.cost import cost
from pallas_kernels.gradients import as_defined
from pallas_kernels.norm_rotary.reference import rms_norm
from pallas_kernels.products import contract_on_gpu
from pallas_kernels.projection.reference import ACTIVATIONS, Activation, Operands, reference

COLUMNS = 64  # of a tile: rows of 128 bytes in bfloat16
TILE_BYTES = 16 * 2**10
STAGES = 4  # one tile is multiplied while three are on their way
WARPS = 4
MULTIPROCESSORS = 132  # of an H100 and H200
AT_ONCE = 3  # blocks of one multiprocessor; with more, what is on its way to all has no room
MAX_TOKENS = 16  # the least rows that the matrix units take

Ref = Any  # an array in HBM, read and written by index


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that the kernel knows before it sees arrays."""

    eps: float
    activation: Activation
    tokens: int
    depth: int  # rows of every matrix
    rows: int  # of a tile
    tiles: int  # of a block, below each other
    interpret: bool

    @property
    def splits(self) -> int:
        """Blocks below each other."""
        return pl.cdiv(self.depth, self.rows * self.tiles)


class _Inputs(NamedTuple):
    """What the kernel reads."""

    left: Float[Array, "R I"]  # one row per token, multiplied with the matrices
    kernels: tuple[Float[Array, "I _"], ...]
    source: Float[Array, "I"] | None  # whose mean square divides the products


def gpu(
    operands: Operands, eps: float, activation: Activation
) -> tuple[Float[Array, "B T _"], ...]:
    """Rounds x times scale and gate, and the results, to x's dtype; gradients are those of the definition."""
    dispatch.require("projection", "gpu", unsupported_reason(operands.x), "reference")
    return _project(_plan(operands, eps, activation), operands)


def unsupported_reason(x: Float[Array, "B T I"]) -> str | None:
    """Why the kernel cannot run these arguments here; None where it can."""
    if x.dtype not in (jnp.bfloat16, jnp.float32):
        return f"takes bfloat16 or float32, and x is {x.dtype}"
    if x.shape[0] * x.shape[1] > MAX_TOKENS:
        return f"takes up to {MAX_TOKENS} tokens, and x has {x.shape[0]} rows of {x.shape[1]}"
    return dispatch.gpu_unsupported_reason(dispatch.AMPERE)


def _plan(operands: Operands, eps: float, activation: Activation) -> Plan:
    x, kernels, tokens = operands.x, operands.kernels, operands.x.shape[0] * operands.x.shape[1]
    depth, itemsize = x.shape[2], kernels[0].dtype.itemsize
    rows = max(MAX_TOKENS, min(TILE_BYTES // (COLUMNS * itemsize), pl.next_power_of_2(depth)))
    tiles = _tiles_each(sum(map(_blocks, kernels)), pl.cdiv(depth, rows))
    return Plan(eps, activation, tokens, depth, rows, tiles, dispatch.interprets())


def _tiles_each(across: int, down: int) -> int:
    """How many of `down` tiles a block takes: so many that the busiest multiprocessor has least to read, and then as
    many as may be, for what blocks below each other have found must be summed."""

    def busiest(splits: int) -> tuple[int, int]:
        return pl.cdiv(across * splits, MULTIPROCESSORS) * pl.cdiv(down, splits), splits

    most = min(down, max(1, AT_ONCE * MULTIPROCESSORS // across))
    return pl.cdiv(down, min(range(1, most + 1), key=busiest))


def _tokens(plan: Plan, operands: Operands) -> tuple[Float[Array, "B T _"], ...]:
    x, kernels, _, _, residual = operands
    inputs = _inputs(plan, operands)
    narrow = x.dtype if plan.splits == 1 and residual is None else jnp.float32
    lines = plan.splits, plan.tokens
    shapes = tuple(jax.ShapeDtypeStruct((*lines, kernel.shape[1]), narrow) for kernel in kernels)
    products = 2 * plan.tokens * sum(kernel.size for kernel in kernels)
    (parts,) = pl.pallas_call(
        functools.partial(_walk, plan),
        grid=(sum(map(_blocks, kernels)), plan.splits),
        in_specs=(jax.tree.map(_whole, inputs),),
        out_specs=(jax.tree.map(_whole, shapes),),
        out_shape=(shapes,),
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        cost_estimate=cost(products, 0, (inputs, shapes)),
        interpret=plan.interpret,
        name="projection",
    )(inputs)
    rest = 0.0 if residual is None else residual.astype(jnp.float32)
    results = (jnp.sum(y, axis=0, dtype=jnp.float32).reshape(*x.shape[:2], -1) for y in parts)
    return tuple((rest + y).astype(x.dtype) for y in results)


def _inputs(plan: Plan, operands: Operands) -> _Inputs:
    """The norm of one token is left to the kernel: as an operation of its own it would be one more to start."""
    x, kernels, scale, gate, _ = operands
    left, source = x.astype(jnp.float32), None
    if scale is not None and plan.tokens > 1:
        left = rms_norm(left, scale, plan.eps)
    elif scale is not None:
        left, source = left * scale.astype(jnp.float32)[None, None], x[0, 0]
    if gate is not None:
        left = left * ACTIVATIONS[plan.activation](gate.astype(jnp.float32))
    return _Inputs(left.astype(x.dtype).reshape(plan.tokens, plan.depth), kernels, source)


def _whole(x: Any) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda i, j: (0,) * len(x.shape))


def _blocks(kernel: Any) -> int:
    return pl.cdiv(kernel.shape[1], COLUMNS)


_project = as_defined(_tokens, lambda plan, x: reference(x, plan.eps, plan.activation))


def _walk(plan: Plan, inputs: Any, parts: tuple[Ref, ...]) -> None:
    """The block's part of the one matrix that has it; `_Inputs` are arrays in HBM here."""
    block, down = pl.program_id(0), pl.program_id(1)
    for kernel, part in zip(inputs.kernels, parts, strict=True):
        tile = functools.partial(_tile, plan, inputs, kernel, part, (down, block))
        pl.when((block >= 0) & (block < _blocks(kernel)))(tile)
        block = block - _blocks(kernel)


def _tile(
    plan: Plan, inputs: Any, kernel: Ref, part: Ref, place: tuple[Int[Array, ""], ...]
) -> None:
    """Multiplies a block's tiles; its place is counted in blocks, downwards and to the right."""
    first, side = place[0] * plan.tiles * plan.rows, place[1] * COLUMNS
    tokens, columns = pl.ds(jnp.int32(0), MAX_TOKENS), pl.ds(side, COLUMNS)
    is_token = jnp.arange(MAX_TOKENS) < plan.tokens
    inside = side + jnp.arange(COLUMNS) < kernel.shape[1]

    def add(j: Int[Array, ""], total: Float[Array, "R C"]) -> Float[Array, "R C"]:
        top = first + j * plan.rows
        rows, real = pl.ds(top, plan.rows), top + jnp.arange(plan.rows) < plan.depth
        mask = is_token[:, None] & real[None]
        left = triton.load(inputs.left.at[tokens, rows], mask=mask, other=0.0)
        mask = real[:, None] & inside[None]
        weights = triton.load(kernel.at[rows, columns], mask=mask, other=0.0)
        weights = weights.astype(left.dtype)
        return total + contract_on_gpu(left, weights, (1, 0), interpret=plan.interpret)

    # Asked for first, used last: it comes in while the tiles do.
    source = None if inputs.source is None else _whole_row(plan, inputs.source)
    nothing = jnp.zeros((MAX_TOKENS, COLUMNS), jnp.float32)
    y = jax.lax.fori_loop(0, plan.tiles, add, nothing)
    if source is not None:
        mean = jnp.sum(jnp.square(source.astype(jnp.float32))) / plan.depth
        y = y * jax.lax.rsqrt(mean + plan.eps)
    y, mask = y.astype(part.dtype), is_token[:, None] & inside[None]
    triton.store(part.at[place[0], tokens, columns], y, mask=mask)


def _whole_row(plan: Plan, x: Ref) -> Float[Array, "I"]:
    size = pl.next_power_of_2(plan.depth)
    at = x.at[pl.ds(jnp.int32(0), size)]
    return triton.load(at, mask=jnp.arange(size) < plan.depth, other=0.0)
