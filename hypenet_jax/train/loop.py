"""fit, the only training loop: resume, step, record, checkpoint, evaluate, stop."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import jax
from jax.sharding import Mesh

from hypenet_jax.axes import Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.sharding import on_mesh, place_batch
from hypenet_jax.train.checkpoint import Checkpoints
from hypenet_jax.train.errors import NumericsError, Preempted
from hypenet_jax.train.metrics import Metrics
from hypenet_jax.train.optimizer import Optimizer
from hypenet_jax.train.stage import Stage
from hypenet_jax.train.state import TrainState
from hypenet_jax.train.step import make_train_step

log = logging.getLogger("hypenet_jax")


@runtime_checkable
class Batches(Protocol):
    """An endless iterator over this process's rows as numpy; setting `position`, of the next batch, seeks."""

    position: int

    def __next__(self) -> Batch: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Counts of the loop, in steps.

    Attributes:
      steps: of the whole run.
      accumulate: micro-batches per step.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      evaluate_every: steps between evaluations on held-out text, also done before the first step and after the last;
        None for no evaluation.
      max_skips: number of consecutive non-finite updates that ends the run.
      roll_back_to: resume from this step's checkpoint and move newer ones aside, once.
    """

    steps: int
    accumulate: int
    checkpoint_every: int
    evaluate_every: int | None = None
    max_skips: int = 10
    roll_back_to: int | None = None

    def __post_init__(self) -> None:
        if any(value is not None and value < 1 for value in dataclasses.astuple(self)):
            raise ValueError(f"{self}: every count must be at least 1")


def fit(
    stage: Stage,
    optimizer: Optimizer,
    state: TrainState,
    frozen: Params | None,
    batches: Batches,
    config: LoopConfig,
    *,
    checkpoints: Checkpoints,
    metrics: Metrics,
    mesh: Mesh | None = None,
    evaluate: Callable[[Params], Mapping[str, float]] | None = None,
    stop: Callable[[int], bool] = lambda step: False,
) -> TrainState:
    """Trains to `config.steps`, resuming from the newest checkpoint if there is one.

    On the same devices, an interrupted and resumed run gives the same bits as an uninterrupted one.
    The state is consumed: its buffers are donated, or freed when a checkpoint replaces it.

    Args:
      frozen: the teacher's parameters, already placed; read by the loss, never saved.
      evaluate: student parameters (`TrainState.weights`) to metrics, recorded beside those of training; those before
        the first step as step 0.
      stop: called with every step's number, the last one too; True saves and raises Preempted.
    Raises:
      Preempted: `stop` returned True; the state is saved and the same call resumes.
      NumericsError: `max_skips` consecutive updates were not finite. None was applied.
      CheckpointError: the folder belongs to another run, or a save failed.
    """
    with on_mesh(mesh):
        if config.roll_back_to is not None:
            checkpoints.roll_back(config.roll_back_to)
        state = _resume(state, batches, checkpoints)
        first = int(state.step)
        metrics.resume(first)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        step = make_train_step(stage, optimizer, accumulate=config.accumulate, shardings=shardings)
        recorder = _Recorder(metrics, config.max_skips)
        if evaluate is not None and first == 0:
            metrics.write(0, "evaluation", evaluate(state.weights))
        for number in range(first + 1, config.steps + 1):
            began = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - began
            state, step_metrics = step(state, frozen, place_batch(batch, mesh))
            recorder.add(number, step_metrics, batches.position, waited)
            last = number == config.steps
            if evaluate is not None and (last or _due(number, config.evaluate_every)):
                recorder.drain()
                metrics.write(number, "evaluation", evaluate(state.weights))
            stopping = stop(number)
            if last or stopping or _due(number, config.checkpoint_every):
                recorder.drain()
                metrics.flush()
                checkpoints.save(state, batches.position)
            if stopping:
                checkpoints.wait()
                raise Preempted(f"stopped after step {number} of {config.steps}; saved")
        checkpoints.wait()
    return state


def _resume(state: TrainState, batches: Batches, checkpoints: Checkpoints) -> TrainState:
    if checkpoints.steps():
        # Two states at once may not fit in memory.
        jax.tree.map(lambda leaf: leaf.delete(), state)
    restored, name = checkpoints.restore(state), checkpoints.provenance.stage
    if restored is None:
        log.info("%s: starting", name)
        return state
    state, batches.position = restored
    log.info("%s: going on from step %d, fingerprint holds", name, int(state.step))
    return state


def _due(number: int, every: int | None) -> bool:
    return every is not None and number % every == 0


class _Recorder:
    """Writes metrics one step late, so that the device never waits for the host to read them."""

    def __init__(self, metrics: Metrics, max_skips: int) -> None:
        self._metrics, self._max_skips = metrics, max_skips
        self._pending: tuple[int, dict[str, jax.Array], int, float] | None = None
        self._skipped: list[tuple[int, int]] = []
        self._then = time.monotonic()

    def add(self, number: int, metrics: dict[str, jax.Array], position: int, waited: float) -> None:
        """Takes the metrics of a step and writes those of the step before."""
        self.drain()
        self._pending = (number, metrics, position, waited)

    def drain(self) -> None:
        """Writes the metrics that were not written yet."""
        if self._pending is None:
            return
        number, metrics, position, waited = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        before, self._then = self._then, time.monotonic()
        timing = {"seconds": self._then - before, "data_seconds": waited}
        self._metrics.write(number, "train", {**values, **timing})
        if not values["skipped"]:
            self._skipped.clear()
            return
        self._skipped.append((number, position))
        log.warning("step %d was not finite and is skipped (data position %d)", number, position)
        if len(self._skipped) >= self._max_skips:
            self._metrics.flush()
            places = ", ".join(f"{step} (position {place})" for step, place in self._skipped)
            raise NumericsError(
                f"{len(self._skipped)} updates in a row were not finite and none was applied: "
                f"steps {places}; inspect these batches, or lower peak_lr"
            )
