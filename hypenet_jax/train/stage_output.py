"""The final weights of a stage and their provenance: all that one stage passes to the next."""

import dataclasses
import logging
import os
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import args as ocp_args

from hypenet_jax.axes import Params
from hypenet_jax.fingerprint import LeafSpecs, digest, leaf_shapes, leaf_specs
from hypenet_jax.train.checkpoint import first_line
from hypenet_jax.train.errors import CheckpointError, CorruptCheckpoint
from hypenet_jax.train.provenance import Provenance, verified_metadata
from hypenet_jax.train.verification import check_leaves, verify

log = logging.getLogger("hypenet_jax")


@dataclasses.dataclass(frozen=True)
class StageOutput:
    """Metadata of a folder of final weights: which stage wrote it, and its leaves.

    Attributes:
      stage: name of the stage that wrote it.
      fingerprint: of all weights; the next stage records it as its parent.
      parent: fingerprint of the weights that stage started from.
      config: its resolved settings.
      leaves: path to shape, dtype and fingerprint.
    """

    stage: str
    fingerprint: str
    parent: str | None
    config: Mapping[str, Any]
    leaves: LeafSpecs

    def shapes(self) -> Params:
        """The tree of shapes, from which a caller may derive shardings before loading."""
        shapes = {
            path: jax.ShapeDtypeStruct(spec["shape"], jnp.dtype(spec["dtype"]))
            for path, spec in self.leaves.items()
        }
        return flax.traverse_util.unflatten_dict(shapes, sep="/")


def save_params(folder: str | os.PathLike[str], params: Params, provenance: Provenance) -> str:
    """Writes final weights and their metadata, replacing earlier ones; returns their fingerprint."""
    specs = leaf_specs(params)
    metadata = provenance.metadata(fingerprint=digest(specs), leaves=specs)
    items = ocp_args.Composite(
        params=ocp_args.StandardSave(params), metadata=ocp_args.JsonSave(metadata)
    )
    with _checkpointer() as checkpointer:
        checkpointer.save(epath.Path(folder).absolute(), args=items, force=True)
    return metadata["fingerprint"]


def read_stage_output(folder: str | os.PathLike[str], expected_stage: str) -> StageOutput:
    """Metadata of the final weights in this folder; no arrays are read.

    Raises:
      CheckpointError: the folder does not exist, or another stage wrote it.
      CorruptCheckpoint: it cannot be read.
    """
    if not epath.Path(folder).exists():
        raise CheckpointError(f"{folder}: no final weights; run stage {expected_stage!r} first")
    stored = _read(folder, metadata=ocp_args.JsonRestore())["metadata"]
    metadata = verified_metadata(stored, str(folder))
    if metadata["stage"] != expected_stage:
        raise CheckpointError(
            f"{folder}: written by stage {metadata['stage']!r}, "
            f"expected weights of stage {expected_stage!r}"
        )
    return StageOutput(
        **{field.name: metadata[field.name] for field in dataclasses.fields(StageOutput)}
    )


def load_params(
    folder: str | os.PathLike[str],
    expected_stage: str,
    *,
    like: Params | None = None,
    shardings: Params | None = None,
) -> tuple[Params, StageOutput]:
    """The final weights in this folder, verified leaf by leaf, and their metadata.

    Args:
      like: expected shapes and dtypes; None accepts any.
      shardings: a tree like the weights; None places them on the default device.
    Raises:
      CheckpointError: the folder does not exist, another stage wrote it, or its leaves differ from `like`.
      CorruptCheckpoint: unreadable, or not what was written.
    """
    output = read_stage_output(folder, expected_stage)
    if like is not None:
        check_leaves(output.leaves, leaf_shapes(like), str(folder))
    shapes = output.shapes()
    if shardings is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda shape: device, shapes)
    target = jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    params = _read(folder, params=ocp_args.StandardRestore(target))["params"]
    verify(params, output.leaves, str(folder))
    log.info("weights of %s, fingerprint %s holds", expected_stage, output.fingerprint[:12])
    return params, output


def _read(folder: str | os.PathLike[str], **items: Any) -> Any:
    with _checkpointer() as checkpointer:
        try:
            return checkpointer.restore(
                epath.Path(folder).absolute(), args=ocp_args.Composite(**items)
            )
        except Exception as error:
            raise CorruptCheckpoint(f"{folder}: cannot be read: {first_line(error)}") from error


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler("params", "metadata"))
