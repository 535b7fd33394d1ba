"""Softmax attention of one query per sequence over a long cache: a step of decoding."""

import functools
from typing import Literal

from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.decode_attention import chunked, gpu, parts, reference, sharded, tpu
from pallas_kernels.mesh import MeshAxes

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
    query_segments: Int[Array, "B"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
    batch: MeshAxes = None,
    heads: MeshAxes = None,
    length_axis: MeshAxes = None,
    implementation: str | None = None,
) -> Float[Array, "B N H"]:
    """`attention` of one query per row; query head j reads key/value head j // (N // K).

    o = sum_s p_s v_s ;  p = softmax over the visible s of (scale * q k_s), in float32

    A query sees slot s of its row iff s <= slots, and key_segments[s] == query_segments != 0. One
    that sees no slot gives zeros. What no row can see may cost nothing, but must be finite. For
    decoding: only "reference" has a gradient. A scale per query is the caller's: multiply q.

    Args:
      slots: the last visible slot of each row; negative sees none, S or more sees all.
      query_segments, key_segments: document of each query and slot, 0 is padding; give both or
        neither.
      batch, heads: axes of the mesh set by `jax.set_mesh` that cut B and both N and K.
      length_axis: axis of that mesh along which the slots are cut into equal parts. Each device
        attends to its own; B * N * (H + 2) float32 numbers are exchanged.
      implementation: "reference", "chunked" (both anywhere), "tpu" or "gpu" (A100 or newer; one
        kernel each); None runs the kernel of this device where it can, else "chunked".
    Returns:
      Outputs in q's dtype.
    Raises:
      UnsupportedError: the named implementation cannot run these arguments or this device, and why.
      ValueError: head counts or segments that do not belong together; a mesh that does not cut
        the slots.
    Source: arXiv 2205.14135 (online softmax); arXiv 2305.13245 (grouped heads); Flash-Decoding
    (Dao et al. 2023, splits of the cache).
    """
    _check(q, keys, query_segments, key_segments)
    visible = parts.Visible(slots, query_segments, key_segments)
    attend = functools.partial(_attend, scale=scale, implementation=implementation)
    part = sharded.sharded(
        attend, q, keys, values, visible, batch=batch, heads=heads, slots=length_axis
    )
    return parts.finish(part).astype(q.dtype)


def _attend(
    q: Float[Array, "B N H"],
    keys: Float[Array, "B S K H"],
    values: Float[Array, "B S K H"],
    visible: parts.Visible,
    *,
    scale: float,
    implementation: str | None,
) -> parts.Part:
    preferred = _preferred(q, keys, values)
    name = dispatch.choose("decode_attention", implementation, IMPLEMENTATIONS, preferred)
    return IMPLEMENTATIONS[name](q, keys, values, visible, scale=scale)


def _preferred(
    q: Float[Array, "B N H"], keys: Float[Array, "B S K H"], values: Float[Array, "B S K H"]
) -> str:
    where = dispatch.platform()
    if where == "gpu" and gpu.gpu_refusal(q, keys, values) is None:
        return "gpu"
    if where == "tpu" and tpu.tpu_refusal(q, keys, values) is None:
        return "tpu"
    return "chunked"


def _check(
    q: Float[Array, "B N H"],
    keys: Float[Array, "B S K H"],
    query_segments: Int[Array, "B"] | None,
    key_segments: Int[Array, "B S"] | None,
) -> None:
    if q.shape[1] % keys.shape[2]:
        raise ValueError(
            f"decode_attention has {q.shape[1]} query heads, not a multiple of its "
            f"{keys.shape[2]} key/value heads"
        )
    if (query_segments is None) != (key_segments is None):
        raise ValueError(
            "decode_attention has segments of queries or of keys alone; give both or neither"
        )
