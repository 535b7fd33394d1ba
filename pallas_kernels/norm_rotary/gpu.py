"""Norm and rotary positions on NVIDIA GPUs: one kernel that reads every number once and writes it once.

The array is seen as rows of one head of one token, [B*T*N, H], which lie one after the other: a block
of threads takes a run of them, whatever the number of heads, and both halves of each apart. Everything
in between is float32, but sine and cosine come in x's dtype.

At B1 T16384 N16 H128 in bfloat16, where x is 67 MB, forward moves 0.14 GB and backward 0.21 GB; what
XLA makes of the definition for an H100 moves 0.28 GB and 0.62 GB, by the shapes of its kernels.

Written in Pallas for Triton; `pallas_kernels.products` says why.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float

from pallas_kernels import dispatch
from pallas_kernels.cost import cost

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


def gpu(
    x: Float[Array, "B T N H"],
    scale: Float[Array, "H"],
    angles: Float[Array, "B T J"],
    *,
    eps: float,
) -> Float[Array, "B T N H"]:
    """Rounds sine and cosine to x's dtype, and the result; arguments as `norm_rotary`.

    Raises:
      UnsupportedError: not a data-centre GPU from Ampere on, neither bfloat16 nor float32, or a mesh.
    """
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


def _apply_alone(plan: Plan, x: Rows, scale: Float[Array, "H"], turns: Turns) -> Rows:
    of_rows, of_scale, of_turns, _ = _blocks(plan, x, turns)
    return pl.pallas_call(
        functools.partial(_forward, plan),
        grid=(pl.cdiv(plan.lines, plan.rows),),
        in_specs=(of_rows, of_scale, of_turns, of_turns),
        out_specs=of_rows,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=triton.CompilerParams(num_warps=WARPS),
        cost_estimate=cost(8 * x.size, 0, (x, x, turns)),
        interpret=plan.interpret,
        name="norm_rotary_forward",
    )(x, scale, *turns)


def _apply_forward(plan: Plan, x: Rows, scale: Float[Array, "H"], turns: Turns) -> tuple[Rows, Any]:
    return _apply_alone(plan, x, scale, turns), (x, scale, turns)


def _apply_backward(plan: Plan, residuals: Any, cotangent: Rows) -> Any:
    x, scale, turns = residuals
    of_rows, of_scale, of_turns, of_sums = _blocks(plan, x, turns)
    blocks = pl.cdiv(plan.lines, plan.rows)
    dx, dscale = pl.pallas_call(
        functools.partial(_backward, plan),
        grid=(blocks,),
        in_specs=(of_rows, of_rows, of_scale, of_turns, of_turns),
        out_specs=(of_rows, of_sums),
        out_shape=(
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((blocks, *scale.shape), jnp.float32),
        ),
        compiler_params=triton.CompilerParams(num_warps=WARPS),
        cost_estimate=cost(20 * x.size, 0, (x, x, x, turns)),
        interpret=plan.interpret,
        name="norm_rotary_backward",
    )(cotangent, x, scale, *turns)
    return dx, jnp.sum(dscale, axis=0), jax.tree.map(jnp.zeros_like, turns)


_apply: Any = jax.custom_vjp(_apply_alone, nondiff_argnums=(0,))
_apply.defvjp(_apply_forward, _apply_backward)


def _forward(plan: Plan, x_ref: Ref, scale_ref: Ref, cos_ref: Ref, sin_ref: Ref, out: Ref) -> None:
    tile = _Tile(plan)
    cos, sin = tile.turn(cos_ref), tile.turn(sin_ref)
    normed, _ = _normed(plan, tile.read(x_ref))
    first, second = (n * s[None] for n, s in zip(normed, tile.vector(scale_ref), strict=True))
    tile.write(out, [first * cos - second * sin, second * cos + first * sin])


def _backward(
    plan: Plan,
    cotangent_ref: Ref,
    x_ref: Ref,
    scale_ref: Ref,
    cos_ref: Ref,
    sin_ref: Ref,
    dx_ref: Ref,
    dscale_ref: Ref,
) -> None:
    """With n the normed x:  dy = the cotangent turned back;  dx = (dn - n mean(dn n)) / rms(x)."""
    tile = _Tile(plan)
    cos, sin = tile.turn(cos_ref), tile.turn(sin_ref)
    normed, inverse = _normed(plan, tile.read(x_ref))
    first, second = tile.read(cotangent_ref)
    dy = [first * cos + second * sin, second * cos - first * sin]
    tile.write_vector(dscale_ref, [jnp.sum(d * n, axis=0) for d, n in zip(dy, normed, strict=True)])
    dn = [d * s[None] for d, s in zip(dy, tile.vector(scale_ref), strict=True)]
    mean = _mean(plan, [d * n for d, n in zip(dn, normed, strict=True)])
    tile.write(dx_ref, [(d - n * mean) * inverse for d, n in zip(dn, normed, strict=True)])


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

    def read(self, ref: Ref) -> list[Half]:
        """Both halves of every row in float32."""
        return [self._load(ref.at[self.rows, at], self.mask) for at in self._halves()]

    def turn(self, ref: Ref) -> Half:
        """Sines or cosines of every row's token."""
        token, column = self.lines // self.plan.heads, jnp.arange(self.plan.columns)
        at = token[:, None] * self.plan.half + column[None]
        return self._load(ref.at[at], self.mask)

    def vector(self, ref: Ref) -> list[Float[Array, "J"]]:
        return [self._load(ref.at[at], self.inside) for at in self._halves()]

    def write(self, ref: Ref, halves: list[Half]) -> None:
        for at, half in zip(self._halves(), halves, strict=True):
            triton.store(ref.at[self.rows, at], half.astype(ref.dtype), mask=self.mask)

    def write_vector(self, ref: Ref, halves: list[Float[Array, "J"]]) -> None:
        for at, half in zip(self._halves(), halves, strict=True):
            triton.store(ref.at[at], half, mask=self.inside)

    def _halves(self) -> list[Any]:
        # A slice past the end is refused where its start is a Python number; the mask keeps it inside.
        zero = jnp.zeros((), jnp.int32)
        return [pl.ds(zero + start, self.plan.columns) for start in (0, self.plan.half)]

    def _load(self, ref: Ref, mask: Bool[Array, "*R"]) -> Float[Array, "*R"]:
        return triton.load(ref, mask=mask, other=0.0).astype(jnp.float32)


def _blocks(plan: Plan, x: Rows, turns: Turns) -> tuple[pl.BlockSpec, ...]:
    """What a block of threads sees: all rows, the scale, all turns, and its own sums of rows."""
    width = 2 * plan.half
    return (
        pl.BlockSpec(x.shape, lambda i: (0, 0)),
        pl.BlockSpec((width,), lambda i: (0,)),
        pl.BlockSpec(turns[0].shape, lambda i: (0,)),
        pl.BlockSpec((None, width), lambda i: (i, 0)),
    )
