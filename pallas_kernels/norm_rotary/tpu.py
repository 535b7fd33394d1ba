"""Norm and rotary positions on TPU: one kernel that reads every number once and writes it once.

The array is seen as [B, T, N*H], so that a head is a block of lanes and no copy changes its layout.
Everything in between is float32, but sine and cosine come in x's dtype.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels import dispatch
from pallas_kernels.cost import cost
from pallas_kernels.gradients import of_scaled
from pallas_kernels.norm_rotary.reference import Operands

BLOCK_BYTES = 2**19  # of x in a grid step, at most
SUBLANES = 16  # rows of a bfloat16 tile

Tokens = Float[Array, "B T W"]
Turns = Float[Array, "B T H"]  # cosines and sines side by side


class Plan(NamedTuple):
    """All that a kernel knows before it sees arrays; rows are tokens per grid step."""

    eps: float
    rows: int
    length: int
    width: int
    heads: int
    interpret: bool


def tpu(operands: Operands, *, eps: float) -> Float[Array, "B T N H"]:
    """Rounds sine and cosine to x's dtype, and the result."""
    x, scale, angles = operands
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
    return dispatch.tpu_unsupported_reason(x.shape[-1])


def _pack(angles: Float[Array, "B T J"]) -> Turns:
    """(cos, sin) side by side.

    A choice by lane of padded angles: joining two halves, or tiling, would move both through memory.
    """
    room = angles.shape[-1]
    left, right = (jnp.pad(angles, ((0, 0), (0, 0), side)) for side in ((0, room), (room, 0)))
    twice = left + right
    first = jnp.arange(twice.shape[-1]) < angles.shape[-1]
    return jnp.where(first[None, None], jnp.cos(twice), jnp.sin(twice))


def _call(
    plan: Plan, kernel: Callable[..., None], tokens: tuple[Tokens, ...], scale: Any, turns: Turns
) -> tuple[Any, ...]:
    """Forward of (x,); or backward of (cotangent, x), with each step's sums toward the scale."""
    (x, *_), grid = tokens, (tokens[0].shape[0], pl.cdiv(plan.length, plan.rows))
    of_tokens = pl.BlockSpec((None, plan.rows, x.shape[2]), lambda b, t: (b, t, 0))
    of_scale = pl.BlockSpec((1, plan.width), lambda b, t: (0, 0))
    of_turns = pl.BlockSpec((None, plan.rows, plan.width), lambda b, t: (b, t, 0))
    of_sums = pl.BlockSpec((None, None, 1, plan.width), lambda b, t: (b, t, 0, 0))
    sums = jax.ShapeDtypeStruct((*grid, 1, plan.width), jnp.float32)
    return pl.pallas_call(
        functools.partial(kernel, plan),
        grid=grid,
        in_specs=((of_tokens,) * len(tokens), of_scale, of_turns),
        out_specs=(of_tokens, of_sums)[: len(tokens)],
        out_shape=(jax.ShapeDtypeStruct(x.shape, x.dtype), sums)[: len(tokens)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=cost((12 * len(tokens) - 4) * x.size, 0, (x, tokens, turns)),
        interpret=plan.interpret,
        name=f"norm_rotary{kernel.__name__}",
    )(tokens, scale[None], turns)


def _forward(plan: Plan, tokens: Any, scale: Any, turns: Any, out: Any) -> None:
    cos, sin = _turns(turns[...])
    for head in range(plan.heads):
        lanes = pl.ds(head * plan.width, plan.width)
        y = _normed(plan, tokens[0][:, lanes])[0] * scale[...]
        out[:, lanes] = (y * cos + _swap(y) * sin).astype(out.dtype)


def _backward(plan: Plan, tokens: Any, scale: Any, turns: Any, d_x: Any, d_scale: Any) -> None:
    """With n the normed x:  dy = the cotangent turned back;  dx = (dn - n mean(dn n)) / rms(x)."""
    cotangent, x = tokens
    cos, sin = _turns(turns[...])
    row = jax.lax.broadcasted_iota(jnp.int32, (plan.rows, 1), 0)
    inside = row < plan.length - pl.program_id(1) * plan.rows
    total = jnp.zeros((plan.rows, plan.width), jnp.float32)
    for head in range(plan.heads):
        lanes = pl.ds(head * plan.width, plan.width)
        n, inverse = _normed(plan, x[:, lanes])
        g = cotangent[:, lanes].astype(jnp.float32)
        dy = g * cos + _swap(g * sin)
        dn = dy * scale[...]
        dx = (dn - n * jnp.mean(dn * n, axis=-1, keepdims=True)) * inverse
        d_x[:, lanes] = dx.astype(d_x.dtype)
        total += dy * n
    # Past the end of a row lies whatever was there before.
    d_scale[...] = jnp.sum(jnp.where(inside, total, 0.0), axis=0, keepdims=True)


_apply = of_scaled(_call, _forward, _backward)


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
