"""JAX's own attention kernels under this op's contract: cuDNN on GPU, splash attention on TPU."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import dispatch
from pallas_kernels.attention.operands import Operands

LANES = 128
BLOCKS = "block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"
SPLASH_BLOCK = 512  # larger ones exceed the VMEM that v5e gives by default


def cudnn(operands: Operands, *, scale: float) -> Float[Array, "B T N H"]:
    """`jax.nn.dot_product_attention` through cuDNN; refuses slots, segments, float32 and what is
    not a GPU."""
    dispatch.require("attention", "cudnn", cudnn_unsupported_reason(operands), "chunked")
    q, k, v = operands[:3]
    return jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=True, implementation="cudnn"
    )


def cudnn_unsupported_reason(operands: Operands) -> str | None:
    """Why cuDNN cannot run these arguments here; None where it can."""
    if dispatch.platform() != "gpu":
        return f"needs a GPU, and this runs on {dispatch.platform()}"
    if operands.query_slots is not None:
        return "has a causal mask only from slot 0, and query_slots were given"
    if operands.segment_ids is not None:
        return "takes segments only as a mask of all pairs, which grows with T * T"
    if operands.q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"needs bfloat16 or float16, and q is {operands.q.dtype}"
    if operands.q.shape[-1] % 8 or operands.q.shape[-1] > 128:
        return f"needs a head width that is a multiple of 8 up to 128, and it is {operands.q.shape[-1]}"
    return None


def splash(operands: Operands, *, scale: float) -> Float[Array, "B T N H"]:
    """JAX's Pallas TPU kernel with a causal mask and segments; refuses slots, float32, a mesh and
    what is not a TPU."""
    dispatch.require("attention", "splash", splash_unsupported_reason(operands), "chunked")
    q, k, v = operands[:3]
    # Only a TPU program needs Mosaic.
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    length = q.shape[1]
    block = max(n for n in range(LANES, SPLASH_BLOCK + 1, LANES) if length % n == 0)
    mask = kernels.MultiHeadMask([kernels.CausalMask((length, length))] * q.shape[2])
    sizes: dict[str, Any] = dict.fromkeys(BLOCKS, block)
    kernel = kernels.make_splash_mha(
        mask,
        head_shards=1,
        q_seq_shards=1,
        block_sizes=kernels.BlockSizes(**sizes),
        interpret=dispatch.interprets(),
    )
    heads_first = (jnp.swapaxes(x, 1, 2) for x in ((scale * q).astype(q.dtype), k, v))
    segment_ids, key_segment_ids = operands.with_key_segment_ids()[4:]
    if segment_ids is None or key_segment_ids is None:
        return jnp.swapaxes(jnp.asarray(jax.vmap(kernel)(*heads_first)), 1, 2)
    ids = kernels.SegmentIds(segment_ids, key_segment_ids)
    out = jnp.asarray(jax.vmap(kernel)(*heads_first, ids))
    return jnp.where((segment_ids != 0)[..., None, None], jnp.swapaxes(out, 1, 2), 0)


def splash_unsupported_reason(operands: Operands) -> str | None:
    """Why splash attention cannot run these arguments here; None where it can."""
    reason = dispatch.platform_unsupported_reason("tpu")
    if reason is not None:
        return reason
    if operands.query_slots is not None:
        return "has a causal mask only from slot 0, and query_slots were given"
    if operands.q.dtype != jnp.bfloat16:
        return f"multiplies in one bfloat16 pass, and q is {operands.q.dtype}"
    if operands.q.shape[1] % LANES:
        return f"needs a length that is a multiple of {LANES}, and it is {operands.q.shape[1]}"
    return None if dispatch.interprets() else dispatch.mesh_unsupported_reason()
