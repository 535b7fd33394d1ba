"""Checkpoints of a run: state, position in the data and settings, saved together and believed only
after a check.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint.options import AtomicityMode, AtomicityOptions

from hypenet_jax.fingerprint import Facts, leaf_facts, leaf_shapes
from hypenet_jax.train.errors import CheckpointError, CorruptCheckpoint
from hypenet_jax.train.fingerprint import differences, verify
from hypenet_jax.train.provenance import Provenance, check_provenance, unsealed
from hypenet_jax.train.state import TrainState

log = logging.getLogger("hypenet_jax")


class Checkpoints:
    """The checkpoints of one run in one folder, written in the background.

    A checkpoint counts once its commit marker is written, so a half-written or stray folder is
    never "the latest".
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
        """Starts saving this state with the position in the data that follows it. The state may be
        donated right after.

        Raises:
          CheckpointError: an earlier save failed in the background, or a newer step is in the
            folder.
        """
        step, tree = int(state.step), _as_tree(state)
        about = self.provenance.description(step=step, position=position, leaves=leaf_facts(tree))
        items = ocp_args.Composite(
            state=ocp_args.StandardSave(tree), about=ocp_args.JsonSave(about)
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
            self._rename([(str(step), f"corrupt-{step}-{time.time_ns()}")])
        if any(self.folder.glob("corrupt-*")):
            raise CorruptCheckpoint(
                f"{self.folder}: no good checkpoint is left; start in another folder, "
                "or bring one back"
            )
        return None

    def roll_back(self, step: int) -> None:
        """Moves the checkpoints after this step to `after-STEP`, so that the run goes on from it. Only once: where that
        folder is, an earlier start with the same arguments has done so.

        Raises:
          CheckpointError: there is no such step.
        """
        aside, partial = f"after-{step}", f"after-{step}.partial"
        if _all_agree((self.folder / aside).exists()):
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
        return _Manager(self.folder, options=self._options, item_names=("state", "about"))

    def _attempt(self, step: int, like: TrainState) -> tuple[tuple[TrainState, int] | None, str]:
        try:
            return self._restored(step, like), ""
        except CorruptCheckpoint as error:
            return None, str(error)

    def _restored(self, step: int, like: TrainState) -> tuple[TrainState, int]:
        where = f"{self.folder} step {step}"
        about = unsealed(self._read(where, step, about=ocp_args.JsonRestore())["about"], where)
        check_provenance(about, self.provenance, where)
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

    def _rename(self, moves: Sequence[tuple[str, str]]) -> None:
        """By process 0, while no manager of any process watches the folder."""
        self._manager.close()
        if jax.process_index() == 0:
            for old, new in moves:
                (self.folder / old).rename(self.folder / new)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"renamed {moves[0][0]}")
        self._manager = self._open()

    def _clear(self) -> None:
        """Removes what a killed save left, and warns of what no run of ours has written. Orbax's own cleaning would
        remove that too.
        """
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
    """Asks nobody about preemption: JAX's service knows one row of numbers, those of runtime.stop_on_sigterm, and would
    lose a signal between a save with a number of its own and the next of that row.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


def check_leaves(saved: Facts, wanted: Facts, where: str) -> None:
    """Refuses other paths, shapes or dtypes, listing them."""
    lines = differences(saved, wanted)
    if lines:
        more = f"\n  and {len(lines) - 12} more" if len(lines) > 12 else ""
        raise CheckpointError(f"{where}: does not fit:\n  " + "\n  ".join(lines[:12]) + more)


def first_line(error: BaseException) -> str:
    """TensorStore puts many kilobytes of its settings behind the first line."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"


def _as_tree(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}


def _as_state(tree: Mapping[str, Any]) -> TrainState:
    return TrainState(**tree)


def _all_agree(good: bool) -> bool:
    """Whether every process could restore; they must all take the same step."""
    if jax.process_count() == 1:
        return good
    return bool(np.all(multihost_utils.process_allgather(np.asarray(good))))
