"""The definition of lightning attention: one token after the other. Also the fastest form for a
single token."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.lightning_attention import segments

Tokens = Float[Array, "B T N H"]
State = Float[Array, "B N H H"]
Results = tuple[Tokens, State]


class Operands(NamedTuple):
    """Arguments of `lightning_attention` that are arrays, state and decay in float32."""

    q: Tokens
    k: Tokens
    v: Tokens
    log_decay: Float[Array, "N"]
    state: State
    segment_ids: Int[Array, "B T"] | None


def recurrent(operands: Operands, *, scale: float) -> Results:
    """Scans the recurrence over tokens."""
    q, k, v, log_decay, state, segment_ids = operands
    batch, length = q.shape[:2]
    if segment_ids is None:
        real, starts = jnp.ones((batch, length), bool), jnp.zeros((batch, length), bool)
    else:
        real, starts = segments.is_real(segment_ids), segments.starts_segment(segment_ids)
    decay = jnp.exp(log_decay)[None, :, None, None]

    def step(state, token):
        *qkv, real, starts = token
        real, starts = (x[:, None, None, None] for x in (real, starts))
        q32, k32, v32 = (jnp.where(real[..., 0], x, 0).astype(jnp.float32) for x in qkv)
        state = jnp.where(starts, 0.0, state) * jnp.where(real, decay, 1.0)
        state += k32[..., :, None] * v32[..., None, :]
        out = jnp.einsum("bnk,bnkv->bnv", q32, state, precision=jax.lax.Precision.HIGHEST)
        return state, (scale * out).astype(q.dtype)

    tokens = (q, k, v, real, starts)
    if length == 1:
        state, out = step(state, tuple(x[:, 0] for x in tokens))
        return out[:, None], state
    state, out = jax.lax.scan(step, state, tuple(jnp.swapaxes(x, 0, 1) for x in tokens))
    return jnp.swapaxes(out, 0, 1), state
