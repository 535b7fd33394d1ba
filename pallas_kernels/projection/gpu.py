"""One token's projection on NVIDIA GPUs: one kernel that reads every matrix once, and nothing but the results is
written.

XLA makes a reduction of a small matrix's product with one row: of a [2048, 2048] matrix it wrote all 4 million
products to memory and summed them in a second kernel, 16 us on an H200 where reading the matrix takes 2. And norm, gate
and residual were kernels of their own, of which each costs more than a microsecond. A mixer's projections take 28 us
there instead of 45. Larger matrices XLA multiplies faster than this kernel.

A block of threads owns a few columns of one matrix and walks down its rows, the next tile on its way while one is
added; the norm's factor, which is one number, comes after the sum. Everything in between is float32.

Written in Pallas for Triton, which JAX deprecates from 0.11 on: Mosaic GPU, its successor, cannot
be interpreted on a CPU in JAX 0.10, so its numbers could not be tested there.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.cost import cost
from pallas_kernels.projection.reference import ACTIVATIONS, Activation, Operands, reference

INSTEAD = "'reference', or None to let it choose"
COLUMNS = (32, 16)  # of a block: the first that gives every multiprocessor a block
MULTIPROCESSORS = 132  # of an H100 or H200
TILES_BYTES = 4 * 2**20  # of all blocks' tiles, of which two each are on their way
WARPS = 8
SMALL = 10**7  # numbers of a matrix below which XLA makes a reduction of its product with one row

Ref = Any  # an array in HBM, read and written by index


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that the kernel knows before it sees arrays; a tile is `rows` of a block's columns."""

    eps: float
    activation: Activation
    depth: int  # rows of every matrix
    rows: int
    columns: int
    interpret: bool


def gpu(
    operands: Operands, eps: float, activation: Activation
) -> tuple[Float[Array, "B T _"], ...]:
    """Rounds the results alone to x's dtype; gradients are those of the definition.

    Raises:
      UnsupportedError: not a data-centre GPU from Ampere on, several tokens or rows, neither bfloat16 nor float32, or
        a mesh.
    """
    why = gpu_refusal(operands.x)
    if why is not None:
        raise dispatch.unsupported("projection", "gpu", why, INSTEAD)
    return _project(_plan(operands, eps, activation), operands)


def gpu_refusal(x: Float[Array, "B T I"]) -> str | None:
    """Why the kernel cannot run these arguments here; None where it can."""
    if x.dtype not in (jnp.bfloat16, jnp.float32):
        return f"takes bfloat16 or float32, and x is {x.dtype}"
    if x.shape[:2] != (1, 1):
        return f"takes one token of one row, and x has {x.shape[0]} rows of {x.shape[1]}"
    return dispatch.gpu_refusal(dispatch.AMPERE)


def wins(kernels: tuple[Float[Array, "I _"], ...]) -> bool:
    """Whether the kernel is faster than the definition: XLA would make a reduction of some product."""
    return any(kernel.size < SMALL for kernel in kernels)


def _plan(operands: Operands, eps: float, activation: Activation) -> Plan:
    depth, size = operands.x.shape[2], operands.x.dtype.itemsize
    enough = (n for n in COLUMNS if _blocks(operands.kernels, n) >= MULTIPROCESSORS)
    columns = next(enough, COLUMNS[-1])
    rows = TILES_BYTES // (_blocks(operands.kernels, columns) * columns * size)
    rows = min(2 ** max(rows.bit_length() - 1, 5), pl.next_power_of_2(depth))
    return Plan(eps, activation, depth, rows, columns, dispatch.interprets())


def _blocks(kernels: tuple[Any, ...], columns: int) -> int:
    return sum(pl.cdiv(kernel.shape[1], columns) for kernel in kernels)


def _run(plan: Plan, operands: Operands) -> tuple[Float[Array, "B T _"], ...]:
    kernels, dtype = operands.kernels, operands.x.dtype
    flat = jax.tree.map(_line, operands._replace(kernels=()))._replace(kernels=kernels)
    shapes = tuple(jax.ShapeDtypeStruct(kernel.shape[1:], dtype) for kernel in kernels)
    (results,) = pl.pallas_call(
        functools.partial(_walk, plan),
        grid=(_blocks(kernels, plan.columns),),
        in_specs=(jax.tree.map(_whole, flat),),
        out_specs=(jax.tree.map(_whole, shapes),),
        out_shape=(shapes,),
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        cost_estimate=cost(2 * sum(kernel.size for kernel in kernels), 0, (flat, shapes)),
        interpret=plan.interpret,
        name="projection",
    )(flat)
    return tuple(y[None, None] for y in results)


def _line(x: Float[Array, "..."]) -> Float[Array, "_"]:
    return x.reshape(-1)


def _whole(x: Any) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda i: (0,) * len(x.shape))


def _forward(plan: Plan, operands: Operands) -> tuple[Any, Operands]:
    return _run(plan, operands), operands


def _backward(plan: Plan, operands: Operands, cotangents: Any) -> tuple[Operands]:
    define = functools.partial(reference, eps=plan.eps, activation=plan.activation)
    return jax.vjp(define, operands)[1](cotangents)


_project: Any = jax.custom_vjp(_run, nondiff_argnums=(0,))
_project.defvjp(_forward, _backward)


def _walk(plan: Plan, operands: Operands, results: tuple[Ref, ...]) -> None:
    """The block's columns of the one matrix that has them."""
    block = pl.program_id(0)
    for kernel, result in zip(operands.kernels, results, strict=True):
        mine = functools.partial(_columns, plan, operands, kernel, result, block)
        blocks = _blocks((kernel,), plan.columns)
        pl.when((block >= 0) & (block < blocks))(mine)
        block = block - blocks


def _columns(
    plan: Plan, operands: Operands, kernel: Ref, result: Ref, block: Int[Array, ""]
) -> None:
    """One block's results."""
    columns = pl.ds(block * plan.columns, plan.columns)
    inside = block * plan.columns + jnp.arange(plan.columns) < kernel.shape[1]

    def tile(j):
        real = j * plan.rows + jnp.arange(plan.rows) < plan.depth
        return pl.ds(j * plan.rows, plan.rows), real

    def read(j):
        rows, real = tile(j)
        mask = real[:, None] & inside[None]
        return triton.load(kernel.at[rows, columns], mask=mask, other=0.0)

    def add(j, carry):
        total, squares, weights = carry
        following = read(j + 1)  # on its way while this tile is added
        rows, real = tile(j)
        x = _load(operands.x.at[rows], real)
        squares = squares + x * x
        if operands.scale is not None:
            x = x * _load(operands.scale.at[rows], real)
        if operands.gate is not None:
            x = x * ACTIVATIONS[plan.activation](_load(operands.gate.at[rows], real))
        return total + x[:, None] * weights.astype(jnp.float32), squares, following

    start = jnp.zeros((plan.rows, plan.columns)), jnp.zeros((plan.rows,)), read(jnp.int32(0))
    total, squares, _ = jax.lax.fori_loop(0, pl.cdiv(plan.depth, plan.rows), add, start)
    y = jnp.sum(total, axis=0)
    if operands.scale is not None:
        y = y * jax.lax.rsqrt(jnp.sum(squares) / plan.depth + plan.eps)
    if operands.residual is not None:
        y = y + _load(operands.residual.at[columns], inside)
    triton.store(result.at[columns], y.astype(result.dtype), mask=inside)


def _load(ref: Ref, mask: Bool[Array, "*R"]) -> Float[Array, "*R"]:
    return triton.load(ref, mask=mask, other=0.0).astype(jnp.float32)
