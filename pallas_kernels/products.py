"""Matrix products whose precision is stated once.

GPU kernels are written in Pallas for Triton, which JAX deprecates from 0.11 on: Mosaic GPU, its successor, cannot
be interpreted on a CPU in JAX 0.10, so its results could not be tested there.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Precision = Literal["split", "one_pass"]
"""What a kernel makes of float32 intermediates: two bfloat16 terms, or one."""


def product(equation: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum` of two arrays into float32, without the reduced precision TPUs and GPUs choose
    for float32 inputs."""
    return jnp.einsum(
        equation, a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def contract(
    a: Float[Array, "I J"], b: Float[Array, "L M"], over: tuple[int, int]
) -> Float[Array, "_ _"]:
    """Sum over axis over[0] of a and over[1] of b into float32, within a TPU kernel.

    bfloat16 operands are exact, float32 ones not reduced.
    """
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, exact, jnp.float32)


def contract_on_gpu(
    a: Float[Array, "I J"], b: Float[Array, "L M"], over: tuple[int, int], *, interpret: bool
) -> Float[Array, "_ _"]:
    """The same within a GPU kernel; float32 operands lose 1e-6."""
    precision = None
    if a.dtype == jnp.float32:
        # Three TF32 products; the host that interprets has no such unit, and none is needed.
        three = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        precision = jax.lax.Precision.HIGHEST if interpret else three
    dimensions = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=jnp.float32
    )
