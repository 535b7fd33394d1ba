"""One token of lightning attention from a state: norms of its heads, rotation, memory and readout in one op."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels import dispatch
from pallas_kernels.lightning_step import gpu, reference
from pallas_kernels.lightning_step.reference import HeadNorms as HeadNorms
from pallas_kernels.lightning_step.reference import Operands

Implementation = Literal["reference", "gpu"]

IMPLEMENTATIONS = {"reference": reference.reference, "gpu": gpu.gpu}


def lightning_step(
    q: Float[Array, "B N H"],
    k: Float[Array, "B N H"],
    v: Float[Array, "B N H"],
    log_decay: Float[Array, "N"],
    state: Float[Array, "B N H H"],
    *,
    scale: float,
    norms: HeadNorms | None = None,
    angles: Float[Array, "B J"] | None = None,
    real: Bool[Array, "B"] | None = None,
    fresh: Bool[Array, "B"] | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B N H"], Float[Array, "B N H H"]]:
    """One token per row after a state; what is None is left out.

    q, k = rotated(norm(q)), rotated(norm(k)), as `norm_rotary`
    memory = exp(log_decay) * memory + k v^T ;  o = scale * q memory, as `lightning_attention`

    Gradients flow to q, k, v, state and the norms' scales; log_decay and angles are constants.

    Args:
      q, k, v: bfloat16 or float32.
      log_decay: natural log of the factor per step, at most 0; one per head.
      state: memory [key width, value width] before the token. It may be donated: "gpu" changes it in place.
      scale: factor on the outputs, not on the memory.
      norms: scales and eps of the RMS norms of every query and every key.
      angles: radians, float32, J = H / 2 frequencies of every row, the same for all heads.
      real: False is padding, which neither writes nor decays and whose output is zero.
      fresh: True forgets the row's memory first, whatever it is.
      implementation: "reference" (anywhere), or "gpu" (A100 or newer): one kernel that reads and writes the memory
        once. None runs "gpu" where it can, else "reference".
    Returns:
      Outputs in q's dtype, and the float32 memory after the token.
    Raises:
      UnsupportedError: the named implementation cannot run these arguments or this device, and why.
      ValueError: the angles are not half as many as the width.
    Source: arXiv 2401.04658 (lightning attention); arXiv 2601.22156 (norms and rotary positions).
    """
    if angles is not None and 2 * angles.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"lightning_step has {angles.shape[-1]} angles for heads of {q.shape[-1]}; give half"
            " the width"
        )
    name = dispatch.choose("lightning_step", implementation, IMPLEMENTATIONS, _preferred(q, k, v))
    log_decay, angles = jax.lax.stop_gradient((log_decay, angles))
    scales, eps = (None, 0.0) if norms is None else (norms[:2], norms.eps)
    state = state.astype(jnp.float32)
    operands = Operands(q, k, v, log_decay, state, scales, angles, real, fresh)
    return IMPLEMENTATIONS[name](operands, scale, eps)


def _preferred(q: Float[Array, "B N H"], k: Float[Array, "B N H"], v: Float[Array, "B N H"]) -> str:
    if dispatch.platform() == "gpu" and gpu.gpu_refusal(q, k, v) is None:
        return "gpu"
    return "reference"
