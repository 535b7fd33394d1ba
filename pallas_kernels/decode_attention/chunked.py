"""Decode attention in blocks of slots with an online softmax: XLA, on any device.

Reads only the blocks up to the longest row's last visible slot, so the cost follows how full the
cache is, never its capacity. Products are written as sums, not as matrix products: with few queries
per key, XLA on CPU fuses them with reading the block, where a matrix product would copy it first.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pallas_kernels.attention import partial_softmax
from pallas_kernels.attention.operands import Operands, sees
from pallas_kernels.attention.partial_softmax import Part
from pallas_kernels.decode_attention.plan import lengths

BLOCK = 512


def chunked(operands: Operands, *, scale: float) -> Part:
    """One block of all rows after the other."""
    q, last, ids = operands.q[:, 0], operands.query_slots, operands.segment_ids
    assert last is not None
    capacity, kv_heads = operands.k.shape[1:3]
    rows = q.reshape(q.shape[0], kv_heads, -1, q.shape[2])
    size = min(BLOCK, capacity)

    def add(j: Int[Array, ""], part: Part) -> Part:
        # The last block starts early where the slots are not a multiple of the block; the one
        # before has seen those.
        start = jnp.minimum(j * size, capacity - size)
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=size, axis=1)
        # XLA on CPU widens bfloat16 before it cuts. Tied to this block, the widening cannot be moved
        # in front of the loop, where it would be done to the whole cache.
        *cache, tied = jax.lax.optimization_barrier((operands.k, operands.v, start))
        keys, values = (cut(x, tied).astype(jnp.float32)[:, :, :, None] for x in cache)
        slots = start + jnp.arange(size, dtype=jnp.int32)
        key_ids = jax.tree.map(lambda x: cut(x, start), operands.key_segment_ids)
        seen = sees(last, slots, ids, key_ids)[:, 0] & (slots >= j * size)[None]
        scores = scale * jnp.sum(rows.astype(jnp.float32)[:, None] * keys, axis=-1)  # [B C K G]
        scores = jnp.where(seen[..., None, None], scores, -jnp.inf)
        return partial_softmax.add(
            part, scores, 1, lambda weights: jnp.sum(weights[..., None] * values, axis=1)
        )

    blocks = (jnp.max(lengths(operands)) + size - 1) // size
    part = jax.lax.fori_loop(0, blocks, add, partial_softmax.nothing(rows.shape))
    return jax.tree.map(lambda x: x.reshape(*q.shape[:2], *x.shape[3:]), part)
