"""Trees of arrays on disk with the metadata that says who wrote them: what a checkpoint holds, and the final weights of
a stage, which are all that it passes to the next.

Orbax restores array data with flipped bits without an error, so every leaf is checked when it is read.
"""

import logging
import os
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import unflatten_dict
from orbax.checkpoint import args as ocp_args

from hypenet_jax import runtime
from hypenet_jax.axes import Params
from hypenet_jax.fingerprint import LeafSpecs, differences, digest, leaf_shapes, leaf_specs
from hypenet_jax.train.errors import CheckpointError, CorruptCheckpoint
from hypenet_jax.train.provenance import OLDER, Provenance, verified_metadata

log = logging.getLogger("hypenet_jax")


def save_params(folder: str | os.PathLike[str], params: Params, provenance: Provenance) -> None:
    """Writes final weights and their metadata, replacing earlier ones."""
    items = stored("params", params, provenance)
    with _checkpointer("params") as writer:
        writer.save(epath.Path(folder).absolute(), args=items, force=True)


def read_stage_output(folder: str | os.PathLike[str], expected_stage: str) -> dict[str, Any]:
    """Metadata of the final weights in this folder, see `stored`; no arrays are read.

    Raises:
      CheckpointError: the folder does not exist, or another stage wrote it.
      CorruptCheckpoint: it cannot be read.
    """
    if not epath.Path(folder).exists():
        raise CheckpointError(f"{folder}: no final weights; run stage {expected_stage!r} first")
    metadata = read_metadata(folder)
    if metadata["stage"] != expected_stage:
        raise CheckpointError(
            f"{folder}: written by stage {metadata['stage']!r}, "
            f"expected weights of stage {expected_stage!r}"
        )
    return metadata


def load_params(
    folder: str | os.PathLike[str], expected_stage: str, *, like: Params | None = None
) -> tuple[Params, dict[str, Any]]:
    """The final weights in this folder, verified leaf by leaf, and their metadata.

    Args:
      like: expected shapes and dtypes with shardings; None takes what is there, on the default device.
    Raises:
      CheckpointError: the folder does not exist, another stage wrote it, or its leaves differ from `like`.
      CorruptCheckpoint: unreadable, or not what was written.
    """
    metadata = read_stage_output(folder, expected_stage)
    if like is None:
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = {
            path: jax.ShapeDtypeStruct(leaf["shape"], jnp.dtype(leaf["dtype"]), sharding=here)
            for path, leaf in metadata["leaves"].items()
        }
        like = unflatten_dict(shapes, sep="/")
    params = read_tree(folder, "params", like, metadata["leaves"])
    log.info("weights of %s, fingerprint %s holds", expected_stage, metadata["fingerprint"][:12])
    return params, metadata


def stored(name: str, tree: Any, provenance: Provenance, **entries: Any) -> ocp_args.Composite:
    """What Orbax is to save: the tree under this name, and its metadata.

    The metadata are `stage`, `config` and `parent` of the provenance, `leaves` (path to shape, dtype and fingerprint),
    the `fingerprint` of all of them, which the next stage has as its parent, and these entries.
    """
    leaves = leaf_specs(tree)
    metadata = provenance.metadata(leaves=leaves, fingerprint=digest(leaves), **entries)
    items = {name: ocp_args.StandardSave(tree), "metadata": ocp_args.JsonSave(metadata)}
    return ocp_args.Composite(**items)


def read_metadata(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata in this folder.

    Raises:
      CheckpointError: an older version wrote them.
      CorruptCheckpoint: they cannot be read or have changed.
    """
    if (epath.Path(folder) / "about").exists():  # as they were called
        raise CheckpointError(f"{folder}: {OLDER}; use another folder")
    return verified_metadata(_read(folder, "metadata", ocp_args.JsonRestore()), folder)


def read_tree(folder: str | os.PathLike[str], name: str, like: Any, leaves: LeafSpecs) -> Any:
    """The tree of this name in the folder, verified leaf by leaf: with the shapes, dtypes and shardings of `like`, and
    the `leaves` of the metadata.

    Raises:
      CheckpointError: it has other leaves than `like`.
      CorruptCheckpoint: it cannot be read, or is not what was written.
    """
    check_leaves(leaves, leaf_shapes(like), folder)
    tree = _read(folder, name, ocp_args.StandardRestore(like))
    verify(tree, leaves, folder)
    return tree


def check_leaves(saved: LeafSpecs, expected: LeafSpecs, folder: Any) -> None:
    """Raises CheckpointError listing the leaves with other paths, shapes or dtypes than expected."""
    here, there = (
        {path: f"{leaf['dtype']}{leaf['shape']}" for path, leaf in leaves.items()}
        for leaves in (saved, expected)
    )
    if changed := differences(here, there):
        raise CheckpointError(f"{folder}: does not fit: {changed}")


def verify(tree: Any, saved: LeafSpecs, folder: Any) -> None:
    """Raises CorruptCheckpoint naming the leaves whose content is not what was written."""
    restored = leaf_specs(tree)
    changed = [path for path, leaf in saved.items() if restored[path] != leaf]
    if changed:
        raise CorruptCheckpoint(
            f"{folder}: content of {len(changed)} of {len(saved)} leaves changed since it was "
            f"written: {', '.join(changed[:8])}"
        )


def _read(folder: str | os.PathLike[str], name: str, how: Any) -> Any:
    try:
        with _checkpointer(name) as reader:
            path = epath.Path(folder).absolute()
            return reader.restore(path, args=ocp_args.Composite(**{name: how}))[name]
    except Exception as error:
        raise CorruptCheckpoint(f"{folder}: cannot be read: {runtime.reason(error)}") from error


def _checkpointer(name: str) -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(name, "metadata"))
