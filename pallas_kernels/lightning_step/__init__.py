"""One token of lightning attention from a state: norms of its heads, rotation, recurrence and output in one op."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels import dispatch
from pallas_kernels.lightning_step import gpu, reference
from pallas_kernels.lightning_step.reference import HeadNorms as HeadNorms
from pallas_kernels.lightning_step.reference import Operands, Results
from pallas_kernels.mesh import UNSHARDED, MeshAxes, on_each_device

Implementation = Literal["reference", "gpu"]

IMPLEMENTATIONS = {"reference": reference.reference, "gpu": gpu.gpu}
KERNELS = {"gpu": gpu.unsupported_reason}


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
    reset: Bool[Array, "B"] | None = None,
    mesh_axes: MeshAxes = UNSHARDED,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "B N H"], Float[Array, "B N H H"]]:
    """One token per row after a state; what is None is left out.

    q, k = rotated(norm(q)), rotated(norm(k)), as `norm_rotary`
    m = exp(log_decay) * m + k v^T ;  o = scale * q m, as `lightning_attention`

    Gradients flow to q, k, v, state and the norms' scales; log_decay and angles are constants.

    Args:
      q, k, v: bfloat16 or float32.
      log_decay: natural log of the factor per step, at most 0; one per head.
      state: recurrent state m [key width, value width] before the token. Donated, "gpu" updates it in place.
      scale: factor on the outputs, not on the state.
      norms: scales and eps of the RMS norms of every query and every key.
      angles: radians, float32, J = H / 2 frequencies of every row, the same for all heads.
      real: False is padding, which neither changes nor decays the state and whose output is zero.
      reset: True starts the row from a zero state, whatever its state is.
      mesh_axes: batch and heads; nothing is exchanged but the gradients of the norms' scales.
      implementation: "reference" (anywhere), or "gpu" (A100 or newer): one kernel that reads and writes the state
        once. None runs "gpu" where it can, else "reference".
    Returns:
      Outputs in q's dtype, and the float32 state after the token.
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
    log_decay, angles = jax.lax.stop_gradient((log_decay, angles))
    scales, eps = (None, 0.0) if norms is None else (norms[:2], norms.eps)
    state = state.astype(jnp.float32)
    operands = Operands(q, k, v, log_decay, state, scales, angles, real, reset)
    local = functools.partial(_step, scale=scale, eps=eps, implementation=implementation)
    heads, rows = mesh_axes.spec("B N"), mesh_axes.spec("B")
    decay, every = mesh_axes.spec("N"), mesh_axes.spec("H")
    specs = Operands(heads, heads, heads, decay, heads, every, rows, rows, rows)
    return on_each_device(local, (specs,), (heads, heads))(operands)


def _step(operands: Operands, *, scale: float, eps: float, implementation: str | None) -> Results:
    preferred = dispatch.kernel_here(KERNELS, operands) or "reference"
    name = dispatch.choose("lightning_step", implementation, IMPLEMENTATIONS, preferred)
    return IMPLEMENTATIONS[name](operands, scale, eps)
