"""Causal softmax attention over keys held in slots, with grouped key/value heads and packed segments."""

import functools
from typing import Literal

from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.attention import chunked, dense, from_jax, partial_softmax, reference, sharded
from pallas_kernels.attention.operands import Operands, check
from pallas_kernels.mesh import UNSHARDED, MeshAxes, num_shards

Implementation = Literal["reference", "dense", "chunked", "cudnn", "splash"]

IMPLEMENTATIONS = {
    "reference": reference.reference,
    "dense": dense.dense,
    "chunked": chunked.chunked,
    "cudnn": from_jax.cudnn,
    "splash": from_jax.splash,
}

# Above this many query-key pairs per row, holding all of them costs more than computing them twice.
DENSE_PAIRS = 512 * 512
DENSE_CACHE = 1024


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    scale: float,
    query_slots: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    key_segment_ids: Int[Array, "B S"] | None = None,
    mesh_axes: MeshAxes = UNSHARDED,
    implementation: Implementation | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention; query head j reads key/value head j // (N // K).

    o_t = sum_s p_ts v_s ;  p_ts = softmax over the visible s of (scale * q_t k_s), in float32

    Query t of a row sees key s iff s <= query_slots[t] and key_segment_ids[s] == segment_ids[t] != 0.
    A query that sees no key gives zeros. To scale each query differently, multiply q.

    Args:
      query_slots: the last slot each query sees; None is slot t for query t, which needs T == S.
      segment_ids: segment of each query; 0 is padding. None: one segment, no padding.
      key_segment_ids: segment of each slot. None: those of the queries, which needs T == S.
      mesh_axes: batch, sequence and heads. Without query_slots, sequence shards T and S alike: devices
        exchange heads for tokens, or gather keys and values where heads do not divide. With
        query_slots it shards S alone: each device attends to its own slots in the "chunked" form,
        which then has no gradient, and only outputs are exchanged.
      implementation: "reference", "dense", "chunked" (all anywhere), "cudnn" (GPU) or "splash"
        (TPU). None runs that of this device where it can; else "dense" up to 512 * 512 pairs of
        query and key, and "chunked" beyond or against a cache of more than 1,024 slots.
    Returns:
      Outputs in q's dtype.
    Raises:
      UnsupportedError: the named implementation cannot run these arguments or this device, and why.
      ValueError: head counts, lengths or segment ids that do not belong together.
    Source: arXiv 1706.03762; arXiv 2305.13245 (grouped heads); arXiv 2205.14135 (blocks, online
    softmax); arXiv 2309.14509 (heads for tokens, all to all).
    """
    queries, keys = q.shape[1], k.shape[1]
    if query_slots is None and queries != keys:
        raise ValueError(f"attention has {queries} queries and {keys} keys; give query_slots")
    lone_ids = (segment_ids is None) != (key_segment_ids is None)
    lone_ids = lone_ids and not (queries == keys and key_segment_ids is None)
    check("attention", q.shape[2], k.shape[2], lone_ids=lone_ids)
    attend = functools.partial(_attend, scale=scale, implementation=implementation)
    operands = Operands(q, k, v, query_slots, segment_ids, key_segment_ids)
    if query_slots is None:
        return sharded.over_tokens(attend, mesh_axes, operands)
    if num_shards(mesh_axes.sequence) == 1:
        return sharded.over_slots(attend, mesh_axes, operands)
    if implementation not in (None, "chunked"):
        why = "cannot attend to sharded slots"
        raise dispatch.unsupported("attention", implementation, why, "'chunked' or None")
    attend = functools.partial(chunked.chunked_part, scale=scale)
    part = sharded.over_slots(attend, mesh_axes, operands.with_key_segment_ids())
    return partial_softmax.finish(part).astype(q.dtype)


def _attend(
    operands: Operands, *, scale: float, implementation: str | None
) -> Float[Array, "B T N H"]:
    preferred = _preferred(operands)
    name = dispatch.choose("attention", implementation, IMPLEMENTATIONS, preferred)
    return IMPLEMENTATIONS[name](operands, scale=scale)


def _preferred(operands: Operands) -> str:
    platform = dispatch.platform()
    if platform == "gpu" and from_jax.cudnn_unsupported_reason(operands) is None:
        return "cudnn"
    if platform == "tpu" and from_jax.splash_unsupported_reason(operands) is None:
        return "splash"
    queries, keys = operands.q.shape[1], operands.k.shape[1]
    # A long cache is seldom full: the chunked form reads only the blocks that are in use.
    long_cache = operands.query_slots is not None and keys > DENSE_CACHE
    return "chunked" if long_cache or queries * keys > DENSE_PAIRS else "dense"
