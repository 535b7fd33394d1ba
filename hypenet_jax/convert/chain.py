"""A whole conversion, stage after stage. Finished stages are kept, and the same call goes on where it was cut off."""

import contextlib
import functools
import logging
import shutil
from collections.abc import Callable

import jax

from hypenet_jax import runtime
from hypenet_jax.axes import Params
from hypenet_jax.config import HaloConfig, StageConfig
from hypenet_jax.config_file import ConfigError
from hypenet_jax.convert.fits import Fits
from hypenet_jax.convert.inputs import Inputs, first_batches, open_inputs
from hypenet_jax.convert.programs import check_plan_of_rates, student_config
from hypenet_jax.convert.provenance import (
    files_fingerprint,
    is_done,
    provenance_of,
    teacher_fingerprint,
)
from hypenet_jax.convert.selection import Sweep, measure, placed_rows
from hypenet_jax.convert.training import train
from hypenet_jax.evals.conversion import tokens_read
from hypenet_jax.evals.runner import evaluate
from hypenet_jax.halo.method import Work
from hypenet_jax.model.config import with_logit_scale
from hypenet_jax.model.hype import LogLengthScale
from hypenet_jax.train.stage_output import read_stage_output, save_params
from hypenet_jax.weights import save_hf
from hypenet_jax.weights.model_card import ModelCard

EVALUATION = "evaluation"

log = logging.getLogger("hypenet_jax")


def convert(
    config: HaloConfig,
    *,
    only: str | None = None,
    start: str | None = None,
    stop: Callable[[int], bool] = lambda step: False,
) -> bool:
    """Runs the stages in order, then the evaluation.

    Args:
      only: run this stage alone ("evaluation" is the last one).
      start: skip the stages before this one; what they left is still checked by the stages that need it.
      stop: called after every training step, every model of a selection, every kernel fitted in closed form and before
        every part of the evaluation; True saves what is to save and raises Preempted.
    Returns:
      Whether every required check of the evaluation holds; True where there is none.
    Raises:
      ConfigError: an unknown stage.
      ValueError: rates of a stage match nothing.
    """
    if "evaluate" in (only, start):
        raise ConfigError("evaluate has a new name: evaluation")
    stages = config.stages
    if EVALUATION in (only, start):
        stages = ()
    elif only is not None:
        stages = (config.stage(only),)
    elif start is not None:
        stages = stages[stages.index(config.stage(start)) :]
    for stage in stages:
        check_plan_of_rates(stage)
    for stage in stages:
        run_stage(stage, stop=stop)
    if config.evaluation is None or only not in (None, EVALUATION):
        return True
    return evaluate(config.evaluation, stop=stop).passed


def run_stage(config: StageConfig, *, stop: Callable[[int], bool] = lambda step: False) -> None:
    """Runs one stage and leaves `run_dir/name/final`; returns at once if that is there for this very config.

    Args:
      stop: called after every step, scored layer or fitted kernel; True saves what is to save and raises Preempted.
    Raises:
      CheckpointError: the folder belongs to another config, or the stage before has not left its weights.
      Preempted: `stop` said so; everything is saved.
    """
    if is_done(config):
        log.info("%s: done before, %s", config.name, config.folder / "final")
        return
    inputs = open_inputs(config)
    parent, text = inputs.weights.fingerprint, inputs.prepared.text_fingerprint
    teacher, files = teacher_fingerprint(config), files_fingerprint(config)
    provenance = provenance_of(config, parent, teacher, text, files)
    with contextlib.closing(Fits(inputs, provenance, stop)) as fits:
        work = Work(
            models=inputs.models,
            weights=inputs.weights,
            mesh=inputs.mesh,
            folder=config.folder,
            batches=functools.partial(first_batches, inputs),
            train=functools.partial(train, inputs, provenance, stop),
            fit=fits,
            heldout=functools.partial(placed_rows, inputs),
            measure=functools.partial(measure, inputs),
            keep=Sweep(inputs, provenance, stop),
        )
        params = config.method.run(work)
    _export(inputs, params)
    save_params(config.folder / "final", params, provenance)


def _export(inputs: Inputs, params: Params) -> None:
    """Writes the Hugging Face folder, with the tokenizer that the text was read with."""
    config = inputs.config
    if config.export is None:
        return
    if jax.process_index() == 0:
        # An interrupted start of this very stage may have left it.
        shutil.rmtree(config.hf_folder, ignore_errors=True)
    runtime.meet(f"nothing in {config.hf_folder}")
    model, tokenizer = student_config(config), inputs.prepared.folder
    if config.student is not None and config.student.logit_scale is not None:
        # Training leaves it out.
        model = with_logit_scale(model, LogLengthScale(config.student.logit_scale))
    card = ModelCard(teacher=config.teacher_folder, numbers=_tokens_read(config))
    save_hf(
        config.hf_folder, model, params, dtype=config.export, tokenizer_from=tokenizer, card=card
    )


def _tokens_read(config: StageConfig) -> dict[str, int]:
    """What this stage and those whose weights it started from have trained on, for the model card."""
    folders, start_from = [config.folder], config.method.start_from
    while start_from is not None and (final := config.final_of(start_from)).exists():
        folders.append(final.parent)
        start_from = read_stage_output(final, start_from)["config"]["method"].get("start_from")
    return {f"training tokens, {folder.name}": tokens_read(folder) for folder in reversed(folders)}
