"""The training loop of a stage, from its inputs to its trained parameters."""

from collections.abc import Callable

from hypenet_jax import runtime
from hypenet_jax.axes import Params
from hypenet_jax.convert.heldout import heldout_loss
from hypenet_jax.convert.inputs import Inputs
from hypenet_jax.convert.programs import build_stage
from hypenet_jax.data.loader import loader
from hypenet_jax.halo.method import TrainedMethod
from hypenet_jax.sharding import row_parts
from hypenet_jax.train.checkpoint import Checkpoints
from hypenet_jax.train.loop import fit
from hypenet_jax.train.metrics import Metrics, MetricsFile, Sink, TensorBoard
from hypenet_jax.train.progress import progress
from hypenet_jax.train.provenance import Provenance
from hypenet_jax.train.state import create_state


def train(
    method: TrainedMethod, inputs: Inputs, provenance: Provenance, *, stop: Callable[[int], bool]
) -> Params:
    """Trains, or goes on training from the last checkpoint of the same provenance.

    Raises:
      CheckpointError: the checkpoints are of another provenance.
      Preempted: `stop` said so; everything is saved.
    """
    config, mesh, weights = inputs.config, inputs.mesh, inputs.weights
    assert config.training is not None
    program, loop = build_stage(config, mesh), config.training.loop
    keys = runtime.keys(config.seed)
    params = method.initial_weights(inputs.models, weights, keys, program.shardings)
    stage, optimizer = program.stage, program.optimizer
    state = create_state(params, stage.trainable, optimizer, program.shardings)
    evaluate = None
    if loop.evaluate_every is not None:
        evaluate = heldout_loss(stage, weights.teacher, config.data, inputs.prepared, mesh)
    batches = loader(config.data, inputs.prepared, *row_parts(mesh))
    checkpoints = Checkpoints(config.folder / "checkpoints", provenance)
    metrics = _metrics(inputs, method.loss_name)
    try:
        state = fit(
            stage,
            optimizer,
            state,
            weights.teacher,
            batches,
            loop,
            checkpoints=checkpoints,
            metrics=metrics,
            mesh=mesh,
            evaluate=evaluate,
            stop=stop,
        )
    finally:
        metrics.close()
        checkpoints.close()
        batches.close()
    return state.params


def _metrics(inputs: Inputs, loss_name: str) -> Metrics:
    config = inputs.config
    assert config.training is not None
    sinks: list[Sink] = [
        MetricsFile(config.folder / "metrics.jsonl", loss_name=loss_name),
        progress(config.training.loop.steps, config.name),
    ]
    if config.training.tensorboard:
        sinks.append(TensorBoard(config.folder / "tensorboard"))
    return Metrics(*sinks)
