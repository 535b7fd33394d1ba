"""Lightning attention: linear attention whose state decays by a constant per head."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.lightning_attention import chunked, gpu, reference, sharded, tpu
from pallas_kernels.lightning_attention.reference import Operands, Results
from pallas_kernels.mesh import UNSHARDED, MeshAxes
from pallas_kernels.products import Precision

Implementation = Literal["recurrent", "associative", "chunked", "gpu", "tpu"]

TAKE_PRECISION = ("gpu", "tpu")  # the others compute in float32

IMPLEMENTATIONS = {
    "recurrent": reference.recurrent,
    "associative": chunked.associative,
    "chunked": chunked.chunked,
    "gpu": gpu.gpu,
    "tpu": tpu.tpu,
}
KERNELS = {"gpu": gpu.unsupported_reason, "tpu": tpu.unsupported_reason}


def lightning_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    log_decay: Float[Array, "N"],
    state: Float[Array, "B N H H"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    *,
    scale: float,
    mesh_axes: MeshAxes = UNSHARDED,
    implementation: Implementation | None = None,
    precision: Precision = "split",
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N H H"]]:
    """Linear attention with one constant decay per head.

    m_t = exp(log_decay) * m_(t-1) + k_t v_t^T ;  o_t = scale * q_t m_t

    Everything is computed in float32, to what `precision` says. Gradients flow to q, k, v and
    state; log_decay is a constant.

    Args:
      log_decay: natural log of the factor per step, at most 0; one per head.
      state: recurrent state m [key width, value width] before the first token, float32; None is
        zeros. It belongs to the first segment of each row.
      segment_ids: 0 is padding, which neither changes nor decays the state and whose output is zero.
        An id that differs from the last one that was not 0 starts a new segment from a zero state.
        None: one segment, no padding.
      scale: factor on the outputs, not on the state.
      mesh_axes: batch, sequence and heads. Along a sharded sequence devices exchange one state each,
        whatever the length; inside `neighbor_exchange` only with the next device.
      implementation: "recurrent", "associative", "chunked" (all anywhere), "gpu" (Hopper or newer) or
        "tpu" (fused kernels); None runs "recurrent" for one token, the kernels of this device where
        they can, else "chunked".
      precision: of the kernels "gpu" and "tpu" for bfloat16 inputs. "split" multiplies float32
        intermediates as the sum of two bfloat16 terms: relative error about 5e-6 before the outputs
        are rounded. "one_pass" may round them, for speed: 2e-3.
    Returns:
      Outputs in q's dtype, and the float32 state after the last token.
    Raises:
      UnsupportedError: there is no implementation of that name, or it cannot run these arguments or
        this device, and why.
    Source: arXiv 2401.04658 (chunks, decay per head); arXiv 2601.22156 (its use in HypeNet);
    arXiv 2502.07563 (one all-gather of states along the sequence).
    """
    attend = functools.partial(
        _attend, scale=scale, implementation=implementation, precision=precision
    )
    if state is None:
        state = jnp.zeros((q.shape[0], q.shape[2], q.shape[3], v.shape[3]), jnp.float32)
    log_decay = jax.lax.stop_gradient(log_decay).astype(jnp.float32)
    operands = Operands(q, k, v, log_decay, state.astype(jnp.float32), segment_ids)
    return sharded.on_mesh(attend, mesh_axes)(operands)


def _attend(
    operands: Operands, *, scale: float, implementation: str | None, precision: Precision
) -> Results:
    cheapest = "recurrent" if operands.q.shape[1] == 1 else None
    preferred = cheapest or dispatch.kernel_here(KERNELS, operands) or "chunked"
    name = dispatch.choose("lightning_attention", implementation, IMPLEMENTATIONS, preferred)
    rest = {"precision": precision} if name in TAKE_PRECISION else {}
    return IMPLEMENTATIONS[name](operands, scale=scale, **rest)
