"""The definition of lightning attention: one token after the other. Also the fastest form for a
single token."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.lightning_attention import segments


class Operands(NamedTuple):
    """Arguments of `lightning_attention` that are arrays, state and decay in float32."""

    q: Float[Array, "B T N H"]
    k: Float[Array, "B T N H"]
    v: Float[Array, "B T N H"]
    log_decay: Float[Array, "N"]
    state: Float[Array, "B N H H"]
    segment_ids: Int[Array, "B T"] | None


def recurrent(
    operands: Operands,
    *,
    scale: float,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N H H"]]:
    """Scans the recurrence over tokens; arguments and results as `lightning_attention`."""
    q, k, v, log_decay, state, segment_ids = operands
    batch, length = q.shape[:2]
    if segment_ids is None:
        real, starts = jnp.ones((batch, length), bool), jnp.zeros((batch, length), bool)
    else:
        real, starts = segments.is_real(segment_ids), segments.starts_segment(segment_ids)
    decay = jnp.exp(log_decay)[None, :, None, None]

    def step(state, token):
        return _step(state, token, decay, scale)

    tokens = (q, k, v, real, starts)
    if length == 1:
        state, out = step(state, tuple(x[:, 0] for x in tokens))
        return out[:, None], state
    state, out = jax.lax.scan(step, state, tuple(jnp.swapaxes(x, 0, 1) for x in tokens))
    return jnp.swapaxes(out, 0, 1), state


def _step(
    state: Float[Array, "B N H H"],
    token: tuple[
        Float[Array, "B N H"],
        Float[Array, "B N H"],
        Float[Array, "B N H"],
        Bool[Array, "B"],
        Bool[Array, "B"],
    ],
    decay: Float[Array, "1 N 1 1"],
    scale: float,
) -> tuple[Float[Array, "B N H H"], Float[Array, "B N H"]]:
    q, k, v, real, starts = token
    real = real[:, None, None]
    q32, k32, v32 = (jnp.where(real, x, 0).astype(jnp.float32) for x in (q, k, v))
    kept = jnp.where(starts[:, None, None, None], 0.0, state) * jnp.where(
        real[..., None], decay, 1.0
    )
    state = kept + k32[..., :, None] * v32[..., None, :]
    out = scale * jnp.einsum("bnk,bnkv->bnv", q32, state, precision=jax.lax.Precision.HIGHEST)
    return state, out.astype(q.dtype)
