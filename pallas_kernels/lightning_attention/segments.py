"""Reading segment ids the way a recurrence does: which tokens are real, and where a new segment starts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def is_real(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """True where a token is not padding."""
    return segment_ids != 0


def starts_segment(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """True at a real token whose id differs from that of the last real token before it; False at the first one."""
    real = is_real(segment_ids)
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None]
    last = jax.lax.cummax(jnp.where(real, index, -1), axis=1)
    before = jnp.pad(last[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    previous = jnp.take_along_axis(segment_ids, jnp.maximum(before, 0), axis=1)
    return real & (before >= 0) & (segment_ids != previous)
