"""Measures models in folders: order, resumption and files. It knows no kind of measurement."""

import dataclasses
import functools
import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

from hypenet_jax import runtime
from hypenet_jax.config_file import resolved
from hypenet_jax.data.tokenizer import load_tokenizer
from hypenet_jax.evals.config import EvaluationConfig
from hypenet_jax.evals.evaluator import Evaluator, Session
from hypenet_jax.evals.model import EvalModel, ModelSource, open_model
from hypenet_jax.evals.report import Report
from hypenet_jax.evals.results import Results
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
    session = Session(
        model="",
        seed=config.seed,
        folder=pathlib.Path(config.out) / "parts",
        key=f"{runtime.code_version()}\n{config.mesh}\n{config.seed}",
        stop=stop,
    )
    measuring = _Measuring(config, make_mesh(config.mesh), session)
    with on_mesh(measuring.mesh):
        report = sum(map(measuring.alone, config.models), Report()) + measuring.together()
    results = Results(config, report)
    if jax.process_index() == 0:
        print(report.table())
        for check in results.checks:
            print(check.line())
        _write(results)
    runtime.meet("report written")
    if jax.process_index() == 0:  # the next run measures anew
        shutil.rmtree(session.folder, ignore_errors=True)
    return results


def check_evaluation(config: EvaluationConfig) -> None:
    """Refuses what cannot be measured as the config says, before anything is measured.

    Raises:
      CheckpointError, FileNotFoundError: a folder is not that of a model, or has no tokenizer.
      ValueError: a tokenizer has ids that its model does not know, a model has nothing that its scale could scale, or
        an evaluator refuses its models.
    """
    for source in config.models:
        vocab_size = source.scaled(read_config(source.folder)).vocab_size
        load_tokenizer(source.folder).check_fits(vocab_size, repr(source.label))
    for evaluator in config.active.values():
        evaluator.check(evaluator.selected(config.models))


@dataclasses.dataclass(frozen=True)
class _Measuring:
    """One run of an evaluation; its session is completed for each measurement."""

    config: EvaluationConfig
    mesh: Mesh
    session: Session

    def alone(self, source: ModelSource) -> Report:
        """All that measures this model by itself; the model is loaded only for as long."""
        chosen = {
            name: evaluator
            for name, evaluator in self.config.active.items()
            if not evaluator.together and source in evaluator.selected(self.config.models)
        }
        models = [self._opened(source)] if chosen else []
        return sum((self._report(*one, models) for one in chosen.items()), Report())

    def together(self) -> Report:
        """What compares models; those stay loaded until all is compared."""
        report, opened = Report(), functools.cache(self._opened)
        for name, evaluator in self.config.active.items():
            if evaluator.together:
                models = [opened(source) for source in evaluator.selected(self.config.models)]
                report += self._report(name, evaluator, models)
        return report

    def _opened(self, source: ModelSource) -> EvalModel:
        context = max((one.text_tokens for one in self.config.active.values()), default=0)
        at_most, dtype = context + TEXT_TOKENS, self.config.dtype
        return open_model(source, self.mesh, dtype=dtype, text=self.config.text, at_most=at_most)

    def _report(self, name: str, evaluator: Evaluator, models: Sequence[EvalModel]) -> Report:
        """With what was kept of this very measurement; other models in its list change nothing."""
        log.info("evaluate: %s of %s", name, ", ".join(m.name for m in models) or "stages")
        keys = [text for model in models for text in (model.name, model.fingerprint)]
        session = self.session.part(repr(dataclasses.replace(evaluator, models=None)), *keys)
        session = dataclasses.replace(session, model=models[0].name if models else name)
        if evaluator.together:
            return evaluator.compare(models, session)
        return evaluator.run(models[0], session)


def _write(results: Results) -> None:
    """All files of an evaluation."""
    # Imported here: matplotlib and jinja2 take half a second, and only this process draws.
    from hypenet_jax.evals.present.write import write_results

    folder = pathlib.Path(results.config.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.jsonl").write_text(results.report.to_json_lines(), encoding="utf-8")
    record = {
        "checks": [dataclasses.asdict(check) for check in results.checks],
        "versions": versions(),
        "config": resolved(results.config),
    }
    (folder / "checks.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_results(folder, results)
    print(f"report: {folder / 'index.html'}")
