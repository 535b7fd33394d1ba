"""A whole conversion, stage after stage. Finished stages are kept, so the same call resumes."""

from collections.abc import Callable

from hypenet_jax.config import HaloConfig, StageConfig
from hypenet_jax.config_file import ConfigError
from hypenet_jax.convert.stage import run_stage
from hypenet_jax.evals.runner import evaluate

EVALUATION = "evaluation"


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
      stop: called after every training step, every layer of a selection and before every part of the evaluation; True
        saves what is to save and raises Preempted.
    Returns:
      Whether every required check of the evaluation holds; True where there is none.
    Raises:
      ConfigError: an unknown stage.
    """
    if "evaluate" in (only, start):
        raise ConfigError("evaluate has a new name: evaluation")
    for stage in _chosen(config, only, start):
        run_stage(stage, stop=stop)
    if config.evaluation is None or only not in (None, EVALUATION):
        return True
    return evaluate(config.evaluation, stop=stop).passed


def _chosen(config: HaloConfig, only: str | None, start: str | None) -> tuple[StageConfig, ...]:
    if EVALUATION in (only, start):
        return ()
    if only is not None:
        return (config.stage(only),)
    first = 0 if start is None else config.stages.index(config.stage(start))
    return config.stages[first:]
