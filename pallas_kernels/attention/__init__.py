"""Causal softmax attention over keys held in slots, with grouped key/value heads and documents."""

from typing import Literal

from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.attention import chunked, dense, from_jax, reference
from pallas_kernels.attention.masks import Visibility

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
    query_segments: Int[Array, "B T"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention; query head j reads key/value head j // (N // K).

    o_t = sum_s p_ts v_s ;  p_ts = softmax over the visible s of (scale * q_t k_s), in float32

    Query t of a row sees key s iff s <= query_slots[t], and key_segments[s] == query_segments[t]
    != 0. A query that sees
    no key gives zeros. A scale per query is the caller's: multiply q.

    Args:
      query_slots: the last slot each query sees; None is slot t for query t, which needs T == S.
      query_segments, key_segments: document of each query and slot, 0 is padding; give both or
        neither.
      implementation: "reference", "dense", "chunked" (all anywhere), "cudnn" (GPU) or "splash"
        (TPU). None runs that of this device where it can; else "dense" up to 512 * 512 pairs of
        query and key, and "chunked" beyond or against a cache of more than 1,024 slots.
    Returns:
      Outputs in q's dtype.
    Raises:
      UnsupportedError: the named implementation cannot run these arguments or this device, and why.
      ValueError: head counts, lengths or segments that do not belong together.
    Source: arXiv 1706.03762; arXiv 2305.13245 (grouped heads); arXiv 2205.14135 (blocks, online
    softmax).
    """
    _check(q, k, query_slots, query_segments, key_segments)
    visibility = Visibility(query_slots, query_segments, key_segments)
    name = dispatch.choose(
        "attention", implementation, IMPLEMENTATIONS, _preferred(q, k, visibility)
    )
    return IMPLEMENTATIONS[name](q, k, v, visibility, scale=scale)


def _preferred(
    q: Float[Array, "B T N H"], k: Float[Array, "B S K H"], visibility: Visibility
) -> str:
    where = dispatch.platform()
    if where == "gpu" and from_jax.cudnn_refusal(q, k, visibility) is None:
        return "cudnn"
    if where == "tpu" and from_jax.splash_refusal(q, k, visibility) is None:
        return "splash"
    # A long cache is seldom full: the chunked form reads only the blocks that are in use.
    if visibility.query_slots is not None and k.shape[1] > DENSE_CACHE:
        return "chunked"
    return "dense" if q.shape[1] * k.shape[1] <= DENSE_PAIRS else "chunked"


def _check(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    query_slots: Int[Array, "B T"] | None,
    query_segments: Int[Array, "B T"] | None,
    key_segments: Int[Array, "B S"] | None,
) -> None:
    if q.shape[2] % k.shape[2]:
        raise ValueError(
            f"attention has {q.shape[2]} query heads, not a multiple of its {k.shape[2]} "
            "key/value heads"
        )
    if query_slots is None and q.shape[1] != k.shape[1]:
        raise ValueError(
            f"attention has {q.shape[1]} queries and {k.shape[1]} keys; give query_slots"
        )
    if (query_segments is None) != (key_segments is None):
        raise ValueError("attention has segments of queries or of keys alone; give both or neither")
