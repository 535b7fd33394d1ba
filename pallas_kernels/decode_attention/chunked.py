"""Decode attention in blocks of slots with an online softmax: XLA, on any device.

Reads only the blocks up to the longest row's last visible slot, so the cost follows how full the
cache is, never its capacity. Products are written as sums, not as matrix products: with few queries
per key, XLA on CPU fuses them with reading the block, where a matrix product would copy it first.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.decode_attention.partial_softmax import LOWEST, Operands, Part, lengths, seen

BLOCK = 512


def chunked(
    operands: Operands,
    *,
    scale: float,
) -> Part:
    """One block of all rows after the other; arguments as `decode_attention`."""
    q, (capacity, kv_heads) = operands.q, operands.keys.shape[1:3]
    rows = q.reshape(q.shape[0], kv_heads, -1, q.shape[2])
    size = min(BLOCK, capacity)

    def add(j: Int[Array, ""], part: Part) -> Part:
        return _add(part, scale, rows, operands, j, size)

    nothing = jnp.zeros(rows.shape, jnp.float32)
    start = Part(jnp.full(rows.shape[:3], LOWEST), nothing[..., 0], nothing)
    blocks = (jnp.max(lengths(operands)) + size - 1) // size
    part = jax.lax.fori_loop(0, blocks, add, start)
    return jax.tree.map(lambda x: x.reshape(*q.shape[:2], *x.shape[3:]), part)


def _add(
    part: Part,
    scale: float,
    rows: Float[Array, "B K G H"],
    operands: Operands,
    j: Int[Array, ""],
    size: int,
) -> Part:
    """The part with block j of the slots added."""
    # The last block starts early where the slots are not a multiple of the block; the one before
    # has seen those.
    start = jnp.minimum(j * size, operands.keys.shape[1] - size)
    keys, values = _block(operands, start, size)
    fresh = start + jnp.arange(size, dtype=jnp.int32) >= j * size
    seen_here = seen(operands, start, size) & fresh[None]
    keys, values = (x[:, :, :, None] for x in (keys, values))
    scores = scale * jnp.sum(rows.astype(jnp.float32)[:, None] * keys, axis=-1)  # [B C K G]
    scores = jnp.where(seen_here[..., None, None], scores, -jnp.inf)
    top = jnp.maximum(part.top, jnp.max(scores, axis=1))
    weights, shrink = jnp.exp(scores - top[:, None]), jnp.exp(part.top - top)
    added = jnp.sum(weights[..., None] * values, axis=1)
    return Part(
        top,
        shrink * part.total + jnp.sum(weights, axis=1),
        shrink[..., None] * part.out + added,
    )


def _block(
    operands: Operands, start: Int[Array, ""], size: int
) -> tuple[Float[Array, "B C K H"], Float[Array, "B C K H"]]:
    """Keys and values of `size` slots in float32."""
    # XLA on CPU widens bfloat16 before it cuts. Tied to this block, the widening cannot be moved in
    # front of the loop, where it would be done to the whole cache.
    keys, values, start = jax.lax.optimization_barrier((operands.keys, operands.values, start))
    keys, values = (
        jax.lax.dynamic_slice_in_dim(x, start, size, axis=1).astype(jnp.float32)
        for x in (keys, values)
    )
    return keys, values
