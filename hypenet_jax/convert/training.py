"""One stage from its config to its final weights; the same call goes on where a run was cut off."""

import logging
import pathlib
import shutil
from collections.abc import Callable

import jax

from hypenet_jax import runtime
from hypenet_jax.axes import Params
from hypenet_jax.config import StageConfig
from hypenet_jax.config_file import resolved
from hypenet_jax.convert.heldout import heldout_loss
from hypenet_jax.convert.initial_weights import initial_weights
from hypenet_jax.convert.models import TEACHER, student_config, teacher_fingerprint
from hypenet_jax.convert.programs import build_stage
from hypenet_jax.data.loader import loader
from hypenet_jax.data.prepare import prepare
from hypenet_jax.data.prepared import Prepared, open_prepared
from hypenet_jax.model.config import with_logit_scale
from hypenet_jax.model.hype import LogLengthScale
from hypenet_jax.sharding import make_mesh, row_parts
from hypenet_jax.train.checkpoint import Checkpoints
from hypenet_jax.train.loop import fit
from hypenet_jax.train.metrics import Metrics, MetricsFile, Sink, TensorBoard
from hypenet_jax.train.progress import progress
from hypenet_jax.train.provenance import Provenance, check_provenance
from hypenet_jax.train.stage_output import StageOutput, read_stage_output, save_params
from hypenet_jax.train.state import create_state
from hypenet_jax.weights import save_hf

log = logging.getLogger("hypenet_jax")

# Beside the settings in what a stage writes: the fingerprint of the text that it read.
TEXT = "text_fingerprint"

# What may change between two starts of one run: where things lie, and how often they are saved.
FREE = (
    "run_dir",
    "teacher_folder",
    "mesh",
    "data.corpus.folder",
    "training.loop",
    "training.tensorboard",
    "training.neighbor_exchange",
)


def train(run: StageConfig, *, stop: Callable[[int], bool] = lambda step: False) -> None:
    """Trains a stage and leaves `run_dir/name/final`; returns at once if that is there for this very config.

    Raises:
      CheckpointError: the folder belongs to another config, or the stage before has not left its weights.
      Preempted: `stop` said so; everything is saved.
    """
    assert run.training is not None
    if is_done(run):
        log.info("%s: done before, %s", run.name, run.folder / "final")
        return
    # data -----------------------------------------------------------------------------------------
    mesh = make_mesh(run.mesh)
    prepared = prepared_data(run)
    batches = loader(run.data, prepared, *row_parts(mesh))
    # model and loss -------------------------------------------------------------------------------
    parts = build_stage(run, mesh)
    start = initial_weights(run, parts, mesh)
    stage, optimizer, where = parts.stage, parts.optimizer, parts.shardings
    state = create_state(start.params, stage.trainable, optimizer, where)
    # loop -----------------------------------------------------------------------------------------
    teacher, text = teacher_fingerprint(run), prepared.text_fingerprint
    provenance = provenance_of(run, start.parent, teacher, text)
    checkpoints = Checkpoints(run.folder / "checkpoints", provenance)
    steps = run.training.loop.steps
    sinks: list[Sink] = [MetricsFile(run.folder / "metrics.jsonl"), progress(steps, run.name)]
    if run.training.tensorboard:
        sinks.append(TensorBoard(run.folder / "tensorboard"))
    metrics = Metrics(*sinks)
    evaluate = None
    if run.training.loop.evaluate_every is not None:
        evaluate = heldout_loss(stage, start.frozen, run.data, prepared, mesh)
    try:
        state = fit(
            stage,
            optimizer,
            state,
            start.frozen,
            batches,
            run.training.loop,
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
    # what the next stage starts from --------------------------------------------------------------
    _export(run, state.params, prepared)
    save_params(run.folder / "final", state.params, provenance)


def _export(run: StageConfig, params: Params, prepared: Prepared) -> None:
    """Writes the Hugging Face folder, with the tokenizer that the text was read with."""
    if run.export is None:
        return
    config = student_config(run)
    if run.student is not None and run.student.logit_scale is not None:
        config = with_logit_scale(config, LogLengthScale(run.student.logit_scale))
    if jax.process_index() == 0:
        # An interrupted start of this very run may have left it.
        shutil.rmtree(run.hf_folder, ignore_errors=True)
    runtime.meet(f"nothing in {run.hf_folder}")
    save_hf(run.hf_folder, config, params, dtype=run.export, tokenizer_from=prepared.folder)


def is_done(run: StageConfig) -> bool:
    """Whether this very run has left its final weights.

    Raises:
      CheckpointError: another config has, or it started from other weights or read another text than those of now.
    """
    final = run.folder / "final"
    there = final.exists()
    # Hosts that do not see the same folder would wait for each other.
    runtime.check_agreement(final_weights=there)
    if not there:
        return False
    parent_output = read_stage_output(final, run.name)
    about = {
        "stage": parent_output.stage,
        "config": parent_output.config,
        "parent": parent_output.parent,
    }
    # A teacher or a text that is gone cannot have changed.
    teacher = teacher_fingerprint(run) or parent_output.config.get(TEACHER)
    text = _text_of(run) or parent_output.config.get(TEXT)
    check_provenance(
        about, provenance_of(run, _parent_of(run, parent_output), teacher, text), str(final)
    )
    return True


def _text_of(run: StageConfig) -> str | None:
    """Fingerprint of the text that was prepared for the run; None where that is gone."""
    folder = pathlib.Path(run.data.corpus.folder)
    there = (folder / "manifest.json").is_file()
    return open_prepared(folder).text_fingerprint if there else None


def _parent_of(run: StageConfig, parent_output: StageOutput) -> str | None:
    """Fingerprint of the weights that the run would start from; the noted one where they are gone."""
    name = getattr(run.method, "start_from", None)
    if name is None or not run.final_of(name).exists():
        return parent_output.parent
    return read_stage_output(run.final_of(name), name).fingerprint


def provenance_of(
    run: StageConfig, parent: str | None, teacher: str | None, text: str | None
) -> Provenance:
    """Whose weights a run writes: its settings, the weights that it starts from, and those of its teacher and text."""
    return Provenance(run.name, {**resolved(run), TEACHER: teacher, TEXT: text}, parent, FREE)


def prepared_data(run: StageConfig) -> Prepared:
    """The tokenised corpus: process 0 prepares it, the others wait and open it."""
    if jax.process_index() == 0:
        prepare(run.data.corpus)
    runtime.meet("data prepared")
    prepared = open_prepared(run.data.corpus.folder)
    runtime.check_agreement(data=prepared.manifest)
    return prepared
