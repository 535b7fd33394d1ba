"""The definition of norm and rotary positions: halves taken apart, turned and joined."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Operands(NamedTuple):
    """Arguments of `norm_rotary` that are arrays."""

    x: Float[Array, "B T N H"]
    scale: Float[Array, "H"]
    angles: Float[Array, "B T J"]


def reference(operands: Operands, *, eps: float) -> Float[Array, "B T N H"]:
    """Rounds to x's dtype after the norm, after the scale and after the rotation."""
    x, scale, angles = operands
    return rotate(rms_norm(x, scale, eps), angles)


def rotate(x: Float[Array, "B T N H"], angles: Float[Array, "B T J"]) -> Float[Array, "B T N H"]:
    """Rotary embedding with half-split pairs: dimension j turns with j + H/2.

    (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), in the dtype of x; sine and cosine are taken in
    float32.
    """
    cos, sin = (f(angles).astype(x.dtype)[:, :, None, :] for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rms_norm(x: Float[Array, "*A D"], scale: Float[Array, "D"], eps: float) -> Float[Array, "*A D"]:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis.

    The mean is taken in float32; the quotient is rounded to x's dtype before the scale is applied, as
    Qwen3 does.
    """
    wide = x.astype(jnp.float32)
    mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    normed = (wide * jax.lax.rsqrt(mean + eps)).astype(x.dtype)
    return normed * scale.astype(x.dtype).reshape((1,) * (x.ndim - 1) + scale.shape)
