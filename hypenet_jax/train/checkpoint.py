"""Checkpoints of a run: state, position in the data and settings, saved together, verified when restored."""

import logging
import os
import time
from collections.abc import Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.options import AtomicityMode, AtomicityOptions

from hypenet_jax import runtime
from hypenet_jax.train.errors import CheckpointError, CorruptCheckpoint
from hypenet_jax.train.provenance import Provenance, check_provenance
from hypenet_jax.train.stage_output import read_metadata, read_tree, stored
from hypenet_jax.train.state import TrainState

KEPT = 3

log = logging.getLogger("hypenet_jax")


class Checkpoints:
    """The newest checkpoints of one run in one folder, written asynchronously.

    A checkpoint counts once its commit marker is written, so a half-written or stray folder is
    never "the latest".
    """

    def __init__(self, folder: str | os.PathLike[str], provenance: Provenance) -> None:
        self.folder = epath.Path(folder).absolute()
        self.provenance = provenance
        if jax.process_index() == 0 and self.folder.exists():
            self._clear()
        atomicity = AtomicityOptions(mode=AtomicityMode.COMMIT_FILE)
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, atomicity_options=atomicity)
        self._manager = _Manager(self.folder, options=options, item_names=("state", "metadata"))

    def save(self, state: TrainState, position: int) -> None:
        """Starts saving this state with the position of the next batch. The state may be donated right after.

        Raises:
          CheckpointError: an earlier save failed in the background, or a newer step is there.
        """
        step = int(state.step)
        items = stored("state", state, self.provenance, step=step, position=position)
        try:
            written = self._manager.save(step, args=items)
        except Exception as error:
            raise CheckpointError(
                f"{self.folder}: could not save step {step}: {runtime.reason(error)}"
            ) from error
        if not written:
            raise CheckpointError(
                f"{self.folder}: step {step} was not saved, because steps {self.steps()} "
                "are there; use another folder, or remove the newer steps"
            )

    def restore(self, like: TrainState) -> tuple[TrainState, int] | None:
        """The newest good checkpoint as (state, position in the data), or None where there is none.

        A corrupt step is renamed to `corrupt-STEP-...` with a warning, and the one before it is restored.

        Args:
          like: the expected shapes, dtypes and shardings; its arrays are not read and may be deleted.
        Raises:
          CheckpointError: another stage, other settings, other leaves.
          CorruptCheckpoint: no step in the folder is good.
        """
        self.wait()
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        for step in sorted(self.steps(), reverse=True):
            restored, problem = None, "so another process says"
            try:
                restored = self._read(step, shapes)
            except CorruptCheckpoint as error:
                problem = str(error)
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
        """Moves the checkpoints after this step to `after-STEP`, so that the run resumes there; raises CheckpointError
        if there is no such step. Only once: if that folder exists, an earlier start with the same arguments did it.
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
            raise CheckpointError(
                f"{self.folder}: a save failed: {runtime.reason(error)}"
            ) from error

    def close(self) -> None:
        """Stops the background writer."""
        self._manager.close()

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, int]:
        folder = self.folder / str(step)
        metadata = read_metadata(folder)
        check_provenance(metadata, self.provenance, folder)
        return read_tree(folder, "state", like, metadata["leaves"]), metadata["position"]

    def _rename(self, moves: Sequence[tuple[str, str]]) -> None:
        """Renames folders on process 0, for all to see."""
        if jax.process_index() == 0:
            for old, new in moves:
                (self.folder / old).rename(self.folder / new)
        runtime.meet(f"renamed {moves[0][0]}")
        self._manager.reload()

    def _clear(self) -> None:
        """Removes unfinished saves, and warns of other files. Orbax's own cleanup would remove those too."""
        strays = []
        for path in sorted(self.folder.glob("*")):
            if path.name.isdigit() and path.is_dir():
                if not any(path.glob("commit_success*")):
                    log.warning("%s: removing unfinished %s", self.folder, path.name)
                    path.rmtree()
            elif not path.name.startswith(("corrupt-", "after-")):
                strays.append(path.name)
        if strays:
            log.warning("%s: ignoring stray %s", self.folder, ", ".join(strays))


class _Manager(ocp.CheckpointManager):
    """Leaves JAX's preemption service to runtime.stop_on_sigterm: the service expects one increasing sequence of
    numbers, and would lose a signal if saves called it with numbers of their own.
    """

    def reached_preemption(self, step: int) -> bool:
        """Never."""
        return False


def _on_all_processes(condition: bool) -> bool:
    return bool(np.all(multihost_utils.process_allgather(np.asarray(condition))))
