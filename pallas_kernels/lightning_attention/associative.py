"""Lightning attention in chunks whose memories are joined in a tree: log2 of the chunks deep
instead of one by one."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.lightning_attention.chunked import in_chunks


def associative(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    log_decay: Float[Array, "N"],
    state: Float[Array, "B N H H"],
    segment_ids: Int[Array, "B T"] | None,
    *,
    scale: float,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N H H"]]:
    """An associative scan over chunk memories; arguments and results as `lightning_attention`.

    A scan over tokens would hold one [H, H] memory per token; over chunks it holds one per chunk.
    """
    return in_chunks(q, k, v, log_decay, state, segment_ids, scale=scale, prefix=tree_prefix)


def tree_prefix(
    across: Float[Array, "R M N"],
    written: Float[Array, "B M N H H"],
    state: Float[Array, "B N H H"],
) -> tuple[Float[Array, "B M N H H"], Float[Array, "B N H H"]]:
    """Memory before each chunk and after the last one; (a, U) then (b, W) is (a b, b U + W)."""
    across = jnp.broadcast_to(across, (across.shape[0], *written.shape[1:3]))[..., None, None]

    def join(earlier, later):
        return earlier[0] * later[0], later[0] * earlier[1] + later[1]

    factor, memory = jax.lax.associative_scan(join, (across, written), axis=1)
    after = factor * state[:, None] + memory
    return jnp.concatenate([state[:, None], after[:, :-1]], axis=1), after[:, -1]
