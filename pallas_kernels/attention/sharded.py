"""Attention on a mesh that shards the batch, the heads, and the tokens or the slots of a cache.

Rows and heads are independent. Along a sharded sequence a device exchanges its own tokens of all heads for all tokens
of some heads, attends, and exchanges back: every device does the same work, in the same kernel as for an unsharded
sequence. Where the heads do not divide over the sequence's devices, keys and values are gathered instead, and queries
are exchanged so that every device attends to as many keys as the others.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.attention.operands import Operands
from pallas_kernels.attention.partial_softmax import Part, join_over
from pallas_kernels.mesh import AxisNames, MeshAxes, num_shards, on_each_device

Attend = Callable[[Operands], Float[Array, "B T N H"]]


def over_tokens(attend: Attend, axes: MeshAxes, operands: Operands) -> Float[Array, "B T N H"]:
    """Query t sees keys up to t."""
    tokens, rows = axes.spec("B T N"), axes.spec("B T")
    local = functools.partial(_own_tokens, attend, axes.sequence)
    specs = Operands(tokens, tokens, tokens, rows, rows, rows)
    return on_each_device(local, (specs,), tokens)(operands)


def over_slots(attend: Callable[[Operands], Any], axes: MeshAxes, operands: Operands) -> Any:
    """Query t sees slots up to query_slots[t]; where they are sharded, `attend` gives a `Part`."""
    queries, cache = axes.spec("B _ N"), axes.spec("B S K")
    specs = Operands(queries, cache, cache, axes.spec("B"), axes.spec("B"), axes.spec("B S"))
    local = attend
    if num_shards(axes.sequence) > 1:
        local = functools.partial(_own_slots, attend, axes.sequence)
    return on_each_device(local, (specs,), queries)(operands)


def _own_slots(attend: Callable[[Operands], Part], axes: AxisNames, operands: Operands) -> Part:
    """Of all slots, from this device's own: no key or value moves, only [B, T, N, H + 2] float32 numbers do."""
    assert operands.query_slots is not None
    first = jax.lax.axis_index(axes) * operands.k.shape[1]
    return join_over(attend(operands._replace(query_slots=operands.query_slots - first)), axes)


def _own_tokens(attend: Attend, axes: AxisNames, operands: Operands) -> Float[Array, "B T N H"]:
    """Outputs of this device's tokens."""
    if num_shards(axes) == 1:
        return attend(operands)
    gathered = functools.partial(jax.lax.all_gather, axis_name=axes, axis=1, tiled=True)
    q, k, v, *ids = operands
    ids = jax.tree.map(gathered, ids)
    if q.shape[2] % num_shards(axes) == 0:
        return _heads_for_tokens(attend, axes, Operands(q, k, v, *ids))
    return _balanced_queries(attend, axes, Operands(q, gathered(k), gathered(v), *ids))


def _balanced_queries(
    attend: Attend, axes: AxisNames, operands: Operands
) -> Float[Array, "B T N H"]:
    """Outputs of this device's tokens, given all keys, with the work shared out evenly.

    Of n devices, number i holds the chunks 2i and 2i + 1 of the sequence and computes the chunks i and 2n - 1 - i: all
    pairs of chunks see equally many keys.
    """
    q, k, v, _, segment_ids, key_segment_ids = operands.with_key_segment_ids()
    devices, device, length = num_shards(axes), jax.lax.axis_index(axes), q.shape[1]
    middle = -(-length // 2)

    def chunk(odd: int, own: Float[Array, "B Q N H"]) -> Float[Array, "B Q N H"]:
        held = range(odd, 2 * devices, 2)
        route = [(i, min(number, 2 * devices - 1 - number)) for i, number in enumerate(held)]
        number = jnp.where(device % 2 == odd, device, 2 * devices - 1 - device)
        first, size = number // 2 * length + odd * middle, own.shape[1]
        slots = jnp.broadcast_to(first + jnp.arange(size, dtype=jnp.int32)[None], own.shape[:2])
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=size, axis=1)
        ids = jax.tree.map(lambda row: cut(row, first), segment_ids)
        received = jax.lax.ppermute(own, axes, route)
        out = attend(Operands(received, k, v, slots, ids, key_segment_ids))
        return jax.lax.ppermute(out, axes, [(there, i) for i, there in route])

    halves = enumerate(jnp.split(q, [middle], axis=1))
    return jnp.concatenate([chunk(odd, own) for odd, own in halves if own.size], axis=1)


def _heads_for_tokens(
    attend: Attend, axes: AxisNames, operands: Operands
) -> Float[Array, "B T N H"]:
    """This device attends to all tokens of its share of the heads, and sends the outputs back."""
    q, k, v = operands[:3]
    # Key/value heads that are too few for the devices are repeated as often as it takes.
    copies = num_shards(axes) // math.gcd(num_shards(axes), k.shape[2])
    exchange = functools.partial(jax.lax.all_to_all, axis_name=axes, tiled=True)
    q, k, v = (
        exchange(x, split_axis=2, concat_axis=1)
        for x in (q, jnp.repeat(k, copies, axis=2), jnp.repeat(v, copies, axis=2))
    )
    out = attend(operands._replace(q=q, k=k, v=v))
    return exchange(out, split_axis=1, concat_axis=2)
