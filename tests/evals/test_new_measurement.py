"""A new kind of measurement is one class and one entry of a config: the runner, its cache, the page and the command
line learn it from there.
"""

import contextlib
import dataclasses
import io
import pathlib

import pytest

from hypenet_jax.config_file import load
from hypenet_jax.evals.checks import Check
from hypenet_jax.evals.config import EvaluationConfig
from hypenet_jax.evals.evaluator import Evaluator, Session
from hypenet_jax.evals.model import EvalModel, HeldOut, ModelSource
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, Row
from hypenet_jax.evals.runner import evaluate

pytestmark = pytest.mark.brief


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerEvaluator(Evaluator):
    """How many layers a model has.

    Attributes:
      times: how often they are counted.
    """

    times: int = 1

    @property
    def presentations(self) -> tuple[Presentation, ...]:
        return (Presentation(metric="layers", title="Layers of the models", kind="list"),)

    def run(self, model: EvalModel, session: Session) -> Report:
        return session.keep("layers", lambda: self._count(model))

    def _count(self, model: EvalModel) -> Report:
        return Report(
            (Row("layers", model.name, float(model.decoder.config.num_layers), self.times),)
        )


FILE = """
from test_new_measurement import config_of

def config(folders: str, out: str):
    return config_of(folders, out)
"""


def config_of(folders: str, out: str) -> EvaluationConfig:
    return EvaluationConfig(
        models=(ModelSource("student", f"{folders}/student"),),
        out=out,
        text=HeldOut(f"{folders}/data"),
        measurements={"layers": LayerEvaluator()},
        checks=(
            Check(metric="layers", model="student", at_least=2.0),
            Check(metric="layers", model="student", at_least=3.0, required=False),
        ),
    )


@pytest.fixture
def config(folders, tmp_path, monkeypatch) -> EvaluationConfig:
    """From a file, with a field of the measurement from the command line."""
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parent)
    file = tmp_path / "config.py"
    file.write_text(FILE)
    words = ["--folders", str(folders), "--out", str(tmp_path / "out"), "--layers.times", "3"]
    return load(str(file), EvaluationConfig, words)


def test_it_runs_is_kept_and_stands_on_the_page(config, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    with contextlib.redirect_stdout(io.StringIO()) as printed, monkeypatch.context() as patch:
        patch.setattr("hypenet_jax.evals.present.write.write_results", stopped)
        with pytest.raises(KeyboardInterrupt):
            evaluate(config)
        patch.undo()
        # What was counted is not counted again.
        patch.setattr(type(config.measurements["layers"]), "_count", stopped)
        results = evaluate(config)
    (row,) = results.report.rows
    assert (row.metric, row.model, row.value, row.count) == ("layers", "student", 2, 3)
    assert "ok     layers of student: 2, at least 2" in printed.getvalue()
    assert "missed, not required layers of student" in printed.getvalue()
    assert results.passed
    page = (pathlib.Path(config.out) / "index.html").read_text()
    assert "at least 3" in page
