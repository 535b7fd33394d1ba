"""Decode attention on a mesh that shards the batch, the heads and the slots of the cache: no key or value moves.

Each device attends to its own slots; only (max, sum, outputs) of the queries are exchanged, which
is B * N * (H + 2) float32 numbers whatever the length.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from pallas_kernels.decode_attention.partial_softmax import Operands, Part, join_over
from pallas_kernels.mesh import AxisNames, MeshAxes, num_shards, on_each_device

Attend = Callable[[Operands], Part]


def over_slots(attend: Attend, axes: MeshAxes, operands: Operands) -> Part:
    """Softmax over all slots, from `attend` to each device's own."""
    capacity, count = operands.keys.shape[1], num_shards(axes.sequence)
    if capacity % count:
        raise ValueError(
            f"a cache of {capacity} slots does not divide over mesh axes "
            f"{', '.join(axes.sequence)} of size {count}; use {-(-capacity // count) * count} slots"
        )
    queries: Any = PartitionSpec(axes.batch, axes.heads)
    cache: Any = PartitionSpec(axes.batch, axes.sequence, axes.heads)
    rows: Any = PartitionSpec(axes.batch)
    of_slots: Any = PartitionSpec(axes.batch, axes.sequence)
    local = attend if count == 1 else functools.partial(_own_slots, attend, axes.sequence)
    specs = Operands(queries, cache, cache, rows, rows, of_slots)
    return on_each_device(local, (specs,), queries)(operands)


def _own_slots(attend: Attend, axes: AxisNames, operands: Operands) -> Part:
    first = jax.lax.axis_index(axes) * operands.keys.shape[1]
    return join_over(attend(operands._replace(slots=operands.slots - first)), axes)
