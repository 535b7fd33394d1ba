"""Tasks of lm-evaluation-harness as rows of a report; importing this needs the extra `eval`.

Process 0 runs the harness: it reads the tasks and asks. What it asks is sent to all processes, which answer together,
each with its part of the model and of every batch.
"""

import dataclasses
import functools
import math
import numbers
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

from hypenet_jax.data.tokenizer import Tokenizer
from hypenet_jax.evals.harness.continuation import continuations
from hypenet_jax.evals.harness.likelihood import Likelihoods, likelihoods
from hypenet_jax.evals.harness.model import HarnessModel, Question
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.report import Report, Row, Z, wilson
from hypenet_jax.evals.text import check_tokenizer
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.runtime import broadcast


@dataclasses.dataclass(frozen=True)
class _Failure:
    """Process 0 could not evaluate; `expected`: because of what it was given."""

    said: str
    expected: bool


def evaluate_with_harness(
    subject: EvalModel,
    tokenizer: Tokenizer,
    tasks: Sequence[str | Mapping[str, Any]],
    *,
    max_length: int,
    end_ids: Sequence[int] = (),
    task_folders: Sequence[pathlib.Path] = (),
    num_fewshot: int | None = None,
    limit: int | None = None,
    chat: bool = False,
    cache: pathlib.Path | None = None,
    seed: int = 0,
) -> Report:
    """Scores of tasks, the same on every process; all processes call it.

    Args:
      subject: the model; with several processes its parameters lie on a mesh, inside `on_mesh`.
      tokenizer: of the model's folder.
      tasks: names or groups that the harness knows, paths of YAML files, or whole task configs.
      max_length: tokens the model may read; longer contexts lose their first ones.
      end_ids: tokens that end a text, besides the tokenizer's end token.
      task_folders: further YAML files with tasks, to be called by name.
      num_fewshot: examples before each question; None as each task says.
      limit: documents of each task; None all.
      chat: prompts become conversations by the tokenizer's chat template.
      cache: file that keeps answers, so that a run which was cut off goes on.
      seed: of sampled continuations.
    Returns:
      A row for each metric of each task and group, its `task`. Intervals of 95 % where a metric is a mean
      over documents: Wilson's where these are hits and misses.
    Raises:
      ValueError: the tokenizer does not fit the model, there is no such task, its documents cannot be had, or it asks
        for what is not done here.
      FloatingPointError: the model computes NaN.
    """
    check_tokenizer(tokenizer, subject.decoder.config, subject.name)
    subject = subject.with_single_layers() if isinstance(subject.decoder, Decoder) else subject
    if jax.process_index() > 0:
        return _follow(subject, tokenizer)
    model = HarnessModel(
        lambda question: answers(subject, tokenizer, broadcast(question)),
        tokenizer,
        name=subject.name,
        max_length=max_length,
        end_ids=end_ids,
        seed=seed,
    )
    try:
        found = simple_evaluate(
            model,
            tasks=list(tasks),
            task_manager=_manager(tasks, task_folders),
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=chat,
            use_cache=None if cache is None else str(cache),
            bootstrap_iters=0,  # its pool of forked processes does not go with JAX's threads
        )
        report = report_of(found, subject.name)
    except Exception as error:
        expected = isinstance(error, ValueError | OSError | RuntimeError)
        failure = _Failure(f"{type(error).__name__}: {error}", expected)
        broadcast(failure)
        if expected:
            raise ValueError(_told(failure)) from error
        raise
    return broadcast(report)


def _manager(
    tasks: Sequence[str | Mapping[str, Any]], folders: Sequence[pathlib.Path]
) -> TaskManager:
    """What the harness knows of tasks.

    Raises:
      ValueError: one is called by a name that it does not know.
    """
    named = [task for task in tasks if isinstance(task, str)]
    manager = _index(tuple(folders), bool(named))
    unknown = [
        task for task in named if task not in manager.all_tasks and not pathlib.Path(task).is_file()
    ]
    if unknown:
        raise ValueError(
            f"the harness knows no tasks {unknown}; `lm-eval ls tasks` lists them, and a YAML file can be one"
        )
    return manager


@functools.cache
def _index(folders: tuple[pathlib.Path, ...], defaults: bool) -> TaskManager:
    """It reads the thousands of files of the harness's own tasks, if they are wanted, each time one is made."""
    return TaskManager(include_path=list(folders) or None, include_defaults=defaults)


def answers(
    subject: EvalModel, tokenizer: Tokenizer, question: Question
) -> Iterator[tuple[int, Any]]:
    """Index of a row and the answer for it, in the order in which they are found."""
    if isinstance(question, Likelihoods):
        return likelihoods(subject, question)
    return continuations(subject, tokenizer, question)


def _follow(subject: EvalModel, tokenizer: Tokenizer) -> Report:
    """Answers along with process 0 until it sends the report."""
    while isinstance(sent := broadcast(None), Question):
        try:
            for _ in answers(subject, tokenizer, sent):
                pass
        except Exception:
            broadcast(None)  # process 0 met the same and says so
            raise
    if isinstance(sent, _Failure):
        raise ValueError(_told(sent)) if sent.expected else RuntimeError(_told(sent))
    return sent


def _told(failure: _Failure) -> str:
    return f"lm-evaluation-harness: {failure.said}"


def report_of(found: Mapping[str, Any], model: str) -> Report:
    """The results of the harness as rows; "acc,none" becomes "acc", other filters stay in the name."""
    rows = []
    for task, numbers_of_task in found["results"].items():
        samples = found.get("samples", {}).get(task, [])
        for key, value in numbers_of_task.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, numbers.Real):
                continue
            values = [one.get(metric) for one in samples if one["filter"] == filtered]
            low, high = _interval(values, float(value))
            name = metric if filtered == "none" else key
            count = numbers_of_task["sample_len"]
            rows.append(Row(name, model, float(value), count, low=low, high=high, task=task))
    return Report(tuple(rows))


def _interval(values: Sequence[Any], mean: float) -> tuple[float | None, float | None]:
    """Around a number that is the mean of these; none around another."""
    if len(values) < 2 or not all(isinstance(value, numbers.Real) for value in values):
        return None, None
    if not math.isclose(statistics.fmean(values), mean, rel_tol=1e-6, abs_tol=1e-9):
        return None, None
    if set(values) <= {0, 1}:
        return wilson(round(sum(values)), len(values))
    error = statistics.stdev(map(float, values)) / math.sqrt(len(values))
    return mean - Z * error, mean + Z * error
