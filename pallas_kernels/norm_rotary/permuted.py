"""Norm and rotary positions without slices: halves change places in a product with a signed
permutation.

Slices of half a head make the TPU compiler move every array through memory several times; a product
it joins with its neighbours. Heads come first, the layout in which it does so with the fewest
bytes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels.norm_rotary.reference import Operands, rms_norm


def permuted(operands: Operands, *, eps: float) -> Float[Array, "B T N H"]:
    """Rounds as `reference`."""
    x, scale, angles = operands
    y = rms_norm(jnp.swapaxes(x, 1, 2), scale, eps)
    cos, sin = (jnp.tile(f(angles), 2).astype(x.dtype)[:, None] for f in (jnp.cos, jnp.sin))
    turn = jnp.asarray(half_turn(x.shape[-1]), x.dtype)
    # A product with 0, 1 and -1 is exact for bfloat16; float32 needs more than one pass to be.
    turned = jnp.einsum("bnth,hg->bntg", y, turn, precision=jax.lax.Precision.HIGHEST)
    return jnp.swapaxes(y * cos + turned * sin, 1, 2)


def half_turn(width: int) -> Float[np.ndarray, "H H"]:
    """The matrix that takes (y1, y2) to (-y2, y1)."""
    half = np.eye(width // 2, dtype=np.float32)
    zero = np.zeros_like(half)
    return np.block([[zero, half], [-half, zero]])
