"""Products of the tokens of a chunk with each other, each decayed by the tokens between the two.

The logarithm of a decay is a sum of numbers that are at most 0 over just the tokens between, a factor a product of
numbers that are at most 1: nothing overflows, and no small difference is taken of large sums.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.products import product


class Pairs(NamedTuple):
    """Of the tokens of every chunk, decay(j, i) over the tokens after j up to and with i.

    Attributes:
      keys: sum_h k_ih k_jh decay_h(j, i) for j < i; what stands elsewhere means nothing.
      queries: sum_h q_ih k_jh decay_h(j, i) for j <= i, else 0.
      entering: decay from before the chunk up to and with token i.
      leaving: decay of the tokens after j.
    """

    keys: Float[Array, "G C C"]
    queries: Float[Array, "G C C"]
    entering: Float[Array, "G C E"]
    leaving: Float[Array, "G C E"]


def pairs(
    q: Float[Array, "G C H"], k: Float[Array, "G C H"], log_decay: Float[Array, "G C E"]
) -> Pairs:
    """Of G chunks; C is a power of 2, and E is 1 or H."""
    up_to = jnp.tri(k.shape[1])  # 1 where j <= i
    after = jnp.tri(k.shape[1], k=-1)
    entering = jnp.exp(product("il,gle->gie", up_to, log_decay))
    leaving = jnp.exp(product("lj,gle->gje", after, log_decay))
    products = _by_head if log_decay.shape[2] == 1 else _by_channel
    return Pairs(*products(q, k, log_decay), entering, leaving)


def _by_head(
    q: Float[Array, "G C H"], k: Float[Array, "G C H"], log_decay: Float[Array, "G C 1"]
) -> tuple[Float[Array, "G C C"], Float[Array, "G C C"]]:
    """Products of whole heads, each times one decay."""
    up_to, after = jnp.tri(k.shape[1]), jnp.tri(k.shape[1], k=-1)
    steps = after[None] * log_decay  # [G l j]: of l, if it comes after j
    decay = up_to[None] * jnp.exp(product("il,glj->gij", up_to, steps))
    keys, queries = (product("gih,gjh->gij", x, k) * decay for x in (k, q))
    return keys, queries


def _by_channel(
    q: Float[Array, "G C H"], k: Float[Array, "G C H"], log_decay: Float[Array, "G C H"]
) -> tuple[Float[Array, "G C C"], Float[Array, "G C C"]]:
    """Blocks of 1, 2, 4 .. tokens are joined in pairs.

    Between tokens of the two lies the border: the later one is decayed from there, the earlier one up to there.
    """
    # Blocks of one token, [blocks, tokens, channels], first those of the first chunk.
    keys, queries, across = (x.reshape(-1, 1, x.shape[2]) for x in (k, q, jnp.exp(log_decay)))
    entering, leaving = across, jnp.ones_like(across)
    of_keys, of_queries = (jnp.sum(x * keys, -1, keepdims=True) for x in (keys, queries))
    for _ in range(k.shape[1].bit_length() - 1):
        (entered, entering), (leaving, left) = _neighbors(entering), _neighbors(leaving)
        (first_keys, later_keys), (_, later_queries) = _neighbors(keys), _neighbors(queries)
        early = first_keys * leaving
        of_keys, of_queries = (
            _corner(old, product("pih,pjh->pij", later * entering, early))
            for old, later in ((of_keys, later_keys), (of_queries, later_queries))
        )
        first, second = _neighbors(across)
        entering = jnp.concatenate([entered, first * entering], axis=1)
        leaving = jnp.concatenate([second * leaving, left], axis=1)
        across = first * second
        keys, queries = (x.reshape(-1, 2 * x.shape[1], x.shape[2]) for x in (keys, queries))
    return of_keys, of_queries


def _neighbors(
    blocks: Float[Array, "_ C H"],
) -> tuple[Float[Array, "P C H"], Float[Array, "P C H"]]:
    """Every first and every second block. Split, whose gradient is one array; that of indexing is two, padded."""
    pairs = blocks.reshape(-1, 2, *blocks.shape[1:])
    first, second = jax.lax.split(pairs, (1, 1), axis=1)
    return jax.lax.squeeze(first, (1,)), jax.lax.squeeze(second, (1,))


def _corner(blocks: Float[Array, "_ C C"], across: Float[Array, "P C C"]) -> Float[Array, "P _ _"]:
    """[[first, 0], [across, second]] of every two blocks."""
    first, second = _neighbors(blocks)
    above = jnp.concatenate([first, jnp.zeros_like(across)], axis=2)
    return jnp.concatenate([above, jnp.concatenate([across, second], axis=2)], axis=1)


@jax.custom_vjp
def inverse(lower: Float[Array, "... C C"]) -> Float[Array, "... C C"]:
    """(1 + lower)^-1, row by row, of matrices that are 0 on and above the diagonal.

    A power series would end as well, but grow first: with keys alike its terms reach 2^C.
    """
    size, axis = lower.shape[-1], lower.ndim - 2

    def step(i, rows):
        known = product("...ij,...jk->...ik", _row(lower, i, axis), rows)
        return jax.lax.dynamic_update_slice_in_dim(rows, _row(rows, i, axis) - known, i, axis)

    identity = jnp.broadcast_to(jnp.eye(size, dtype=lower.dtype), lower.shape)
    return jax.lax.fori_loop(1, size, step, identity)


def _row(matrices: Float[Array, "... C C"], i: jax.typing.ArrayLike, axis: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(matrices, i, axis)


def _inverse_forward(lower):
    result = inverse(lower)
    return result, result


def _inverse_backward(result, cotangent):
    left = product("...ji,...jk->...ik", result, cotangent)
    return (-product("...ik,...lk->...il", left, result),)


inverse.defvjp(_inverse_forward, _inverse_backward)
