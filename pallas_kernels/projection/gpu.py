"""One token's projection on NVIDIA GPUs: one kernel that reads every matrix once, and a sum of its few parts.

XLA makes a reduction of a small matrix's product with one row: of a [2048, 2048] matrix it wrote all 4 million
products to memory and summed them in a second kernel, 16 us on an H200 where reading the matrix takes 2. And norm and
gate were kernels of their own, of which each costs more than a microsecond.

A block of threads takes one tile of one matrix, all of which is on its way at once: while it waits, others of the same
multiprocessor read and add theirs. What tiles below each other add up to is left to XLA, as are gate and residual: it
sums where the results are used.

On an H200 the projections of a mixer, four maps of [2048, 2048] in and one out (42 MB), take 23 us instead of 44, those
of an MLP of width 6,144 (75 MB) 33 us, as XLA's. Tiles of 8 to 64 KiB, of 32 to 512 columns, by 4 to 16 warps:
mixer 23 to 31 us, MLP 33 to 47.

Written in Pallas for Triton, which JAX deprecates from 0.11 on: Mosaic GPU, its successor, cannot
be interpreted on a CPU in JAX 0.10, so its numbers could not be tested there.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.cost import cost
from pallas_kernels.projection.reference import ACTIVATIONS, Activation, Operands, reference

INSTEAD = "'reference', or None to let it choose"
COLUMNS = 64  # of a tile: rows of 128 bytes in bfloat16
TILE_BYTES = 32 * 2**10
WARPS = 4

Ref = Any  # an array in HBM, read and written by index


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that the kernel knows before it sees arrays."""

    eps: float
    activation: Activation
    depth: int  # rows of every matrix
    rows: int  # of a tile
    interpret: bool

    @property
    def tiles(self) -> int:
        """Tiles below each other."""
        return pl.cdiv(self.depth, self.rows)


class _Inputs(NamedTuple):
    """What the kernel reads."""

    left: Float[Array, "I"]  # norm(left) is multiplied with the matrices
    kernels: tuple[Float[Array, "I _"], ...]
    scale: Float[Array, "I"] | None
    source: Float[Array, "I"] | None  # whose mean square divides


def gpu(
    operands: Operands, eps: float, activation: Activation
) -> tuple[Float[Array, "B T _"], ...]:
    """Rounds x times its gate, and the results, to x's dtype; gradients are those of the definition.

    Raises:
      UnsupportedError: not a data-centre GPU from Ampere on, several tokens or rows, neither bfloat16 nor float32, or
        a mesh.
    """
    why = gpu_refusal(operands.x)
    if why is not None:
        raise dispatch.unsupported("projection", "gpu", why, INSTEAD)
    return _project(_plan(operands.kernels[0], eps, activation), operands)


def gpu_refusal(x: Float[Array, "B T I"]) -> str | None:
    """Why the kernel cannot run these arguments here; None where it can."""
    if x.dtype not in (jnp.bfloat16, jnp.float32):
        return f"takes bfloat16 or float32, and x is {x.dtype}"
    if x.shape[:2] != (1, 1):
        return f"takes one token of one row, and x has {x.shape[0]} rows of {x.shape[1]}"
    return dispatch.gpu_refusal(dispatch.AMPERE)


