"""Measures models in folders: order, cache, resumption and files. It knows no kind of measurement."""

import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

from hypenet_jax import runtime
from hypenet_jax.config_file import resolved
from hypenet_jax.data.tokenizer import load_tokenizer
from hypenet_jax.evals.cache import ResultCache
from hypenet_jax.evals.checks import CheckResult
from hypenet_jax.evals.config import EvaluationConfig
from hypenet_jax.evals.evaluator import Evaluator, Session
from hypenet_jax.evals.model import EvalModel, ModelSource, open_model
from hypenet_jax.evals.present.units import length_text
from hypenet_jax.evals.report import Report
from hypenet_jax.evals.results import Results
from hypenet_jax.evals.text import check_tokenizer
from hypenet_jax.sharding import make_mesh, on_mesh
from hypenet_jax.train.provenance import versions
from hypenet_jax.weights import read_config

log = logging.getLogger("hypenet_jax")

# Text read to the models: windows are spread over the longest context and this many tokens.
TEXT_TOKENS = 2**20


def evaluate(
    config: EvaluationConfig, *, stop: Callable[[int], bool] = lambda part: False
) -> Results:
    """Measures every model, prints the numbers and writes `config.out`: index.html, report.jsonl and checks.json.

    What cannot be measured, such as a length that the text does not fill, is a row "failed" that says why. An
    evaluation that was cut off resumes after the last part of a measurement that it finished.

    Args:
      stop: asked before every part of a measurement; True raises Preempted.
    Returns:
      The numbers, and whether the checks hold.
    Raises:
      CheckpointError, FileNotFoundError, ValueError: see `check_evaluation` and `open_model`.
      Preempted: `stop` said so.
    """
    check_evaluation(config)
    measuring = _Measuring(config, make_mesh(config.mesh), stop)
    with on_mesh(measuring.mesh):
        report = measuring.each() + measuring.together()
    results = _results(config, report)
    if jax.process_index() == 0:
        print(report.table())
        for check in results.checks:
            print(check.line())
        _write(config, results)
    runtime.meet("report written")
    measuring.cache.clear()
    return results


def check_evaluation(config: EvaluationConfig) -> None:
    """Refuses what cannot be measured as the config says, before anything is measured.

    Raises:
      CheckpointError, FileNotFoundError: a folder is not that of a model, or has no tokenizer.
      ValueError: a tokenizer has ids that its model does not know, or an evaluator refuses its models.
    """
    for source in config.models:
        check_tokenizer(load_tokenizer(source.folder), read_config(source.folder), source.label)
    for evaluator in active(config).values():
        evaluator.check(evaluator.selected(config.models))


def active(config: EvaluationConfig) -> dict[str, Evaluator]:
    """The measurements that measure something."""
    return {name: one for name, one in config.measurements.items() if one.active}


@dataclasses.dataclass(frozen=True)
class _Measuring:
    """One run of an evaluation."""

    config: EvaluationConfig
    mesh: Mesh
    stop: Callable[[int], bool]

    @functools.cached_property
    def cache(self) -> ResultCache:
        """Rows depend on the code, on the mesh, and on what `_session` adds."""
        key = f"{runtime.code_version()}\n{self.config.mesh}\n{self.config.seed}"
        return ResultCache(pathlib.Path(self.config.out) / "parts", key)

    def each(self) -> Report:
        """Model after model, each with all that measures it alone: only one is loaded at a time."""
        report, alone = Report(), {n: e for n, e in active(self.config).items() if not e.together}
        for source in self.config.models:
            chosen = {n: e for n, e in alone.items() if source in e.selected(self.config.models)}
            if not chosen:
                continue
            model = self._opened(source)
            fingerprint = model.fingerprint
            for name, evaluator in chosen.items():
                log.info("evaluate: %s, %s", source.label, name)
                session = self._session(evaluator, source.label, fingerprint)
                report += evaluator.run(model, session)
        return report

    def together(self) -> Report:
        """What compares models; those stay loaded until all is compared."""
        report, opened = Report(), functools.cache(self._opened)
        for name, evaluator in active(self.config).items():
            if evaluator.together:
                sources = evaluator.selected(self.config.models)
                log.info(
                    "evaluate: %s of %s", name, ", ".join(s.label for s in sources) or "stages"
                )
                models = [opened(source) for source in sources]
                keys = [key for model in models for key in (model.name, model.fingerprint)]
                first = models[0].name if models else name
                report += evaluator.compare(models, self._session(evaluator, first, *keys))
        return report

    def _opened(self, source: ModelSource) -> EvalModel:
        context = max((one.text_tokens for one in active(self.config).values()), default=0)
        at_most, dtype = context + TEXT_TOKENS, self.config.dtype
        return open_model(source, self.mesh, dtype=dtype, text=self.config.text, at_most=at_most)

    def _session(self, evaluator: Evaluator, model: str, *fingerprints: str) -> Session:
        """With the cache of this very measurement; other models in its list change nothing."""
        numbers = repr(dataclasses.replace(evaluator, models=None))
        cache = self.cache.of(numbers, *fingerprints)
        return Session(
            model=model, seed=self.config.seed, mesh=self.mesh, cache=cache, stop=self.stop
        )


def _results(config: EvaluationConfig, report: Report) -> Results:
    measurements = tuple(active(config).values())
    checks = tuple(check.result(report) for check in config.checks)
    return Results(
        title=config.title,
        lead=config.lead,
        models=tuple(source.label for source in config.models),
        summary=_summary(measurements, report, checks),
        report=report,
        presentations=tuple({p.metric: p for m in measurements for p in m.presentations}.values()),
        checks=checks,
    )


def _summary(
    measurements: Sequence[Evaluator], report: Report, checks: Sequence[CheckResult]
) -> tuple[tuple[str, str], ...]:
    """The head of the page: how far it went, what held, and what each measurement says in short."""
    measured = Report(tuple(row for row in report.rows if row.metric != "failed"))
    pairs = [("longest context", length_text(max(measured.lengths, default=0)))]
    if checks:
        held = sum(check.passed for check in checks)
        pairs.append(("checks that hold", f"{held} of {len(checks)}"))
    pairs += [pair for one in measurements for pair in one.summary(report)]
    failed = sum(row.count for row in report.select("failed").rows)
    return (*pairs, ("samples that failed", f"{failed}"))


def _write(config: EvaluationConfig, results: Results) -> None:
    """All files of an evaluation."""
    # Imported here: matplotlib and jinja2 take half a second, and only this process draws.
    from hypenet_jax.evals.present.write import write_results

    folder = pathlib.Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.jsonl").write_text(results.report.to_json_lines(), encoding="utf-8")
    about = {
        "checks": [dataclasses.asdict(check) for check in results.checks],
        "versions": versions(),
        "config": resolved(config),
    }
    (folder / "checks.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    write_results(folder, results, config.document)
    print(f"report: {folder / 'index.html'}")
