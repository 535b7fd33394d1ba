"""What a suite is refused for before anything is measured: mistakes that would show after hours, or not at all."""

import pathlib
from collections.abc import Collection, Sequence

from hypenet_jax.chips import CHIPS
from hypenet_jax.data.tokenizer import Tokenizer, load_tokenizer
from hypenet_jax.evals.config import EvaluationConfig, ModelSource
from hypenet_jax.evals.harness.evaluator import check_harness
from hypenet_jax.evals.ruler.tasks import TASKS
from hypenet_jax.evals.sweep import scaled_fields, swept_model
from hypenet_jax.evals.text import check_tokenizer
from hypenet_jax.weights import read_config


def check_suite(config: EvaluationConfig) -> None:
    """Refuses what cannot be measured as it is asked for.

    Raises:
      CheckpointError, FileNotFoundError: a folder is not that of a model, or has no tokenizer; or see `scaled_fields`.
      ValueError: a task, chip or model is not known; a tokenizer has ids that its model does not know; perplexities of
        different vocabularies would stand beside each other; or see `check_harness`.
    """
    labels = [one.label for one in config.models]
    _check_known("tasks", config.ruler.tasks, TASKS)
    _check_known("chips", config.race.chips, CHIPS)
    _check_known("models", (config.sweep.model or labels[-1],), labels)
    check_harness(config)
    if config.sweep.constants and config.sweep.write:
        scaled_fields(pathlib.Path(swept_model(config).folder) / "config.json")
    _check_vocabularies(config, [_checked_tokenizer(one) for one in config.models])


def _check_known(what: str, asked: Collection[str], known: Collection[str]) -> None:
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise ValueError(f"no {what} {unknown}; there are {', '.join(known)}")


def _checked_tokenizer(one: ModelSource) -> Tokenizer:
    tokenizer = load_tokenizer(one.folder)
    check_tokenizer(tokenizer, read_config(one.folder), one.label)
    return tokenizer


def _check_vocabularies(config: EvaluationConfig, tokenizers: Sequence[Tokenizer]) -> None:
    """Perplexities compare where they are of the same tokens."""
    asked = config.perplexity
    if not (asked.lengths or asked.position_length or asked.sliding_length):
        return
    each = zip(config.models, tokenizers, strict=True)
    reading = [(one.label, own.backend.get_vocab()) for one, own in each if one.reads]
    other = [label for label, words in reading if words != reading[0][1]]
    if other:
        raise ValueError(
            f"{other} have another vocabulary than {reading[0][0]!r}: their perplexities would be of different "
            "tokens; measure them apart, or give them reads=False in a config"
        )
