"""Tasks of lm-evaluation-harness as rows of a report; importing this needs the extra `eval`.

Process 0 runs the harness: it reads the tasks and makes the requests, which are sent to all processes. These respond
together, each with its part of the model and of every batch.
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
from hypenet_jax.evals.harness.generation import continuations
from hypenet_jax.evals.harness.likelihood import LikelihoodRequest, likelihoods
from hypenet_jax.evals.harness.model import HarnessModel, Request
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.report import Report, Row, Z, wilson
from hypenet_jax.evals.text import check_tokenizer
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.runtime import broadcast


@dataclasses.dataclass(frozen=True)
class _Failure:
    """Process 0 could not evaluate; `expected`: because of what it was given."""

    message: str
    expected: bool


def evaluate_with_harness(
    model: EvalModel,
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
      model: with several processes its parameters lie on a mesh, inside `on_mesh`.
      tokenizer: of the model's folder.
      tasks: names or groups that the harness knows, paths of YAML files, or whole task configs.
      max_length: tokens the model may read; longer contexts lose their first ones.
      end_ids: tokens that end a text, besides the tokenizer's end token.
      task_folders: further YAML files with tasks, to be called by name.
      num_fewshot: examples before each question; None as each task says.
      limit: documents of each task; None all.
      chat: prompts become conversations by the tokenizer's chat template.
      cache: file that keeps responses, so that a run which was cut off goes on.
      seed: of sampled continuations.
    Returns:
      A row "harness/METRIC" for each metric of each task and group, its `task`. Intervals of 95 % where a metric is a
      mean over documents: Wilson's where these are hits and misses.
    Raises:
      ValueError: the tokenizer does not fit the model, there is no such task, its documents cannot be had, or it wants
        what is not done here.
      FloatingPointError: the model computes NaN.
    """
    check_tokenizer(tokenizer, model.decoder.config, model.name)
    model = model.with_single_layers() if isinstance(model.decoder, Decoder) else model
    if jax.process_index() > 0:
        return _follow(model, tokenizer)
    harness_model = HarnessModel(
        lambda request: responses(model, tokenizer, broadcast(request)),
        tokenizer,
        name=model.name,
        max_length=max_length,
        end_ids=end_ids,
        seed=seed,
    )
    try:
        results = simple_evaluate(
            harness_model,
            tasks=list(tasks),
            task_manager=_manager(tasks, task_folders),
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=chat,
            use_cache=None if cache is None else str(cache),
            bootstrap_iters=0,  # its pool of forked processes does not go with JAX's threads
        )
        report = report_of(results, model.name)
    except Exception as error:
        expected = isinstance(error, ValueError | OSError | RuntimeError)
        failure = _Failure(f"{type(error).__name__}: {error}", expected)
        broadcast(failure)
        if expected:
            raise ValueError(_message(failure)) from error
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


def responses(
    model: EvalModel, tokenizer: Tokenizer, request: Request
) -> Iterator[tuple[int, Any]]:
    """Index of a row and the response for it, as batches end."""
    if isinstance(request, LikelihoodRequest):
        return likelihoods(model, request)
    return continuations(model, tokenizer, request)


def _follow(model: EvalModel, tokenizer: Tokenizer) -> Report:
    """Responds along with process 0 until it sends the report."""
    while isinstance(sent := broadcast(None), Request):
        try:
            for _ in responses(model, tokenizer, sent):
                pass
        except Exception:
            broadcast(None)  # process 0 has raised the same and sends it
            raise
    if isinstance(sent, _Failure):
        raise ValueError(_message(sent)) if sent.expected else RuntimeError(_message(sent))
    return sent


def _message(failure: _Failure) -> str:
    return f"lm-evaluation-harness: {failure.message}"


def report_of(results: Mapping[str, Any], model: str) -> Report:
    """The results of the harness as rows; "acc,none" becomes "harness/acc", other filters stay in the name."""
    rows = []
    for task, numbers_of_task in results["results"].items():
        samples = results.get("samples", {}).get(task, [])
        for key, value in numbers_of_task.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, numbers.Real):
                continue
            values = [sample.get(metric) for sample in samples if sample["filter"] == filtered]
            low, high = _interval(values, float(value))
            name = f"harness/{metric if filtered == 'none' else key}"
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
