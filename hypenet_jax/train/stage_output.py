"""The final weights of a stage, and the proof of who wrote them: all that passes from one stage to
the next.
"""

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
from hypenet_jax.fingerprint import Facts, digest, leaf_facts, leaf_shapes
from hypenet_jax.train.checkpoint import check_leaves, first_line
from hypenet_jax.train.errors import CheckpointError, CorruptCheckpoint
from hypenet_jax.train.fingerprint import verify
from hypenet_jax.train.provenance import Provenance, unsealed

log = logging.getLogger("hypenet_jax")


@dataclasses.dataclass(frozen=True)
class StageOutput:
    """Who wrote a folder of final weights, and what is in it.

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
    leaves: Facts

    def shapes(self) -> Params:
        """The tree of shapes, from which a caller may plan shardings before loading."""
        kinds = {
            tuple(path.split("/")): jax.ShapeDtypeStruct(facts["shape"], jnp.dtype(facts["dtype"]))
            for path, facts in self.leaves.items()
        }
        return flax.traverse_util.unflatten_dict(kinds)


def save_params(folder: str | os.PathLike[str], params: Params, provenance: Provenance) -> str:
    """Writes final weights and their provenance over what was there; returns their fingerprint."""
    facts = leaf_facts(params)
    about = provenance.description(fingerprint=digest(facts), leaves=facts)
    items = ocp_args.Composite(params=ocp_args.StandardSave(params), about=ocp_args.JsonSave(about))
    with _checkpointer() as checkpointer:
        checkpointer.save(epath.Path(folder).absolute(), args=items, force=True)
    return about["fingerprint"]


def read_stage_output(folder: str | os.PathLike[str], expected_stage: str) -> StageOutput:
    """What the stage before left in this folder, without its arrays.

    Raises:
      CheckpointError: nothing there, or another stage wrote it.
      CorruptCheckpoint: it cannot be read.
    """
    if not epath.Path(folder).exists():
        raise CheckpointError(f"{folder}: no final weights; run stage {expected_stage!r} first")
    about = unsealed(_read(folder, about=ocp_args.JsonRestore())["about"], str(folder))
    if about["stage"] != expected_stage:
        raise CheckpointError(
            f"{folder}: written by stage {about['stage']!r}, "
            f"wanted are weights of stage {expected_stage!r}"
        )
    return StageOutput(
        **{field.name: about[field.name] for field in dataclasses.fields(StageOutput)}
    )


def load_params(
    folder: str | os.PathLike[str],
    expected_stage: str,
    *,
    like: Params | None = None,
    shardings: Params | None = None,
) -> tuple[Params, StageOutput]:
    """The final weights of the stage before, checked leaf by leaf.

    Args:
      like: shapes and dtypes they must have; None takes what was written.
      shardings: where they go, a tree like the weights; None is the default device.
    Raises:
      CheckpointError: nothing there, another stage wrote it, or other leaves than `like`.
      CorruptCheckpoint: unreadable, or not what was written.
    """
    parent_output = read_stage_output(folder, expected_stage)
    if like is not None:
        check_leaves(parent_output.leaves, leaf_shapes(like), str(folder))
    shapes = parent_output.shapes()
    if shardings is None:
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda shape: here, shapes)
    target = jax.tree.map(
        lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where),
        shapes,
        shardings,
    )
    params = _read(folder, params=ocp_args.StandardRestore(target))["params"]
    verify(params, parent_output.leaves, str(folder))
    log.info("weights of %s, fingerprint %s holds", expected_stage, parent_output.fingerprint[:12])
    return params, parent_output


def _read(folder: str | os.PathLike[str], **items: Any) -> Any:
    with _checkpointer() as checkpointer:
        try:
            return checkpointer.restore(
                epath.Path(folder).absolute(), args=ocp_args.Composite(**items)
            )
        except Exception as error:
            raise CorruptCheckpoint(f"{folder}: cannot be read: {first_line(error)}") from error


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler("params", "about"))
