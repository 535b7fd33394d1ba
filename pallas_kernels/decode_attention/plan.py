"""How a decode attention kernel cuts the slots of a cache. Operands are those of `attention`, of one query per row."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from pallas_kernels import dispatch
from pallas_kernels.attention.operands import Operands


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one call is cut: each row's slots into `splits` runs of blocks of `block` slots."""

    scale: float
    batch: int
    capacity: int
    kv_heads: int
    group: int  # query heads of one key/value head
    width: int
    block: int
    splits: int
    interpret: bool

    @classmethod
    def of(cls, operands: Operands, scale: float, *, block: int, splits: int) -> Any:
        """The plan of a call with these arrays."""
        batch, capacity, kv_heads, width = operands.k.shape
        group = operands.q.shape[2] // kv_heads
        shape = batch, capacity, kv_heads, group, width
        return cls(scale, *shape, block, splits, dispatch.interprets())


def lengths(operands: Operands) -> Int[Array, "B"]:
    """How many slots of each row can be seen at all: none of those after is ever read."""
    assert operands.query_slots is not None
    count = jnp.clip(operands.query_slots[:, 0] + 1, 0, operands.k.shape[1]).astype(jnp.int32)
    if operands.segment_ids is None:
        return count
    return jnp.where(operands.segment_ids[:, 0] == 0, 0, count)


def spans(
    counts: Int[Array, "B"], block: int, splits: int
) -> tuple[Int[Array, "B I"], Int[Array, "B I"]]:
    """First block of each split, and the block after its last: as many each as the row's own
    length allows, so that no split idles because a row is short."""
    blocks = -(-counts[:, None] // block)
    share = -(-blocks // splits)
    split = jnp.arange(splits, dtype=jnp.int32)[None]
    return jnp.minimum(split * share, blocks), jnp.minimum((split + 1) * share, blocks)
