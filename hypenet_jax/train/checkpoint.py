"""Checkpoints of a run: state, position in the data and settings, saved together and believed only
after a check.
"""

import dataclasses
import importlib.metadata
import json
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint.options import AtomicityMode, AtomicityOptions

from hypenet_jax.train.errors import CheckpointError, CorruptCheckpoint
from hypenet_jax.train.fingerprint import (
    Facts,
    differences,
    digest,
    leaf_facts,
    leaf_shapes,
    verify,
)
from hypenet_jax.train.state import TrainState

log = logging.getLogger("hypenet_jax")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Whose checkpoint it is. A checkpoint of another origin is refused.

    Attributes:
      stage: name of the stage.
      config: resolved settings of the run, as JSON can hold them.
      parent: fingerprint of the weights the stage started from; None without a parent.
      free: dotted keys of `config` (or prefixes of them) that may differ when a run goes on.
    """

    stage: str
    config: Mapping[str, Any]
    parent: str | None = None
    free: tuple[str, ...] = ()


class Checkpoints:
    """The checkpoints of one run in one folder, written in the background.

    A checkpoint counts once its commit marker is written, so a half-written or stray folder is
    never "the latest".
    """

    def __init__(self, folder: str | os.PathLike[str], origin: Origin, *, keep: int = 3) -> None:
        self.folder = epath.Path(folder).absolute()
        self.origin = origin
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            atomicity_options=AtomicityOptions(mode=AtomicityMode.COMMIT_FILE),
        )
        self._warn_of_strays()
        self._manager = self._open()

    def save(self, state: TrainState, position: int) -> None:
        """Starts saving this state with the position in the data that follows it. The state may be
        donated right after.

        Raises:
          CheckpointError: an earlier save failed in the background, or a newer step is in the
            folder.
        """
        step, tree = int(state.step), _as_tree(state)
        facts = leaf_facts(tree)
        about = {
            "step": step,
            "position": position,
            "stage": self.origin.stage,
            "config": dict(self.origin.config),
            "parent": self.origin.parent,
            "versions": versions(),
            "leaves": facts,
        }
        items = ocp_args.Composite(
            state=ocp_args.StandardSave(tree), about=ocp_args.JsonSave(sealed(about))
        )
        try:
            written = self._manager.save(step, args=items)
        except Exception as error:
            raise CheckpointError(
                f"{self.folder}: could not save step {step}: {first_line(error)}"
            ) from error
        if not written:
            raise CheckpointError(
                f"{self.folder}: step {step} was not saved, because steps {self.steps()} "
                "are there; use another folder, or remove the newer steps"
            )

    def restore(self, like: TrainState) -> tuple[TrainState, int] | None:
        """The newest good checkpoint as (state, position in the data), or None where there is no
        checkpoint.

        A corrupt step is set aside as `corrupt-STEP-...` with a warning, and the one before it is
        taken.

        Args:
          like: shapes, dtypes and shardings wanted; its arrays are not read.
        Raises:
          CheckpointError: another stage, other settings, other leaves.
          CorruptCheckpoint: no step in the folder is good.
        """
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        for step in sorted(self.steps(), reverse=True):
            restored, problem = self._attempt(step, shapes)
            if _all_agree(restored is not None):
                return restored
            log.warning("checkpoint step %d is corrupt and set aside: %s", step, problem)
            self._set_aside(step)
        if any(self.folder.glob("corrupt-*")):
            raise CorruptCheckpoint(
                f"{self.folder}: no good checkpoint is left; start in another folder, "
                "or bring one back"
            )
        return None

    def steps(self) -> list[int]:
        return list(self._manager.all_steps())

    def wait(self) -> None:
        """Returns when everything saved so far is on disk."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise CheckpointError(f"{self.folder}: a save failed: {first_line(error)}") from error

    def close(self) -> None:
        self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        names = ("state", "about")
        return ocp.CheckpointManager(self.folder, options=self._options, item_names=names)

    def _attempt(self, step: int, like: TrainState) -> tuple[tuple[TrainState, int] | None, str]:
        try:
            return self._restored(step, like), ""
        except CorruptCheckpoint as error:
            return None, str(error)

    def _restored(self, step: int, like: TrainState) -> tuple[TrainState, int]:
        where = f"{self.folder} step {step}"
        about = unsealed(self._read(where, step, about=ocp_args.JsonRestore())["about"], where)
        check_origin(about, self.origin, where)
        check_leaves(about["leaves"], leaf_shapes(_as_tree(like)), where)
        wanted = ocp_args.StandardRestore(_as_tree(like))
        tree = self._read(where, step, state=wanted)["state"]
        verify(tree, about["leaves"], where)
        return _as_state(tree), about["position"]

    def _read(self, where: str, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp_args.Composite(**items))
        except Exception as error:
            raise CorruptCheckpoint(f"{where}: cannot be read: {first_line(error)}") from error

    def _set_aside(self, step: int) -> None:
        self._manager.close()
        if jax.process_index() == 0:
            (self.folder / str(step)).rename(self.folder / f"corrupt-{step}-{time.time_ns()}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager = self._open()

    def _warn_of_strays(self) -> None:
        found = self.folder.glob("*") if self.folder.exists() else ()
        strays = [path.name for path in found if path.name.isdigit() and not _committed(path)]
        if strays:
            log.warning(
                "%s: ignoring unfinished or stray folders: %s", self.folder, ", ".join(strays)
            )


def sealed(about: dict[str, Any]) -> dict[str, Any]:
    """The same facts with a hash over them, for a file that must not change unnoticed."""
    return {**about, "seal": digest(about)}


def unsealed(found: Any, where: str) -> dict[str, Any]:
    """Facts whose seal holds."""
    about = {key: value for key, value in found.items() if key != "seal"} if found else {}
    if not about or found.get("seal") != digest(about):
        raise CorruptCheckpoint(f"{where}: its description changed since it was written")
    return about


def check_origin(about: Mapping[str, Any], origin: Origin, where: str) -> None:
    """Refuses what another stage, other settings or other parent weights wrote, naming what
    differs.
    """
    if about["stage"] != origin.stage:
        raise CheckpointError(
            f"{where}: written by stage {about['stage']!r}, this is stage {origin.stage!r}; "
            "use another folder"
        )
    saved, now = _flat(about["config"]), _flat(json.loads(json.dumps(origin.config)))
    keys = [key for key in sorted(saved.keys() | now.keys()) if not _is_free(key, origin.free)]
    changed = [key for key in keys if saved.get(key) != now.get(key)]
    if changed:
        shown = "; ".join(
            f"{key}: {saved.get(key)} saved, {now.get(key)} now" for key in changed[:12]
        )
        raise CheckpointError(
            f"{where}: other settings than this run's: {shown}; use another folder"
        )
    if about["parent"] != origin.parent:
        raise CheckpointError(
            f"{where}: started from weights {about['parent']}, this run from {origin.parent}; "
            "use another folder"
        )


def check_leaves(saved: Facts, wanted: Facts, where: str) -> None:
    """Refuses other paths, shapes or dtypes, listing them."""
    lines = differences(saved, wanted)
    if lines:
        more = f"\n  and {len(lines) - 12} more" if len(lines) > 12 else ""
        raise CheckpointError(f"{where}: does not fit:\n  " + "\n  ".join(lines[:12]) + more)


def versions() -> dict[str, str]:
    """Versions of the libraries that decide what a checkpoint means."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def first_line(error: BaseException) -> str:
    """TensorStore puts many kilobytes of its settings behind the first line."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"


def _as_tree(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state._asdict()}


def _as_state(tree: Mapping[str, Any]) -> TrainState:
    return TrainState(tree["step"], tree["params"], optax.ScaleByAdamState(**tree["opt_state"]))


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _is_free(key: str, free: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in free)


def _committed(path: epath.Path) -> bool:
    return any(path.glob("commit_success*"))


def _all_agree(good: bool) -> bool:
    """Whether every process could restore; they must all take the same step."""
    if jax.process_count() == 1:
        return good
    return bool(np.all(multihost_utils.process_allgather(np.asarray(good))))
