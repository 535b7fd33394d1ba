"""The definition of a step: norms, rotation and recurrence one after the other."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.lightning_attention import reference as sequence
from pallas_kernels.norm_rotary.reference import rms_norm, rotate

Token = Float[Array, "B N H"]
State = Float[Array, "B N H H"]
Results = tuple[Token, State]


class HeadNorms(NamedTuple):
    """RMS norms over the width of every query and of every key."""

    q_scale: Float[Array, "H"]
    k_scale: Float[Array, "H"]
    eps: float


class Operands(NamedTuple):
    """Arguments of `lightning_step` that are arrays; the same meaning, None included."""

    q: Token
    k: Token
    v: Token
    log_decay: Float[Array, "N"]
    state: State
    scales: tuple[Float[Array, "H"], Float[Array, "H"]] | None  # of the norms
    angles: Float[Array, "B J"] | None
    real: Bool[Array, "B"] | None
    reset: Bool[Array, "B"] | None


def reference(operands: Operands, scale: float, eps: float) -> Results:
    """Rounds queries and keys to their dtype after the norm, after its scale and after the rotation."""
    q, k, v, log_decay, state, scales, angles, real, reset = operands
    q_scale, k_scale = scales or (None, None)
    q, k = _placed(q, q_scale, angles, eps), _placed(k, k_scale, angles, eps)
    if reset is not None:
        state = jnp.where(reset[:, None, None, None], 0.0, state)
    segment_ids = None if real is None else real.astype(jnp.int32)[:, None]
    one_token = sequence.Operands(q, k, v[:, None], log_decay, state, segment_ids)
    out, state = sequence.recurrent(one_token, scale=scale)
    return out[:, 0], state


def _placed(
    x: Token,
    scale: Float[Array, "H"] | None,
    angles: Float[Array, "B J"] | None,
    eps: float,
) -> Float[Array, "B 1 N H"]:
    y = x[:, None] if scale is None else rms_norm(x[:, None], scale, eps)
    return y if angles is None else rotate(y, angles[:, None])
