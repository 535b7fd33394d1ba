"""Running a function on every device's own part of its arrays: the compiler cannot cut up a Pallas kernel."""

from collections.abc import Callable
from typing import Any

import jax

MeshAxes = str | tuple[str, ...] | None


def on_each_device(
    function: Callable[..., Any], in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """`jax.shard_map` over the mesh of `jax.set_mesh`; the function itself where no spec names an axis of it.

    Axes of several devices that no spec names stay with the compiler. A Pallas kernel wants all axes in the map, so
    those of one device always are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    named = {axis for spec in jax.tree.leaves((in_specs, out_specs)) for axis in _names(spec)}
    if not named:
        return function
    alone = {axis for axis, size in mesh.shape.items() if size == 1}
    # A Pallas kernel does not say over which axes its results vary, so nothing may ask.
    return jax.shard_map(
        function,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=named | alone,
        check_vma=False,
    )


def _names(spec: jax.sharding.PartitionSpec) -> set[str]:
    entries = ((entry,) if isinstance(entry, str) else entry or () for entry in spec)
    return {axis for entry in entries for axis in entry}
