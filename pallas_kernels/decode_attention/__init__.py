"""Softmax attention of one query per sequence over a long cache: a step of decoding."""

import functools
from typing import Literal

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.attention import partial_softmax
from pallas_kernels.attention.operands import Operands, check
from pallas_kernels.attention.partial_softmax import Part
from pallas_kernels.attention.sharded import over_slots
from pallas_kernels.decode_attention import chunked, gpu, reference, tpu
from pallas_kernels.mesh import UNSHARDED, MeshAxes, num_shards

Implementation = Literal["reference", "chunked", "tpu", "gpu"]

IMPLEMENTATIONS = {
    "reference": reference.reference,
    "chunked": chunked.chunked,
    "tpu": tpu.tpu,
    "gpu": gpu.gpu,
}
KERNELS = {"gpu": gpu.unsupported_reason, "tpu": tpu.unsupported_reason}


def decode_attention(
    q: Float[Array, "B N H"],
    keys: Float[Array, "B S K H"],
    values: Float[Array, "B S K H"],
    slots: Int[Array, "B"],
    *,
    scale: float,
    segment_ids: Int[Array, "B"] | None = None,
    key_segment_ids: Int[Array, "B S"] | None = None,
    mesh_axes: MeshAxes = UNSHARDED,
    implementation: Implementation | None = None,
) -> Float[Array, "B N H"]:
    """`attention` of one query per row; query head j reads key/value head j // (N // K).

    o = sum_s p_s v_s ;  p = softmax over the visible s of (scale * q k_s), in float32

    A query sees slot s of its row iff s <= slots and key_segment_ids[s] == segment_ids != 0. A query
    that sees no slot gives zeros. Slots that no row sees may be skipped, but must be finite. Only
    "reference" has a gradient. To scale each query differently, multiply q.

    Args:
      slots: the last visible slot of each row; negative sees none, S or more sees all.
      segment_ids, key_segment_ids: segment of each query and slot, 0 is padding; give both or
        neither.
      mesh_axes: batch, heads, and sequence, which shards the slots: each device attends to its own,
        and B * N * (H + 2) float32 numbers are exchanged, never a key or value.
      implementation: "reference", "chunked" (both anywhere), "tpu" or "gpu" (A100 or newer; one
        kernel each); None runs the kernel of this device where it can, else "chunked".
    Returns:
      Outputs in q's dtype.
    Raises:
      UnsupportedError: the named implementation cannot run these arguments or this device, and why.
      ValueError: head counts or segment ids that do not belong together; slots that do not divide
        over the mesh.
    Source: arXiv 2205.14135 (online softmax); arXiv 2305.13245 (grouped heads); Flash-Decoding
    (Dao et al. 2023, splits of the cache).
    """
    lone_ids = (segment_ids is None) != (key_segment_ids is None)
    check("decode_attention", q.shape[1], keys.shape[2], lone_ids=lone_ids)
    capacity, count = keys.shape[1], num_shards(mesh_axes.sequence)
    if capacity % count:
        raise ValueError(
            f"a cache of {capacity} slots does not divide over mesh axes "
            f"{', '.join(mesh_axes.sequence)} of size {count}; "
            f"use {-(-capacity // count) * count} slots"
        )
    ids = None if segment_ids is None else segment_ids[:, None]
    operands = Operands(q[:, None], keys, values, slots[:, None], ids, key_segment_ids)
    attend = functools.partial(_attend, scale=scale, implementation=implementation)
    part = over_slots(attend, mesh_axes, operands)
    return partial_softmax.finish(part)[:, 0].astype(q.dtype)


def _attend(operands: Operands, *, scale: float, implementation: str | None) -> Part:
    preferred = dispatch.kernel_here(KERNELS, operands) or "chunked"
    name = dispatch.choose("decode_attention", implementation, IMPLEMENTATIONS, preferred)
    part = IMPLEMENTATIONS[name](operands, scale=scale)  # of [B, N] queries
    return jax.tree.map(lambda x: x[:, None], part)
