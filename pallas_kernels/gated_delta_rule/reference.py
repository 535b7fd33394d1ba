"""The definition of the gated delta rule: one token after the other. Also the fastest form for a single token."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.lightning_attention import segments

State = Float[Array, "B N H W"]
Results = tuple[Float[Array, "B T N W"], State]

FORGOTTEN = -1e9  # its exponential is 0, and sums with it are finite

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Operands(NamedTuple):
    """Arguments of `gated_delta_rule` that are arrays, the state float32 (or float64); E is H or 1."""

    q: Float[Array, "B T N H"]
    k: Float[Array, "B T N H"]
    v: Float[Array, "B T N W"]
    log_decay: Float[Array, "B T N E"]
    beta: Float[Array, "B T N"]
    state: State
    segment_ids: Int[Array, "B T"] | None

    def without_segments(self) -> "Operands":
        """The same in numbers that the plain recurrence reads, of the state's dtype.

        Padding writes nothing, reads nothing and does not decay; a token that starts a segment forgets all before it.
        """
        dtype, segment_ids = self.state.dtype, self.segment_ids
        q, k, v, log_decay, beta = (x.astype(dtype) for x in self[:5])
        if segment_ids is not None:
            real = segments.is_real(segment_ids)[..., None]
            q, k, v, log_decay = (jnp.where(real[..., None], x, 0) for x in (q, k, v, log_decay))
            starts = segments.starts_segment(segment_ids)[..., None, None]
            log_decay = jnp.where(starts, FORGOTTEN, log_decay)
            beta = jnp.where(real, beta, 0)
        return Operands(q, k, v, log_decay, beta, self.state, None)


def recurrent(operands: Operands, *, scale: float) -> Results:
    """Scans the recurrence over tokens."""
    *tokens, state, _ = operands.without_segments()

    def step(state, token):
        q, k, v, log_decay, beta = token
        state = jnp.exp(log_decay)[..., None] * state
        error = v - _einsum("bnh,bnhw->bnw", k, state)
        state += (beta[..., None] * k)[..., None] * error[..., None, :]
        out = _einsum("bnh,bnhw->bnw", q, state)
        return state, (scale * out).astype(operands.q.dtype)

    if operands.q.shape[1] == 1:
        state, out = step(state, tuple(x[:, 0] for x in tokens))
        return out[:, None], state
    state, out = jax.lax.scan(step, state, tuple(jnp.swapaxes(x, 0, 1) for x in tokens))
    return jnp.swapaxes(out, 0, 1), state
