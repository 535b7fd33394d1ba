"""Softmax attention of one query per sequence over a long cache: a step of decoding."""

import functools
from typing import Literal

from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.decode_attention import chunked, gpu, partial_softmax, reference, sharded, tpu
from pallas_kernels.decode_attention.partial_softmax import Operands, Part
from pallas_kernels.mesh import UNSHARDED, MeshAxes

Implementation = Literal["reference", "chunked", "tpu", "gpu"]

IMPLEMENTATIONS = {
    "reference": reference.reference,
    "chunked": chunked.chunked,
    "tpu": tpu.tpu,
    "gpu": gpu.gpu,
}


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
    _check(q, keys, segment_ids, key_segment_ids)
    operands = Operands(q, keys, values, slots, segment_ids, key_segment_ids)
    attend = functools.partial(_attend, scale=scale, implementation=implementation)
    part = sharded.over_slots(attend, mesh_axes, operands)
    return partial_softmax.finish(part).astype(q.dtype)


def _attend(
    operands: Operands,
    *,
    scale: float,
    implementation: str | None,
) -> Part:
    preferred = _preferred(operands)
    name = dispatch.choose("decode_attention", implementation, IMPLEMENTATIONS, preferred)
    return IMPLEMENTATIONS[name](operands, scale=scale)


def _preferred(operands: Operands) -> str:
    platform = dispatch.platform()
    if platform == "gpu" and gpu.unsupported_reason(operands) is None:
        return "gpu"
    if platform == "tpu" and tpu.unsupported_reason(operands) is None:
        return "tpu"
    return "chunked"


def _check(
    q: Float[Array, "B N H"],
    keys: Float[Array, "B S K H"],
    segment_ids: Int[Array, "B"] | None,
    key_segment_ids: Int[Array, "B S"] | None,
) -> None:
    if q.shape[1] % keys.shape[2]:
        raise ValueError(
            f"decode_attention has {q.shape[1]} query heads, not a multiple of its "
            f"{keys.shape[2]} key/value heads"
        )
    if (segment_ids is None) != (key_segment_ids is None):
        raise ValueError(
            "decode_attention has segment ids of queries or of keys alone; give both or neither"
        )