def _plan(kernel: Any, eps: float, activation: Activation) -> Plan:
    depth = kernel.shape[0]
    rows = min(TILE_BYTES // (COLUMNS * kernel.dtype.itemsize), pl.next_power_of_2(depth))
    return Plan(eps, activation, depth, rows, dispatch.interprets())


def _token(plan: Plan, operands: Operands) -> tuple[Float[Array, "B T _"], ...]:
    x, kernels, scale, gate, residual = operands
    gated = x if gate is None else x * ACTIVATIONS[plan.activation](gate)
    inputs = _Inputs(gated[0, 0], kernels, scale, None if scale is None else x[0, 0])
    shapes = tuple(
        jax.ShapeDtypeStruct((plan.tiles, kernel.shape[1]), jnp.float32) for kernel in kernels
    )
    (parts,) = pl.pallas_call(
        functools.partial(_walk, plan),
        grid=(sum(map(_blocks, kernels)), plan.tiles),
        in_specs=(jax.tree.map(_whole, inputs),),
        out_specs=(jax.tree.map(_whole, shapes),),
        out_shape=(shapes,),
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        cost_estimate=cost(2 * sum(kernel.size for kernel in kernels), 0, (inputs, shapes)),
        interpret=plan.interpret,
        name="projection",
    )(inputs)
    rest = 0.0 if residual is None else residual[0, 0].astype(jnp.float32)
    return tuple((rest + jnp.sum(y, axis=0)).astype(x.dtype)[None, None] for y in parts)


def _whole(x: Any) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda i, j: (0,) * len(x.shape))


def _blocks(kernel: Any) -> int:
    return pl.cdiv(kernel.shape[1], COLUMNS)


def _forward(plan: Plan, operands: Operands) -> tuple[Any, Operands]:
    return _token(plan, operands), operands


def _backward(plan: Plan, operands: Operands, cotangents: Any) -> tuple[Operands]:
    define = functools.partial(reference, eps=plan.eps, activation=plan.activation)
    return jax.vjp(define, operands)[1](cotangents)


_differentiable: Any = jax.custom_vjp(_token, nondiff_argnums=(0,))
_differentiable.defvjp(_forward, _backward)
# Layers alike are traced and lowered once: a kernel takes 50 ms of each.
_project: Any = jax.jit(_differentiable, static_argnums=0)


def _walk(plan: Plan, inputs: _Inputs, parts: tuple[Ref, ...]) -> None:
    """The block's tile of the one matrix that has it."""
    block, down = pl.program_id(0), pl.program_id(1)
    for kernel, part in zip(inputs.kernels, parts, strict=True):
        tile = functools.partial(_tile, plan, inputs, kernel, part, (down, block))
        pl.when((block >= 0) & (block < _blocks(kernel)))(tile)
        block = block - _blocks(kernel)


def _tile(
    plan: Plan, inputs: _Inputs, kernel: Ref, part: Ref, place: tuple[Int[Array, ""], ...]
) -> None:
    """Adds up one tile; its place is counted in tiles, downwards and to the right."""
    top, side = place[0] * plan.rows, place[1] * COLUMNS
    rows, columns = pl.ds(top, plan.rows), pl.ds(side, COLUMNS)
    real = top + jnp.arange(plan.rows) < plan.depth
    inside = side + jnp.arange(COLUMNS) < kernel.shape[1]
    # Asked for first: nothing that follows waits before all is on its way.
    weights = triton.load(kernel.at[rows, columns], mask=real[:, None] & inside[None], other=0.0)
    left = _load(inputs.left.at[rows], real)
    if inputs.scale is not None:
        left = left * _load(inputs.scale.at[rows], real) * _inverse_norm(plan, inputs.source)
    weights = weights.astype(inputs.left.dtype).astype(jnp.float32)
    y = jnp.sum(left[:, None] * weights, axis=0)
    triton.store(part.at[place[0], columns], y, mask=inside)


def _inverse_norm(plan: Plan, x: Ref) -> Float[Array, ""]:
    """1 / sqrt(mean(x^2) + eps), in every block: it is one number, and x is short."""
    size = pl.next_power_of_2(plan.depth)
    whole = _load(x.at[pl.ds(jnp.int32(0), size)], jnp.arange(size) < plan.depth)
    return jax.lax.rsqrt(jnp.sum(whole * whole) / plan.depth + plan.eps)


def _load(ref: Ref, mask: Bool[Array, "*R"]) -> Float[Array, "*R"]:
    return triton.load(ref, mask=mask, other=0.0).astype(jnp.float32)
