"""Attention on a mesh whose axes cut the batch, the sequence or the slots of a cache, and the heads.

Rows and heads do not speak to each other. Along a cut sequence a device changes its own tokens of all its heads for
all tokens of some of its heads, attends, and changes back: every device does the same work, and runs the very kernel
of an uncut sequence. Where the heads do not divide over the sequence's devices, keys and values are gathered instead,
and queries change places so that every device attends to as many keys as the others.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from pallas_kernels.attention import attention
from pallas_kernels.attention.chunked import with_log_totals
from pallas_kernels.attention.masks import Visibility
from pallas_kernels.mesh import MeshAxes, on_each_device, parts

Attend = Callable[..., Float[Array, "B T N H"]]


def sharded(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"] | None = None,
    *,
    scale: float,
    batch: MeshAxes,
    sequence: MeshAxes,
    heads: MeshAxes,
    implementation: str | None = None,
) -> Float[Array, "B T N H"]:
    """`attention` on the mesh of `jax.set_mesh`, slot t for query t.

    Args:
      segment_ids: document of each token, 0 is padding; None: one document.
      batch, sequence, heads: the mesh axes that cut B, T and both N and K, which they must divide.
    Raises:
      UnsupportedError: as `attention`.
    Source: arXiv 2309.14509 (heads for tokens, all to all).
    """
    tokens, rows = PartitionSpec(batch, sequence, heads), PartitionSpec(batch, sequence)
    attend = functools.partial(attention, scale=scale, implementation=implementation)
    local = functools.partial(_own_tokens, attend, sequence)
    return on_each_device(local, (tokens, tokens, tokens, rows), tokens)(q, k, v, segment_ids)


def over_slots(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B S K H"],
    values: Float[Array, "B S K H"],
    visibility: Visibility,
    *,
    scale: float,
    batch: MeshAxes,
    sequence: MeshAxes,
    heads: MeshAxes,
) -> Float[Array, "B T N H"]:
    """`attention` to a cache on the mesh of `jax.set_mesh`; for reading prompts: has no gradient where slots are cut.

    Every device attends to its own slots; outputs and one number per query and head are exchanged, never a key.

    Args:
      batch, sequence, heads: the mesh axes that cut B, S and both N and K, which they must divide.
    """
    queries, cache = PartitionSpec(batch, None, heads), PartitionSpec(batch, sequence, heads)
    rows: Any = PartitionSpec(batch)
    marks: Any = PartitionSpec(batch, sequence)
    local = functools.partial(_own_slots, sequence, scale)
    specs = queries, cache, cache, Visibility(rows, rows, marks)
    return on_each_device(local, specs, queries)(q, keys, values, visibility)


def _own_slots(
    axes: MeshAxes,
    scale: float,
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B S K H"],
    values: Float[Array, "B S K H"],
    visibility: Visibility,
) -> Float[Array, "B T N H"]:
    if parts(axes) == 1:
        return attention(q, keys, values, scale=scale, **visibility._asdict())
    assert visibility.query_slots is not None
    first = jax.lax.axis_index(axes) * keys.shape[1]
    visibility = visibility._replace(query_slots=visibility.query_slots - first)
    out, log_total = with_log_totals(q, keys, values, visibility, scale=scale)
    weight = jnp.exp(log_total - jax.lax.pmax(log_total, axes))
    total, out = jax.lax.psum((weight, weight * out.astype(jnp.float32)), axes)
    return (out / total).astype(q.dtype)


def _own_tokens(
    attend: Attend,
    axes: MeshAxes,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"] | None,
) -> Float[Array, "B T N H"]:
    """Outputs of this device's tokens."""
    if parts(axes) == 1:
        return attend(q, k, v, query_segments=segments, key_segments=segments)
    if q.shape[2] % parts(axes) == 0:
        return _some_heads(attend, axes, q, k, v, segments)
    k, v, segments = jax.tree.map(functools.partial(_gathered, axes), (k, v, segments))
    return _in_turns(attend, axes, q, k, v, segments)


def _in_turns(
    attend: Attend,
    axes: MeshAxes,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    segments: Int[Array, "B S"] | None,
) -> Float[Array, "B T N H"]:
    """Outputs of this device's tokens, given all keys; computed where it is their turn.

    Of n devices, number i holds the chunks 2i and 2i + 1 of the sequence and computes the chunks i and 2n - 1 - i: all
    pairs of chunks see equally many keys.
    """
    devices, here, length = parts(axes), jax.lax.axis_index(axes), q.shape[1]
    middle = -(-length // 2)

    def chunk(odd: int, own: Float[Array, "B Q N H"]) -> Float[Array, "B Q N H"]:
        held = range(odd, 2 * devices, 2)
        turns = [(i, min(number, 2 * devices - 1 - number)) for i, number in enumerate(held)]
        mine = jnp.where(here % 2 == odd, here, 2 * devices - 1 - here)
        first, size = mine // 2 * length + odd * middle, own.shape[1]
        slots = jnp.broadcast_to(first + jnp.arange(size, dtype=jnp.int32)[None], own.shape[:2])
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=size, axis=1)
        marks = jax.tree.map(lambda row: cut(row, first), segments)
        theirs = jax.lax.ppermute(own, axes, turns)
        out = attend(theirs, k, v, query_slots=slots, query_segments=marks, key_segments=segments)
        return jax.lax.ppermute(out, axes, [(there, i) for i, there in turns])

    halves = enumerate(jnp.split(q, [middle], axis=1))
    return jnp.concatenate([chunk(odd, own) for odd, own in halves if own.size], axis=1)


def _some_heads(
    attend: Attend,
    axes: MeshAxes,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"] | None,
) -> Float[Array, "B T N H"]:
    """All tokens of the heads that are this device's, computed here and given back to their devices."""
    # Key/value heads that are too few to deal out are repeated in place, as often as it takes.
    copies = parts(axes) // math.gcd(parts(axes), k.shape[2])
    exchange = functools.partial(jax.lax.all_to_all, axis_name=axes, tiled=True)
    q, k, v = (
        exchange(x, split_axis=2, concat_axis=1)
        for x in (q, jnp.repeat(k, copies, axis=2), jnp.repeat(v, copies, axis=2))
    )
    segments = jax.tree.map(functools.partial(_gathered, axes), segments)
    out = attend(q, k, v, query_segments=segments, key_segments=segments)
    return exchange(out, split_axis=1, concat_axis=2)


def _gathered(axes: MeshAxes, x: Shaped[Array, "B T ..."]) -> Shaped[Array, "B S ..."]:
    return jax.lax.all_gather(x, axes, axis=1, tiled=True)
