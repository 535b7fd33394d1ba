"""Checkpoints of a run: state, position in the data and settings, saved together and verified when
restored.
"""

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint.options import AtomicityMode, AtomicityOptions

from hypenet_jax.fingerprint import leaf_shapes, leaf_specs
from hypenet_jax.train.errors import CheckpointError, CorruptCheckpoint
from hypenet_jax.train.provenance import Provenance, check_provenance, verified_metadata
from hypenet_jax.train.state import TrainState
from hypenet_jax.train.verification import check_leaves, verify

log = logging.getLogger("hypenet_jax")


class Checkpoints:
    """The checkpoints of one run in one folder, written asynchronously.

    A checkpoint counts once its commit marker is written, so a half-written or stray folder is
    never "the latest".

    Args:
      keep: how many of the newest are kept.
    """

    def __init__(
        self, folder: str | os.PathLike[str], provenance: Provenance, *, keep: int = 3
    ) -> None:
        self.folder = epath.Path(folder).absolute()
        self.provenance = provenance
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            atomicity_options=AtomicityOptions(mode=AtomicityMode.COMMIT_FILE),
        )
        if jax.process_index() == 0 and self.folder.exists():
            self._clear()
        self._manager = self._open()

    def save(self, state: TrainState, position: int) -> None:
        """Starts saving this state with the position of the next batch. The state may be donated
        right after.

        Raises:
          CheckpointError: an earlier save failed in the background, or a newer step is in the
            folder.
        """
        step, tree = int(state.step), _as_tree(state)
        metadata = self.provenance.metadata(step=step, position=position, leaves=leaf_specs(tree))
        items = ocp_args.Composite(
            state=ocp_args.StandardSave(tree), metadata=ocp_args.JsonSave(metadata)
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

        A corrupt step is renamed to `corrupt-STEP-...` with a warning, and the one before it is
        restored.

        Args:
          like: the expected shapes, dtypes and shardings; its arrays are not read.
        Raises:
          CheckpointError: another stage, other settings, other leaves.
          CorruptCheckpoint: no step in the folder is good.
        """
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        for step in sorted(self.steps(), reverse=True):
            restored, problem = self._try_restore(step, shapes)
            if _on_all_processes(restored is not None):
                return restored
            log.warning("checkpoint step %d is corrupt and set aside: %s", step, problem)
            self._rename([(str(step), f"corrupt-{step}-{time.time_ns()}")])
        if any(self.folder.glob("corrupt-*")):
            raise CorruptCheckpoint(
                f"{self.folder}: no good checkpoint is left; start in another folder, "
                "or bring one back"
            )
        return None

    def roll_back(self, step: int) -> None:
        """Moves the checkpoints after this step to `after-STEP`, so that the run resumes from it. Only once: if that
        folder exists, an earlier start with the same arguments did it.

        Raises:
          CheckpointError: there is no such step.
        """
        aside, partial = f"after-{step}", f"after-{step}.partial"
        if _on_all_processes((self.folder / aside).exists()):
            return
        steps = self.steps()
        if step not in steps:
            raise CheckpointError(
                f"{self.folder}: cannot go back to step {step}; the steps are {steps}"
            )
        if jax.process_index() == 0:
            (self.folder / partial).mkdir(exist_ok=True)
        moves = [(str(newer), f"{partial}/{newer}") for newer in steps if newer > step]
        self._rename([*moves, (partial, aside)])
        log.info("%s: back at step %d, the newer ones are in %s", self.folder, step, aside)

    def steps(self) -> list[int]:
        """Steps that can be restored, oldest first."""
        return list(self._manager.all_steps())

    def wait(self) -> None:
        """Returns when everything saved so far is on disk."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise CheckpointError(f"{self.folder}: a save failed: {first_line(error)}") from error

    def close(self) -> None:
        """Stops the background writer."""
        self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        return _Manager(self.folder, options=self._options, item_names=("state", "metadata"))

    def _try_restore(
        self, step: int, like: TrainState
    ) -> tuple[tuple[TrainState, int] | None, str]:
        try:
            return self._restore_step(step, like), ""
        except CorruptCheckpoint as error:
            return None, str(error)

    def _restore_step(self, step: int, like: TrainState) -> tuple[TrainState, int]:
        path, expected = f"{self.folder} step {step}", _as_tree(like)
        stored = self._read(path, step, metadata=ocp_args.JsonRestore())["metadata"]
        metadata = verified_metadata(stored, path)
        check_provenance(metadata, self.provenance, path)
        check_leaves(metadata["leaves"], leaf_shapes(expected), path)
        tree = self._read(path, step, state=ocp_args.StandardRestore(expected))["state"]
        verify(tree, metadata["leaves"], path)
        return TrainState(**tree), metadata["position"]

    def _read(self, path: str, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp_args.Composite(**items))
        except Exception as error:
            raise CorruptCheckpoint(f"{path}: cannot be read: {first_line(error)}") from error

    def _rename(self, moves: Sequence[tuple[str, str]]) -> None:
        """Renames folders on process 0, while no process has a manager open."""
        self._manager.close()
        if jax.process_index() == 0:
            for old, new in moves:
                (self.folder / old).rename(self.folder / new)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"renamed {moves[0][0]}")
        self._manager = self._open()

    def _clear(self) -> None:
        """Removes unfinished saves, and warns of other files. Orbax's own cleanup would remove those too."""
        steps = {path for path in self.folder.glob("*") if path.name.isdigit() and path.is_dir()}
        unfinished = {path for path in steps if not any(path.glob("commit_success*"))}
        aside = {*self.folder.glob("corrupt-*"), *self.folder.glob("after-*")}
        strays = {*self.folder.glob("*")} - steps - aside
        for word, paths in (("removing unfinished", unfinished), ("ignoring stray", strays)):
            if paths:
                names = sorted(path.name for path in paths)
                log.warning("%s: %s %s", self.folder, word, ", ".join(names))
        for path in unfinished:
            path.rmtree()


class _Manager(ocp.CheckpointManager):
    """Leaves JAX's preemption service to runtime.stop_on_sigterm: the service expects one increasing sequence of
    numbers, and would lose a signal if saves called it with numbers of their own.
    """

    def reached_preemption(self, step: int) -> bool:
        """Never."""
        return False


def first_line(error: BaseException) -> str:
    """An error as one line: TensorStore appends many kilobytes of its settings."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"


def _as_tree(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}


def _on_all_processes(condition: bool) -> bool:
    """Whether the condition holds on every process."""
    if jax.process_count() == 1:
        return condition
    return bool(np.all(multihost_utils.process_allgather(np.asarray(condition))))
