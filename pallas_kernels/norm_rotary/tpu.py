"""Norm and rotary positions on TPU: one kernel that reads every number once and writes it once.

The array is seen as [B, T, N*H], so that a head is a block of lanes and no copy changes its layout.
Everything in between is float32, but sine and cosine come in x's dtype.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels import dispatch
from pallas_kernels.cost import cost

LANES = 128
BLOCK_BYTES = 2**19  # of x in a grid step, at most
SUBLANES = 16  # rows of a bfloat16 tile

Tokens = Float[Array, "B T W"]


class Plan(NamedTuple):
    """All that a kernel knows before it sees arrays; rows are tokens per grid step."""

    eps: float
    rows: int
    length: int
    width: int
    heads: int
    interpret: bool


def tpu(
    x: Float[Array, "B T N H"],
    scale: Float[Array, "H"],
    angles: Float[Array, "B T J"],
    *,
    eps: float,
) -> Float[Array, "B T N H"]:
    """Rounds sine and cosine to x's dtype, and the result; arguments as `norm_rotary`.

    Raises:
      UnsupportedError: not a TPU, a head width that is not a multiple of 128, or a mesh.
    """
    dispatch.require("norm_rotary", "tpu", unsupported_reason(x), "permuted")
    batch, length, heads, width = x.shape
    fitting = BLOCK_BYTES // (heads * width * x.dtype.itemsize)
    rows = max(fitting // SUBLANES, 1) * SUBLANES
    rows = min(rows, -(-length // SUBLANES) * SUBLANES)
    plan = Plan(eps, rows, length, width, heads, dispatch.interprets())
    flat = x.reshape(batch, length, heads * width)
    turns = _pack(angles).astype(x.dtype)
    return _apply(plan, flat, scale.astype(jnp.float32), turns).reshape(x.shape)


def unsupported_reason(x: Float[Array, "B T N H"]) -> str | None:
    """Why the kernel cannot run these arguments here; None where it can."""
    reason = dispatch.platform_unsupported_reason("tpu")
    if reason is not None or dispatch.interprets():
        return reason
    if x.shape[-1] % LANES:
        return f"needs a head width that is a multiple of {LANES}, and it is {x.shape[-1]}"
    return dispatch.mesh_unsupported_reason()


def _pack(angles: Float[Array, "B T J"]) -> Float[Array, "B T H"]:
    """(cos, sin) side by side.

    A choice by lane of padded angles: joining two halves, or tiling, would move both through memory.
    """
    room = angles.shape[-1]
    left, right = (jnp.pad(angles, ((0, 0), (0, 0), side)) for side in ((0, room), (room, 0)))
    twice = left + right
    first = jnp.arange(twice.shape[-1]) < angles.shape[-1]
    return jnp.where(first[None, None], jnp.cos(twice), jnp.sin(twice))


def _apply_alone(
    plan: Plan, x: Tokens, scale: Float[Array, "H"], turns: Float[Array, "B T H"]
) -> Tokens:
    grid, of_tokens, of_scale, of_turns = _blocks(plan, x)
    return pl.pallas_call(
        functools.partial(_forward, plan),
        grid=grid,
        in_specs=(of_tokens, of_scale, of_turns),
        out_specs=of_tokens,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=_parallel(),
        cost_estimate=cost(8 * x.size, 0, (x, x, turns)),
        interpret=plan.interpret,
        name="norm_rotary_forward",
    )(x, scale[None], turns)


def _apply_forward(
    plan: Plan, x: Tokens, scale: Float[Array, "H"], turns: Float[Array, "B T H"]
) -> tuple[Tokens, Any]:
    return _apply_alone(plan, x, scale, turns), (x, scale, turns)


def _apply_backward(plan: Plan, residuals: Any, cotangent: Tokens) -> Any:
    x, scale, turns = residuals
    grid, of_tokens, of_scale, of_turns = _blocks(plan, x)
    dx, dscale = pl.pallas_call(
        functools.partial(_backward, plan),
        grid=grid,
        in_specs=(of_tokens, of_tokens, of_scale, of_turns),
        out_specs=(
            of_tokens,
            pl.BlockSpec((None, None, 1, plan.width), lambda b, t: (b, t, 0, 0)),
        ),
        out_shape=(
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((*grid, 1, plan.width), jnp.float32),
        ),
        compiler_params=_parallel(),
        cost_estimate=cost(20 * x.size, 0, (x, x, x, turns)),
        interpret=plan.interpret,
        name="norm_rotary_backward",
    )(cotangent, x, scale[None], turns)
    return dx, jnp.sum(dscale, axis=(0, 1, 2)), jnp.zeros_like(turns)


_apply: Any = jax.custom_vjp(_apply_alone, nondiff_argnums=(0,))
_apply.defvjp(_apply_forward, _apply_backward)


def _forward(plan: Plan, x_ref: Any, scale_ref: Any, turns_ref: Any, out_ref: Any) -> None:
    cos, sin = _turns(turns_ref[...])
    for head in range(plan.heads):
        lanes = pl.ds(head * plan.width, plan.width)
        y = _normed(plan, x_ref[:, lanes])[0] * scale_ref[...]
        out_ref[:, lanes] = (y * cos + _swap(y) * sin).astype(out_ref.dtype)


def _backward(
    plan: Plan,
    cotangent_ref: Any,
    x_ref: Any,
    scale_ref: Any,
    turns_ref: Any,
    dx_ref: Any,
    dscale_ref: Any,
) -> None:
    """With n the normed x:  dy = the cotangent turned back;  dx = (dn - n mean(dn n)) / rms(x)."""
    cos, sin = _turns(turns_ref[...])
    row = jax.lax.broadcasted_iota(jnp.int32, (plan.rows, 1), 0)
    inside = row < plan.length - pl.program_id(1) * plan.rows
    total = jnp.zeros((plan.rows, plan.width), jnp.float32)
    for head in range(plan.heads):
        lanes = pl.ds(head * plan.width, plan.width)
        n, inverse = _normed(plan, x_ref[:, lanes])
        g = cotangent_ref[:, lanes].astype(jnp.float32)
        dy = g * cos + _swap(g * sin)
        dn = dy * scale_ref[...]
        dx = (dn - n * jnp.mean(dn * n, axis=-1, keepdims=True)) * inverse
        dx_ref[:, lanes] = dx.astype(dx_ref.dtype)
        total += dy * n
    # Past the end of a row lies whatever was there before.
    dscale_ref[...] = jnp.sum(jnp.where(inside, total, 0.0), axis=0, keepdims=True)


def _normed(plan: Plan, x: Float[Array, "R H"]) -> tuple[Float[Array, "R H"], Float[Array, "R 1"]]:
    wide = x.astype(jnp.float32)
    mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(mean + plan.eps)
    return wide * inverse, inverse


def _turns(packed: Float[Array, "R H"]) -> tuple[Float[Array, "R H"], Float[Array, "R H"]]:
    """(cos, cos) and (-sin, sin) from (cos, sin)."""
    packed = packed.astype(jnp.float32)
    swapped = _swap(packed)
    first = jax.lax.broadcasted_iota(jnp.int32, packed.shape, 1) < packed.shape[1] // 2
    return jnp.where(first, packed, swapped), jnp.where(first, -swapped, packed)


def _swap(x: Float[Array, "R H"]) -> Float[Array, "R H"]:
    """The halves change places."""
    return pltpu.roll(x, x.shape[1] // 2, 1)


def _blocks(plan: Plan, x: Tokens) -> tuple[tuple[int, int], Any, Any, Any]:
    grid = (x.shape[0], pl.cdiv(plan.length, plan.rows))
    return (
        grid,
        pl.BlockSpec((None, plan.rows, x.shape[2]), lambda b, t: (b, t, 0)),
        pl.BlockSpec((1, plan.width), lambda b, t: (0, 0)),
        pl.BlockSpec((None, plan.rows, plan.width), lambda b, t: (b, t, 0)),
    )


def _parallel() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"))
