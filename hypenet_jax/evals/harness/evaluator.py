"""Tasks of lm-evaluation-harness as a measurement; needs the extra `eval`.

Process 0 runs the harness: it reads the tasks and makes the requests, which are sent to all processes. These respond
together, each with its part of the model and of every batch.
"""

import dataclasses
import functools
import importlib.util
import math
import numbers
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax

from hypenet_jax import runtime
from hypenet_jax.evals.evaluator import Evaluator, Session, check_positive
from hypenet_jax.evals.harness.requests import Request
from hypenet_jax.evals.model import EvalModel, ModelSource
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, Row, Z, wilson
from hypenet_jax.fingerprint import digest
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.weights.hf_config import read_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class HarnessEvaluator(Evaluator):
    """Tasks of lm-evaluation-harness.

    Attributes:
      tasks: names of tasks or groups; none leaves the harness out.
      folder: YAML files of further tasks; None: there are no others.
      max_length: tokens a model may read, longer contexts lose their first ones; None: the
        `max_position_embeddings` of its config.json.
      num_fewshot: examples before each question; None as each task says.
      limit: documents of each task; None all.
      chat: prompts become conversations by the tokenizer's chat template.
      cache: folder where the responses of each model, told apart by its contents, are kept; None keeps none.
    """

    tasks: tuple[str, ...] = ()
    folder: str | None = None
    max_length: int | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    chat: bool = False
    cache: str | None = None

    needs: ClassVar = ("tasks",)
    shown: ClassVar = (
        Presentation(
            metric="harness/*",
            title="Tasks of lm-evaluation-harness",
            note="Prompts and metrics are those of the harness.",
            kind="list",
        ),
    )

    def __post_init__(self) -> None:
        check_positive(self, "max_length", "limit")

    def check(self, models: Sequence[ModelSource]) -> None:
        """Raises ValueError: the harness is not installed, or the length of a model is not known."""
        if importlib.util.find_spec("lm_eval") is None:
            raise ValueError(
                f"tasks {list(self.tasks)} need lm-evaluation-harness: pip install 'hypenet-jax[eval]'"
            )
        for source in models:
            self._length(source.path)

    def run(self, model: EvalModel, session: Session) -> Report:
        report = Report()
        for task in self.tasks:
            measure = functools.partial(self.measure, model, [task], session.seed)
            report += session.keep(task, measure)
        return report

    def measure(
        self, model: EvalModel, tasks: Sequence[str | Mapping[str, Any]], seed: int = 0
    ) -> Report:
        """Scores of tasks, the same on every process; all processes call it.

        Args:
          model: with several processes its parameters lie on a mesh, inside `on_mesh`.
          tasks: names or groups that the harness knows, paths of YAML files, or whole task configs.
          seed: of sampled continuations.
        Returns:
          A row "harness/METRIC" for each metric of each task and group, its `task`. Intervals of 95 % where a metric is
          a mean over documents: Wilson's where these are hits and misses.
        Raises:
          ValueError: the tokenizer does not fit the model, there is no such task, its documents cannot be had, or it
            wants what is not done here.
          FloatingPointError: the model computes NaN.
        """
        assert model.tokenizer is not None
        model.tokenizer.check_fits(model.decoder.config.vocab_size, repr(model.name))
        cache = self.responses_file(model, seed)  # all processes compute the fingerprint in it
        model = model.with_single_layers() if isinstance(model.decoder, Decoder) else model
        if jax.process_index() > 0:
            return _follow(model)
        try:
            report = report_of(self._results(model, tasks, seed, cache), model.name)
        except Exception as error:
            expected = isinstance(error, ValueError | OSError | RuntimeError)
            message = f"lm-evaluation-harness: {type(error).__name__}: {error}"
            failure = ValueError(message) if expected else RuntimeError(message)
            runtime.broadcast(failure)
            if expected:
                raise failure from error
            raise
        return runtime.broadcast(report)

    def _results(
        self,
        model: EvalModel,
        tasks: Sequence[str | Mapping[str, Any]],
        seed: int,
        cache: pathlib.Path | None,
    ) -> Mapping[str, Any]:
        # Imported here: only who measures its tasks has the harness, and types are checked without it.
        from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]

        from hypenet_jax.evals.harness.model import HarnessModel

        names = [task for task in tasks if isinstance(task, str)]
        manager = _index(self.folder, bool(names))
        unknown = [n for n in names if n not in manager.all_tasks and not pathlib.Path(n).is_file()]
        if unknown:
            raise ValueError(
                f"the harness knows no tasks {unknown}; `lm-eval ls tasks` lists them, and a YAML file can be one"
            )
        return simple_evaluate(
            HarnessModel(model, max_length=self._length(model.folder), seed=seed),
            tasks=list(tasks),
            task_manager=manager,
            num_fewshot=self.num_fewshot,
            limit=self.limit,
            apply_chat_template=self.chat,
            use_cache=None if cache is None else str(cache),
            bootstrap_iters=0,  # its pool of forked processes does not go with JAX's threads
        )

    def responses_file(self, model: EvalModel, seed: int) -> pathlib.Path | None:
        """Where responses of this very model are kept; other weights, tokenizers or settings have another file."""
        if self.cache is None:
            return None
        depends = model.model_fingerprint, self._length(model.folder), seed, runtime.code_version()
        return pathlib.Path(self.cache) / f"{model.name}-{digest(depends)[:16]}"

    def _length(self, folder: pathlib.Path | None) -> int:
        if self.max_length is not None:
            return self.max_length
        assert folder is not None
        length = read_json(folder / "config.json").get("max_position_embeddings")
        if length is None:
            raise ValueError(
                f"{folder / 'config.json'} has no max_position_embeddings; set harness.max_length"
            )
        return length


@functools.cache
def _index(folder: str | None, defaults: bool) -> Any:
    """What the harness knows of tasks; its own are thousands of files, which are read if they are wanted, once."""
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    return TaskManager(include_path=folder, include_defaults=defaults)


def _follow(model: EvalModel) -> Report:
    """Responds along with process 0 until it sends the report, or why there is none."""
    while isinstance(sent := runtime.broadcast(None), Request):
        try:
            for _ in sent.responses(model):
                pass
        except Exception:
            runtime.broadcast(None)  # process 0 has raised the same and sends it
            raise
    if isinstance(sent, Exception):
        raise sent
    return sent


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
