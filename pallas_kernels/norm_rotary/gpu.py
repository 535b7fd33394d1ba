"""Norm and rotary positions on NVIDIA GPUs: one kernel that reads every number once and writes it once.

The array is seen as rows of one head of one token, [B*T*N, H], which lie one after the other: a block
of threads takes a run of them, whatever the number of heads, and both halves of each apart. Everything
in between is float32, but sine and cosine come in x's dtype.

At B1 T16384 N16 H128 in bfloat16, where x is 67 MB, forward moves 0.14 GB and backward 0.21 GB; what
XLA makes of the definition for an H100 moves 0.28 GB and 0.62 GB, by the shapes of its kernels.

Written in Pallas for Triton; `pallas_kernels.products` says why.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float

from pallas_kernels import dispatch
from pallas_kernels.cost import cost
from pallas_kernels.gradients import of_scaled
from pallas_kernels.norm_rotary.reference import Operands

TILE = 8192  # numbers of x in a block: of 32 a thread, backward makes 127 registers and spills none
WARPS = 8

Rows = Float[Array, "R H"]
Half = Float[Array, "R J"]
Turns = tuple[Float[Array, "S"], Float[Array, "S"]]  # cosines and sines of all tokens, end to end
Ref = Any  # an array in HBM, read and written by index


class Plan(NamedTuple):
    """All that a kernel knows before it sees arrays; a block takes `rows` of all `lines`."""

    eps: float
    lines: int  # B * T * N
    heads: int
    half: int  # of the width of a head
    rows: int
    interpret: bool

    @property
    def columns(self) -> int:
        """Columns of a tile of one half: a power of two."""
        return pl.next_power_of_2(self.half)


def gpu(operands: Operands, *, eps: float) -> Float[Array, "B T N H"]:
    """Rounds sine and cosine to x's dtype, and the result."""
    x, scale, angles = operands
    dispatch.require("norm_rotary", "gpu", unsupported_reason(x), "reference")
    half = angles.shape[-1]
    rows = max(1, TILE // (2 * pl.next_power_of_2(half)))
    plan = Plan(eps, x.size // (2 * half), x.shape[2], half, rows, dispatch.interprets())
    turns = tuple(f(angles).astype(x.dtype).reshape(-1) for f in (jnp.cos, jnp.sin))
    return _apply(plan, x.reshape(-1, 2 * half), scale.astype(jnp.float32), turns).reshape(x.shape)


def unsupported_reason(x: Float[Array, "B T N H"]) -> str | None:
    """Why the kernel cannot run these arguments here; None where it can."""
    if x.dtype not in (jnp.bfloat16, jnp.float32):
        return f"takes bfloat16 or float32, and x is {x.dtype}"
    return dispatch.gpu_unsupported_reason(dispatch.AMPERE)


def _call(
    plan: Plan, kernel: Callable[..., None], rows: tuple[Rows, ...], scale: Any, turns: Turns
) -> tuple[Any, ...]:
    """Forward of (x,); or backward of (cotangent, x), with each block's sums toward the scale."""
    count, (x, *_), width = pl.cdiv(plan.lines, plan.rows), rows, 2 * plan.half
    of_rows = pl.BlockSpec(x.shape, lambda i: (0, 0))
    of_scale = pl.BlockSpec((width,), lambda i: (0,))
    of_turns = pl.BlockSpec(turns[0].shape, lambda i: (0,))
    of_sums = pl.BlockSpec((None, width), lambda i: (i, 0))
    sums = jax.ShapeDtypeStruct((count, width), jnp.float32)
    return pl.pallas_call(
        functools.partial(kernel, plan),
        grid=(count,),
        in_specs=((of_rows,) * len(rows), of_scale, (of_turns, of_turns)),
        out_specs=(of_rows, of_sums)[: len(rows)],
        out_shape=(jax.ShapeDtypeStruct(x.shape, x.dtype), sums)[: len(rows)],
        compiler_params=triton.CompilerParams(num_warps=WARPS),
        cost_estimate=cost((12 * len(rows) - 4) * x.size, 0, (x, rows, turns)),
        interpret=plan.interpret,
        name=f"norm_rotary{kernel.__name__}",
    )(rows, scale, turns)


def _forward(plan: Plan, rows: Any, scale: Ref, turns: Any, out: Ref) -> None:
    tile = _Tile(plan)
    cos, sin = map(tile.turn, turns)
    normed, _ = _normed(plan, tile.read(*rows))
    first, second = (n * s[None] for n, s in zip(normed, tile.read(scale), strict=True))
    tile.write(out, [first * cos - second * sin, second * cos + first * sin])


def _backward(plan: Plan, rows: Any, scale: Ref, turns: Any, d_x: Ref, d_scale: Ref) -> None:
    """With n the normed x:  dy = the cotangent turned back;  dx = (dn - n mean(dn n)) / rms(x)."""
    tile, (cotangent, x) = _Tile(plan), rows
    cos, sin = map(tile.turn, turns)
    normed, inverse = _normed(plan, tile.read(x))
    first, second = tile.read(cotangent)
    dy = [first * cos + second * sin, second * cos - first * sin]
    tile.write(d_scale, [jnp.sum(d * n, axis=0) for d, n in zip(dy, normed, strict=True)])
    dn = [d * s[None] for d, s in zip(dy, tile.read(scale), strict=True)]
    mean = _mean(plan, [d * n for d, n in zip(dn, normed, strict=True)])
    tile.write(d_x, [(d - n * mean) * inverse for d, n in zip(dn, normed, strict=True)])


_apply = of_scaled(_call, _forward, _backward)


def _normed(plan: Plan, x: list[Half]) -> tuple[list[Half], Float[Array, "R 1"]]:
    inverse = jax.lax.rsqrt(_mean(plan, [half * half for half in x]) + plan.eps)
    return [half * inverse for half in x], inverse


def _mean(plan: Plan, halves: list[Half]) -> Float[Array, "R 1"]:
    """Over a head; what a tile has beyond it is 0."""
    first, second = halves
    return jnp.sum(first + second, axis=1, keepdims=True) / (2 * plan.half)


class _Tile:
    """The rows of one block of threads: where they are, and which of a tile's numbers are real."""

    def __init__(self, plan: Plan) -> None:
        start = pl.program_id(0) * plan.rows
        self.plan, self.rows = plan, pl.ds(start, plan.rows)
        self.lines = start + jnp.arange(plan.rows)
        self.inside = jnp.arange(plan.columns) < plan.half
        self.mask = (self.lines < plan.lines)[:, None] & self.inside[None]

    def turn(self, ref: Ref) -> Half:
        """Sines or cosines of every row's token."""
        token, column = self.lines // self.plan.heads, jnp.arange(self.plan.columns)
        at = token[:, None] * self.plan.half + column[None]
        return _load(ref.at[at], self.mask)

    def read(self, ref: Ref) -> list[Float[Array, "*R J"]]:
        """Both halves of every row, or of one row for all, in float32."""
        return [_load(at, mask) for at, mask in self._halves(ref)]

    def write(self, ref: Ref, halves: list[Float[Array, "*R J"]]) -> None:
        for (at, mask), half in zip(self._halves(ref), halves, strict=True):
            triton.store(at, half.astype(ref.dtype), mask=mask)

    def _halves(self, ref: Ref) -> list[tuple[Any, Bool[Array, "*R J"]]]:
        # A slice past the end is refused where its start is a Python number; the mask keeps it inside.
        zero = jnp.zeros((), jnp.int32)
        halves = [pl.ds(zero + start, self.plan.columns) for start in (0, self.plan.half)]
        if len(ref.shape) == 1:
            return [(ref.at[at], self.inside) for at in halves]
        return [(ref.at[self.rows, at], self.mask) for at in halves]


def _load(ref: Ref, mask: Bool[Array, "*R"]) -> Float[Array, "*R"]:
    return triton.load(ref, mask=mask, other=0.0).astype(jnp.float32)
