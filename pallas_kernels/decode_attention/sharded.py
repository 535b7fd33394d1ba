"""Decode attention over a cache whose slots are cut along a mesh axis: no key or value moves.

Each device attends to its own slots; only (max, sum, outputs) of the queries are exchanged, which
is B * N * (H + 2) float32 numbers whatever the length.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from pallas_kernels.decode_attention.parts import Part, Visible, join_over


def sharded(
    attend: Callable[..., Part],
    q: Float[Array, "B N H"],
    keys: Float[Array, "B S K H"],
    values: Float[Array, "B S K H"],
    visible: Visible,
    *,
    axis: str,
) -> Part:
    """The part of all slots, from `attend(q, keys, values, visible)` of each device's own.

    The other axes of the mesh set by `jax.set_mesh` stay with the compiler.
    """
    _check(keys.shape[1], axis)

    def one_shard(
        q: Float[Array, "B N H"],
        keys: Float[Array, "B S K H"],
        values: Float[Array, "B S K H"],
        visible: Visible,
    ) -> Part:
        first = jax.lax.axis_index(axis) * keys.shape[1]
        part = attend(q, keys, values, visible._replace(slots=visible.slots - first))
        return join_over(part, axis)

    everywhere: Any = PartitionSpec()
    cut: Any = PartitionSpec(None, axis)
    return jax.shard_map(
        one_shard,
        in_specs=(everywhere, cut, cut, Visible(everywhere, everywhere, cut)),
        out_specs=everywhere,
        axis_names={axis},
        check_vma=False,  # the loops and kernels inside do not say over which axes they vary
    )(q, keys, values, visible)


def _check(capacity: int, axis: str) -> None:
    sizes = jax.sharding.get_abstract_mesh().shape
    if axis not in sizes:
        raise ValueError(
            f"the mesh has no axis {axis!r} to cut the cache along; it has {', '.join(sizes)}"
        )
    if capacity % sizes[axis]:
        raise ValueError(
            f"a cache of {capacity} slots cannot be cut into {sizes[axis]} equal parts along "
            f"{axis!r}; use {-(-capacity // sizes[axis]) * sizes[axis]} slots"
        )
