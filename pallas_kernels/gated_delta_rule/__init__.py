"""The gated delta rule: a state that decays, and that every key corrects toward its value."""

import functools
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.gated_delta_rule import chunked, reference, sharded
from pallas_kernels.gated_delta_rule.reference import Operands, Results
from pallas_kernels.mesh import UNSHARDED, MeshAxes

Implementation = Literal["recurrent", "chunked"]

IMPLEMENTATIONS = {"recurrent": reference.recurrent, "chunked": chunked.chunked}


def gated_delta_rule(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N W"],
    log_decay: Float[Array, "B T N *E"],
    beta: Float[Array, "B T N"],
    state: Float[Array, "B N H W"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    *,
    scale: float,
    mesh_axes: MeshAxes = UNSHARDED,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "B T N W"], Float[Array, "B N H W"]]:
    """Linear attention whose keys first take back what the decayed state holds for them.

    p_t = exp(log_decay_t) m_(t-1) ;  m_t = p_t + beta_t k_t (v_t - k_t p_t)^T ;  o_t = scale * q_t m_t

    Everything is computed in float32. Gradients flow to all arrays but the segment ids. Keys are taken as they are: of
    length 1, and with beta in (0, 2), none makes the state grow.

    Args:
      log_decay: natural log of the factor per step, at most 0: one per head (gated delta net), [B, T, N], or one per
        channel of its keys (Kimi delta attention), [B, T, N, H]. None is too strong: a factor may be 0.
      beta: how much of the error is corrected.
      state: recurrent state m [key width, value width] before the first token; None is zeros. It belongs to the first
        segment of each row.
      segment_ids: 0 is padding, which neither changes nor decays the state and whose output is zero. An id that differs
        from the last one that was not 0 starts a new segment from a zero state. None: one segment, no padding.
      scale: factor on the outputs, not on the state.
      mesh_axes: batch, sequence and heads. Along a sharded sequence devices exchange a state and a matrix [H, H] per
        head, whatever the length, and go over their tokens twice.
      implementation: "recurrent" or "chunked" (both anywhere); None runs "recurrent" for one token, else "chunked".
    Returns:
      Outputs in q's dtype, and the float32 state after the last token.
    Raises:
      UnsupportedError: there is no implementation of that name.
      ValueError: the decays are neither one per head nor one per channel.
    Source: arXiv 2412.06464 (gated delta net), 2406.06484 (chunks), 2510.26692 (decay per channel).
    """
    if log_decay.shape not in (q.shape[:3], q.shape):
        raise ValueError(
            f"log_decay is {log_decay.shape} for keys {k.shape}; give one number per head, {q.shape[:3]}, or per "
            "channel"
        )
    wide = jnp.promote_types(q.dtype, jnp.float32)
    if state is None:
        state = jnp.zeros((q.shape[0], q.shape[2], q.shape[3], v.shape[3]), wide)
    if log_decay.ndim == 3:
        log_decay = log_decay[..., None]
    attend = functools.partial(_attend, scale=scale, implementation=implementation)
    operands = Operands(q, k, v, log_decay, beta, state.astype(wide), segment_ids)
    return sharded.on_mesh(attend, mesh_axes)(operands)


def _attend(operands: Operands, *, scale: float, implementation: str | None) -> Results:
    preferred = "recurrent" if operands.q.shape[1] == 1 else "chunked"
    name = dispatch.choose("gated_delta_rule", implementation, IMPLEMENTATIONS, preferred)
    return IMPLEMENTATIONS[name](operands, scale=scale)
