"""Matrix products whose precision is stated once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def product(equation: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum` of two arrays into float32, without the reduced precision TPUs and GPUs choose
    for float32 inputs."""
    return jnp.einsum(
        equation, a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
