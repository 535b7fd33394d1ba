"""Running a function on every device's own part of its arrays: the compiler cannot cut up a Pallas kernel."""

import math
from collections.abc import Callable
from typing import Any

import jax

MeshAxes = str | tuple[str, ...] | None


def on_each_device(
    function: Callable[..., Any], in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """`jax.shard_map` over the axes of the mesh of `jax.set_mesh` that specs name; the function itself where they cut
    nothing.

    Other axes stay with the compiler, which a Pallas kernel does not allow: name those of one device too.
    """
    specs = jax.tree.leaves((in_specs, out_specs))
    named = {axis for spec in specs for entry in spec for axis in _names(entry)}
    if parts(tuple(named)) == 1:
        return function
    # A Pallas kernel does not say over which axes its results vary, so nothing may ask.
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, axis_names=named, check_vma=False
    )


def parts(axes: MeshAxes) -> int:
    """How many parts these axes of the mesh cut an array into."""
    sizes = jax.sharding.get_abstract_mesh().shape
    missing = [axis for axis in _names(axes) if axis not in sizes]
    if missing:
        raise ValueError(
            f"the mesh has no axis {missing[0]!r} to cut along; it has {', '.join(sizes)}"
        )
    return math.prod(sizes[axis] for axis in _names(axes))


def everywhere() -> tuple[str, ...]:
    """The axes of the mesh along which `on_each_device` has cut, for the function that it runs."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == jax.sharding.AxisType.Manual)


def _names(axes: MeshAxes) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()
