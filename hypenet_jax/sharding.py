"""The mesh, the table from logical axis names to mesh axes, and shardings derived from it.

Only this file knows the names of mesh axes: `data` (replicas of the model), `fsdp` (shards parameters and batch),
`sequence` (shards time) and `tensor` (shards heads, mlp and vocabulary). A mesh may lack any of them; an axis of any
other name is one more `fsdp`.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from hypenet_jax import axes

MESH_AXES = ("data", "fsdp", "sequence", "tensor")

AXIS_RULES: dict[str, tuple[str, ...]] = {
    axes.BATCH: ("data", "fsdp"),
    axes.TIME: ("sequence",),
    axes.EMBED: ("fsdp",),
    **dict.fromkeys((axes.HEADS, axes.KV_HEADS, axes.MLP, axes.VOCAB), ("tensor",)),
    **dict.fromkeys((axes.HIDDEN, axes.HEAD_DIM, axes.LAYERS, axes.NORM), ()),
}

LogicalAxes = Sequence[str | None] | PartitionSpec


class ShardingError(ValueError):
    """A mesh, an array or a batch that does not divide; the message says what would work."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1, which takes the devices the others leave."""

    data: int = 1
    fsdp: int = -1
    sequence: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.astuple(self)
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ShardingError(f"{self}: sizes must be positive, and at most one of them -1")

    def sizes(self, devices: int) -> tuple[int, ...]:
        """Sizes in the order of MESH_AXES on this many devices, -1 resolved."""
        sizes = dataclasses.astuple(self)
        known, free = math.prod(size for size in sizes if size != -1), -1 in sizes
        if devices % known if free else devices != known:
            raise ShardingError(
                f"{self} needs {'a multiple of ' if free else ''}{known} devices, "
                f"there are {devices}; set one axis to -1, or use sizes whose product is {devices}"
            )
        return tuple(devices // known if size == -1 else size for size in sizes)


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over these devices (None: all), its axes left to the compiler to propagate."""
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    kinds = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(sizes, MESH_AXES, axis_types=kinds, devices=devices)


@contextlib.contextmanager
def on_mesh(mesh: Mesh | None):
    """Sets the mesh that traces inside see (`constrain`, `mesh_axes`, choice of kernels); None changes nothing."""
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        yield


def sharding_of(
    logical_axes: LogicalAxes, shape: Sequence[int], mesh: Any, path: str = "array"
) -> NamedSharding:
    """Sharding of an array with these logical axes on a mesh (or AbstractMesh).

    Raises:
      ShardingError: a name without a rule, one mesh axis used twice, or a size that does not divide.
    """
    names = tuple(logical_axes)
    if len(names) != len(shape):
        raise ShardingError(f"{path}: {len(names)} axis names {names} for shape {tuple(shape)}")
    spec = [_mesh_axes(name, mesh, path) for name in names]
    used: dict[str, int] = {}
    for dimension, (size, wanted) in enumerate(zip(shape, spec, strict=True)):
        for axis in wanted:
            first = used.setdefault(axis, dimension)
            if first != dimension:
                raise ShardingError(
                    f"{path}: dimensions {first} ({names[first]!r}) and {dimension} "
                    f"({names[dimension]!r}) both ask for mesh axis {axis!r}; "
                    "give one of them a name that maps elsewhere"
                )
        parts = math.prod(mesh.shape[axis] for axis in wanted)
        if size % parts:
            what = f"{path}: dimension {dimension}"
            raise _indivisible(what, names[dimension], size, wanted, parts)
    return NamedSharding(mesh, PartitionSpec(*spec))


def shardings_of(shapes: Any, logical_axes: Any, mesh: Any) -> Any:
    """Tree of NamedSharding for a tree of arrays (or shapes) and a matching tree of logical axes.

    The leaves of `logical_axes` are tuples of names or PartitionSpecs of names (what Linen's metadata gives).
    """

    def sharding(path: Any, leaf: Any, names: LogicalAxes) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return sharding_of(names, leaf.shape, mesh, name)

    return jax.tree_util.tree_map_with_path(sharding, shapes, logical_axes)


def num_parts(name: str, mesh: Any) -> int:
    """Into how many parts a mesh (or AbstractMesh) cuts axes of this logical name."""
    return math.prod(mesh.shape[axis] for axis in _mesh_axes(name, mesh, "array"))


def replicated(mesh: Any) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: Shaped[Array, "..."], logical_names: LogicalAxes) -> Shaped[Array, "..."]:
    """Constrains the sharding of x by its logical axis names; returns x unchanged without a mesh.

    For activations: axes that `mesh_axes` does not shard (a batch of one row) stay replicated.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    spec = [mesh_axes(name, size) for size, name in zip(x.shape, logical_names, strict=True)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def mesh_axes(name: str | None, size: int) -> tuple[str, ...]:
    """The axes of the current mesh that shard an array axis of this logical name and size.

    Empty without a mesh (`on_mesh`), and without axes that are manual inside `jax.shard_map`. Batch and time axes that
    do not divide stay replicated, and so does a vocabulary, whose tables are padded instead (`load_hf`).

    Raises:
      ShardingError: any other axis that does not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    wanted = _mesh_axes(name, mesh, "activation")
    automatic = tuple(axis for axis in wanted if kinds[axis] == AxisType.Auto)
    parts = math.prod(mesh.shape[axis] for axis in automatic)
    if size % parts == 0:
        return automatic
    if name in (axes.BATCH, axes.TIME, axes.VOCAB):
        return ()
    raise _indivisible("an activation's axis", name, size, automatic, parts)


def place_batch(batch: Any, mesh: Mesh | None) -> Any:
    """Global arrays of the local "B T" numpy rows of every process; mesh None: on the default device."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, batch)

    def place(path: Any, local: Any) -> Array:
        name = "batch" + jax.tree_util.keystr(path)
        shape = local.shape[0] * row_parts(mesh)[1], local.shape[1]
        sharding = sharding_of((axes.BATCH, axes.TIME), shape, mesh, name)
        return jax.make_array_from_process_local_data(sharding, local, shape)

    return jax.tree_util.tree_map_with_path(place, batch)


def row_parts(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which of how many equal parts of the batch rows this process must load.

    Processes that differ only along `sequence` or `tensor` load the same rows.
    """
    grid = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    own = jax.process_index()
    local = [i for i, row in enumerate(grid) if any(d.process_index == own for d in row)]
    first, count = local[0], len(local)
    if len(grid) % count or first % count or local != list(range(first, first + count)):
        raise ShardingError(
            f"process {jax.process_index()} holds batch parts {local} of {len(grid)}, "
            "not one aligned range; make data * fsdp a multiple of the number of processes, "
            "or a divisor of it"
        )
    return first // count, len(grid) // count


def _mesh_axes(name: str | None, mesh: Any, path: str) -> tuple[str, ...]:
    if name is None:
        return ()
    if name not in AXIS_RULES:
        known = ", ".join(AXIS_RULES)
        raise ShardingError(f"{path}: no rule for logical axis {name!r}; known: {known}")
    ours = AXIS_RULES[name]
    others = tuple(a for a in mesh.axis_names if a not in MESH_AXES) if "fsdp" in ours else ()
    return (*(axis for axis in ours if axis in mesh.axis_names), *others)


def _indivisible(
    what: str, name: str | None, size: int, wanted: tuple[str, ...], parts: int
) -> ShardingError:
    fitting = [n for n in range(1, min(size, parts) + 1) if size % n == 0]
    listed = ", ".join(map(str, fitting[-8:]))
    larger = f", or make it a multiple of {parts}" if name == axes.BATCH else ""
    return ShardingError(
        f"{what} ({name!r}) of size {size} does not divide over mesh axis "
        f"{' x '.join(wanted)} of size {parts}; sizes of that axis that work: {listed}{larger}"
    )
