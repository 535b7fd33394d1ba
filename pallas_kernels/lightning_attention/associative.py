"""Lightning attention in chunks whose states are joined in a tree: log2 of the chunks deep
instead of one by one."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.lightning_attention.chunked import in_chunks
from pallas_kernels.lightning_attention.reference import Operands


def associative(
    operands: Operands,
    *,
    scale: float,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N H H"]]:
    """An associative scan over chunk states; arguments and results as `lightning_attention`.

    A scan over tokens would hold one [H, H] state per token; over chunks it holds one per chunk.
    """
    return in_chunks(operands, scale=scale, prefix=tree_prefix)


def tree_prefix(
    across: Float[Array, "R M N"],
    added: Float[Array, "B M N H H"],
    state: Float[Array, "B N H H"],
) -> tuple[Float[Array, "B M N H H"], Float[Array, "B N H H"]]:
    """State before each chunk and after the last one; (a, U) then (b, W) is (a b, b U + W)."""
    across = jnp.broadcast_to(across, (across.shape[0], *added.shape[1:3]))[..., None, None]

    def join(earlier, later):
        return earlier[0] * later[0], later[0] * earlier[1] + later[1]

    factor, total = jax.lax.associative_scan(join, (across, added), axis=1)
    after = factor * state[:, None] + total
    return jnp.concatenate([state[:, None], after[:, :-1]], axis=1), after[:, -1]
