"""Decode attention on a mesh whose axes cut the batch, the heads and the slots of the cache: no key or value moves.

Each device attends to its own slots; only (max, sum, outputs) of the queries are exchanged, which
is B * N * (H + 2) float32 numbers whatever the length.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from pallas_kernels.decode_attention.parts import Part, Visible, join_over
from pallas_kernels.mesh import MeshAxes, on_each_device, parts

Attend = Callable[..., Part]


def sharded(
    attend: Attend,
    q: Float[Array, "B N H"],
    keys: Float[Array, "B S K H"],
    values: Float[Array, "B S K H"],
    visible: Visible,
    *,
    batch: MeshAxes,
    heads: MeshAxes,
    slots: MeshAxes,
) -> Part:
    """The part of all slots, from `attend(q, keys, values, visible)` of each device's own.

    Axes of the mesh set by `jax.set_mesh` that cut nothing stay with the compiler.
    """
    _check(keys.shape[1], slots)
    queries: Any = PartitionSpec(batch, heads)
    cache: Any = PartitionSpec(batch, slots, heads)
    rows: Any = PartitionSpec(batch)
    marks: Any = PartitionSpec(batch, slots)
    local = attend if parts(slots) == 1 else functools.partial(_own_slots, attend, slots)
    specs = queries, cache, cache, Visible(rows, rows, marks)
    return on_each_device(local, specs, queries)(q, keys, values, visible)


def _own_slots(
    attend: Attend,
    axes: MeshAxes,
    q: Float[Array, "B N H"],
    keys: Float[Array, "B S K H"],
    values: Float[Array, "B S K H"],
    visible: Visible,
) -> Part:
    first = jax.lax.axis_index(axes) * keys.shape[1]
    part = attend(q, keys, values, visible._replace(slots=visible.slots - first))
    return join_over(part, axes)


def _check(capacity: int, axes: MeshAxes) -> None:
    count = parts(axes)
    if capacity % count:
        raise ValueError(
            f"a cache of {capacity} slots cannot be cut into {count} equal parts along {axes!r}; "
            f"use {-(-capacity // count) * count} slots"
        )
