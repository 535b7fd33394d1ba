"""Ops on a mesh: which axes shard an op's arrays, and running a function on every device's own shards.

The compiler partitions plain XLA by itself; it cannot partition a Pallas kernel.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from pallas_kernels.dispatch import UnsupportedError

AxisNames = tuple[str, ...]


class MeshAxes(NamedTuple):
    """Axes of the mesh set by `jax.set_mesh` that shard the arrays of an op; () shards nothing.

    Every op that runs on a mesh takes one as `mesh_axes`; its docstring says what it exchanges. Without a mesh the
    names mean nothing.

    Attributes:
      batch: axes that shard B, which they must divide, as below.
      sequence: axes that shard T, or the slots S of a cache.
      heads: axes that shard the heads N, and K where keys and values have fewer.
      vocabulary: axes that shard the rows V of an output head.
    """

    batch: AxisNames = ()
    sequence: AxisNames = ()
    heads: AxisNames = ()
    vocabulary: AxisNames = ()

    @property
    def tokens(self) -> AxisNames:
        """Axes that shard the tokens of [B, T] arrays flattened to [B * T]."""
        return self.batch + self.sequence

    def spec(self, dimensions: str) -> Any:
        """`PartitionSpec` of an array by the letters of its annotation, such as "B T N"; others are whole."""
        axes = {"B": self.batch, "T": self.sequence, "N": self.heads}
        axes |= {"S": self.sequence, "K": self.heads, "V": self.vocabulary}
        return PartitionSpec(*(axes.get(letter) for letter in dimensions.split()))


UNSHARDED = MeshAxes()


def on_each_device(
    function: Callable[..., Any], in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """`jax.shard_map` over the mesh axes that the specs name; the function itself where they shard nothing.

    Other axes stay with the compiler, which a Pallas kernel does not allow: name those of one device too.
    """
    specs = jax.tree.leaves((in_specs, out_specs))
    named = {axis for spec in specs for entry in spec for axis in _names(entry)}
    if num_shards(tuple(named)) == 1:
        return function
    # A Pallas kernel does not say over which axes its results vary, so nothing may ask.
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, axis_names=named, check_vma=False
    )


def num_shards(axes: AxisNames) -> int:
    """How many shards these axes of the mesh make of an array; 1 without a mesh.

    Raises:
      UnsupportedError: the mesh has no axis of that name.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    for axis in axes:
        if axis not in mesh.axis_names:
            there = ", ".join(mesh.axis_names)
            raise UnsupportedError(f"no mesh axis {axis!r}; the mesh has {there}")
    return math.prod(mesh.shape[axis] for axis in axes)


def manual_axes() -> AxisNames:
    """The mesh axes over which the running function is inside `on_each_device`."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == jax.sharding.AxisType.Manual)


def _names(entry: str | AxisNames | None) -> AxisNames:
    return (entry,) if isinstance(entry, str) else entry or ()
