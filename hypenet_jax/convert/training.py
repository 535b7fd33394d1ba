"""The training loop of a stage, from its inputs to its trained parameters, and its loss on held-out text meanwhile."""

import contextlib
import itertools
import logging
from collections.abc import Callable

import jax

from hypenet_jax import runtime
from hypenet_jax.axes import Params
from hypenet_jax.config import StageConfig
from hypenet_jax.convert.inputs import Inputs
from hypenet_jax.convert.programs import build_stage
from hypenet_jax.data.batch import Batch, log_positions
from hypenet_jax.data.loader import Loader, heldout_batches, loader
from hypenet_jax.halo.method import TrainedMethod
from hypenet_jax.sharding import place_batch, row_parts
from hypenet_jax.train.checkpoint import Checkpoints
from hypenet_jax.train.loop import fit
from hypenet_jax.train.metrics import Metrics, MetricsFile, Sink, TensorBoard
from hypenet_jax.train.progress import ProgressDisplay
from hypenet_jax.train.provenance import Provenance
from hypenet_jax.train.rates import summary
from hypenet_jax.train.stage import Stage
from hypenet_jax.train.state import create_state

MOST_BATCHES = 16  # at the batch of training: enough to tell its own trend from noise

log = logging.getLogger("hypenet_jax")


def train(
    inputs: Inputs,
    provenance: Provenance,
    stop: Callable[[int], bool],
    start: Callable[[Params], Params] | None = None,
    first_batch: int = 0,
) -> Params:
    """Trains, or goes on training from the last checkpoint of the same provenance.

    Args:
      start: what makes the parameters before the first step of the initial weights, which None leaves as they are.
      first_batch: of the text that is trained on.
    Raises:
      CheckpointError: the checkpoints are of another provenance.
      Preempted: `stop` said so; everything is saved.
    """
    config, mesh, weights = inputs.config, inputs.mesh, inputs.weights
    method, training = config.method, config.training
    assert isinstance(method, TrainedMethod)
    assert training is not None
    program, keys = build_stage(config, mesh), runtime.keys(config.seed)
    params = method.initial_weights(inputs.models, weights, keys, program.shardings)
    stage, optimizer, evaluates = program.stage, program.optimizer, training.loop.evaluate_every
    trained = summary(optimizer.config.rates, program.shapes, stage.trainable)
    log.info("%s: %s", config.name, trained)
    sinks: list[Sink] = [
        MetricsFile(config.folder / "metrics.jsonl", loss_name=method.loss_name),
        ProgressDisplay(training.loop.steps, config.name),
    ]
    if training.tensorboard:
        sinks.append(TensorBoard(config.folder / "tensorboard"))
    with (
        contextlib.closing(loader(config.data, inputs.prepared, *row_parts(mesh))) as batches,
        contextlib.closing(Checkpoints(config.folder / "checkpoints", provenance)) as checkpoints,
        contextlib.closing(Metrics(*sinks)) as metrics,
    ):
        if jax.process_index() == 0:
            _log_text(config, batches, range(first_batch, first_batch + training.loop.steps))
        batches.position = first_batch
        if start is not None and not checkpoints.steps():
            params = start(params)
        trained = fit(
            stage,
            optimizer,
            create_state(params, stage.trainable, optimizer, program.shardings),
            weights.teacher,
            batches,
            training.loop,
            checkpoints=checkpoints,
            metrics=metrics,
            mesh=mesh,
            evaluate=heldout_loss(stage, inputs) if evaluates else None,
            stop=stop,
        ).weights
    return jax.tree.map(lambda leaf, given: leaf.astype(given.dtype), trained, program.shapes)


def _log_text(config: StageConfig, batches: Loader, numbers: range) -> None:
    """Says which rows are trained on when, and how far from the start of their segment the tokens stand."""
    for phase in config.data.phases if config.data.curriculum else ():
        first = max(phase.first_batch - numbers.start, 0) + 1
        rows, length = phase.data.sequences_per_step, phase.data.context_length
        log.info("%s: from step %d on, %d rows of %d tokens", config.name, first, rows, length)
    log_positions(config.name, config.data.context_length, batches.read, numbers)


def heldout_loss(stage: Stage, inputs: Inputs) -> Callable[[Params], dict[str, float]]:
    """Student parameters -> "loss" and the stage's other means over the same first held-out rows.

    Means are over all tokens of at most MOST_BATCHES batches: their sums and weights are added up, then divided once.

    Raises:
      ValueError: no document of the text is held out.
    """
    data, prepared = inputs.config.data, inputs.prepared
    if prepared.num_tokens("heldout") == 0:
        raise ValueError(
            f"{prepared.folder} holds out no document, so nothing can be evaluated: prepare it with a "
            "larger heldout_fraction, or set evaluate_every to None"
        )
    host, hosts = row_parts(inputs.mesh)

    @jax.jit
    def sums(params: Params, frozen: Params | None, batch: Batch):
        loss, means = (stage.heldout or stage.loss)(params, frozen, batch)
        return {"loss": loss, **means}

    def evaluate(params: Params) -> dict[str, float]:
        batches = heldout_batches(
            prepared,
            data.context_length,
            data.sequences_per_step,
            data.reset_documents,
            data.join_below,
        )
        own = (
            place_batch(jax.tree.map(lambda rows: rows[host::hosts], batch), inputs.mesh)
            for batch in itertools.islice(batches, MOST_BATCHES)
        )
        parts = [sums(params, inputs.weights.teacher, batch) for batch in own]
        means = jax.tree.map(lambda *part: sum(part), *parts)
        return {name: float(mean.value()) for name, mean in means.items()}

    return evaluate
