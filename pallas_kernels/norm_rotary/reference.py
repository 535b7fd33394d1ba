"""The definition of norm and rotary positions: halves taken apart, turned and joined."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def reference(
    x: Float[Array, "B T N H"],
    scale: Float[Array, "H"],
    angles: Float[Array, "B T J"],
    *,
    eps: float,
) -> Float[Array, "B T N H"]:
    """Rounds to x's dtype after the norm, after the scale and after the rotation; arguments as
    `norm_rotary`."""
    return rotate(rms_norm(x, scale, eps), angles)


def rotate(x: Float[Array, "B T N H"], angles: Float[Array, "B T J"]) -> Float[Array, "B T N H"]:
    """Rotary embedding with half-split pairs: dimension j turns with j + H/2.

    (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), in the dtype of x; sine and cosine are taken in
    float32.
    """
    cos = jnp.cos(angles).astype(x.dtype)[:, :, None, :]
    sin = jnp.sin(angles).astype(x.dtype)[:, :, None, :]
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
