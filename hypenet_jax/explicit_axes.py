"""Functions of arrays on a mesh whose axes are explicit, as `jax.make_mesh` makes them where nothing else is asked for.

The type of an array there says how it is cut, and each operation has to say what becomes of that. Inside these
functions it is left to the compiler, as on every mesh of `sharding.make_mesh`; their results say it again.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from hypenet_jax.sharding import LogicalAxes, mesh_axes

Function = TypeVar("Function", bound=Callable[..., Any])


def left_to_compiler(axes_of: Callable[[Any, str], LogicalAxes]) -> Callable[[Function], Function]:
    """Decorates a function, so that it runs on a mesh with explicit axes; on others, and on none, it is as it was.

    The mesh is the one that is set, or without one that of the arguments.

    Args:
      axes_of: from the first argument of the function, and the path of an array in its result ("state/layers/0/keys",
        "" of a single array): logical names of the first axes of that array. Further axes are whole.
    """

    def decorator(function: Function) -> Function:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            mesh = _explicit_mesh((args, kwargs))
            if mesh is None:
                return function(*args, **kwargs)
            with jax.sharding.use_abstract_mesh(automatic(mesh)):
                args, kwargs = jax.tree.map(_untyped, (args, kwargs))
                found = jax.tree_util.tree_flatten_with_path(function(*args, **kwargs))
                of_path = functools.partial(axes_of, args[0])
                specs = [_spec(of_path, mesh, path, leaf) for path, leaf in found[0]]
            with jax.sharding.use_abstract_mesh(mesh):
                pairs = zip(found[0], specs, strict=True)
                leaves = [jax.sharding.reshard(leaf, spec) for (_, leaf), spec in pairs]
            return jax.tree.unflatten(found[1], leaves)

        return run  # pyright: ignore[reportReturnType]  # it has the signature of the function

    return decorator


@contextlib.contextmanager
def on_explicit_mesh_of(arrays: Any) -> Iterator[None]:
    """Sets the mesh that arrays lie on, if its axes are explicit and no mesh is set; not for use in a trace."""
    unset = jax.sharding.get_abstract_mesh().empty
    shardings = [leaf.sharding for leaf in jax.tree.leaves(arrays) if isinstance(leaf, jax.Array)]
    meshes = [one.mesh for one in shardings if isinstance(one, NamedSharding)]
    explicit = [
        mesh for mesh in meshes if isinstance(mesh, Mesh) and AxisType.Explicit in mesh.axis_types
    ]
    with jax.set_mesh(explicit[0]) if unset and explicit else contextlib.nullcontext():
        yield


def automatic(mesh: Any) -> Any:
    """The same mesh (or AbstractMesh) with its explicit axes left to the compiler."""
    kinds = tuple(AxisType.Auto if k == AxisType.Explicit else k for k in mesh.axis_types)
    if isinstance(mesh, AbstractMesh):
        return mesh.update_axis_types(dict(zip(mesh.axis_names, kinds, strict=True)))
    return Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)


def _explicit_mesh(arguments: Any) -> AbstractMesh | None:
    mesh = jax.sharding.get_abstract_mesh()
    meshes = [mesh] if not mesh.empty else map(_mesh_of, jax.tree.leaves(arguments))
    return next((one for one in meshes if one is not None and one.explicit_axes), None)


def _mesh_of(leaf: Any) -> AbstractMesh | None:
    return jax.typeof(leaf).sharding.mesh if isinstance(leaf, jax.Array) else None


def _untyped(leaf: Any) -> Any:
    return jax.sharding.reshard(leaf, PartitionSpec()) if isinstance(leaf, jax.Array) else leaf


def _spec(
    axes_of: Callable[[str], LogicalAxes], mesh: AbstractMesh, path: Any, leaf: jax.Array
) -> PartitionSpec:
    names = axes_of(jax.tree_util.keystr(path, simple=True, separator="/"))
    cut = (mesh_axes(name, size) for name, size in zip(names, leaf.shape, strict=False))
    return PartitionSpec(*(tuple(a for a in one if a in mesh.explicit_axes) for one in cut))
