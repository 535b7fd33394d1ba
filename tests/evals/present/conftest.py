import pathlib

import pytest

from hypenet_jax.evals.checks import Check
from hypenet_jax.evals.config import Document, DocumentFigure, EvaluationConfig
from hypenet_jax.evals.evaluator import Evaluator
from hypenet_jax.evals.model import HeldOut, ModelSource
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.present.write import write_results
from hypenet_jax.evals.report import Report, Row, failure, share
from hypenet_jax.evals.results import Results

MODELS = ("teacher <RoPE>", "student & co")


SHOWN = (
    Presentation(
        metric="needle",
        title="Needles",
        note="{counts} texts",
        unit="share",
        label="accuracy",
        reference=(1 / 16, "chance"),
    ),
    Presentation(metric="needle_by_depth", title="Depth", unit="share", kind="heat map"),
    Presentation(metric="ruler", title="Tasks", unit="share", kind="table"),
    Presentation(metric="harness/*", title="Harness", kind="list"),
    Presentation(
        metric="decode_seconds",
        title="Decode",
        unit="seconds",
        label="time per token",
        better="faster",
        ratio="decode_speedup",
    ),
    Presentation(metric="loss", title="Loss", kind="curves", section="Conversion"),
    Presentation(metric="error", title="Error", kind="bars", label="error", section="Conversion"),
    Presentation(metric="tokens", title="Tokens", unit="count", kind="list", section="Conversion"),
    Presentation(metric="sample", title="Samples", kind="texts"),
    Presentation(metric="answer", title="Answers", kind="answers"),
    Presentation(metric="absent", title="Never measured"),
)


class EveryKind(Evaluator):
    """One presentation of each kind."""

    shown = SHOWN

    def summary(self, report: Report) -> list[tuple[str, str]]:
        return [("needles", "<b>1.00</b>")]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("present") / "new"


@pytest.fixture(scope="session")
def results(folder) -> Results:
    """Rows of every kind of presentation, with text that would be markup if it were not escaped."""
    report = Report()
    for hits, model in enumerate(MODELS, start=3):
        for length in (128, 2048):
            report = report.add(
                share("needle", model, hits, 8, length=length),
                share("needle_by_depth", model, hits, 8, length=length, depth=0.25),
                Row("decode_seconds", model, length / 1e7 / hits, 3, length),
                share("ruler", model, hits, 4, length=length, task="niah <1>"),
            )
        report = report.add(
            share("harness/acc", model, hits, 10, task="arc"),
            Row("sample", model, 3.0, 1, label="<i>and</i> so on", task="Once"),
            Row("answer", model, 3.0, 1, label="if *x* | y:\n    >>> 1", task="def `f`?"),
        )
    report = report.add(
        Row("decode_speedup", MODELS[1], 7.0, 3, 2048),
        Row("tokens", "align", 1000.0, 1),
        Row("tokens", "distill", 2000.0, 1),
        *(Row("loss", "distill", 1 / (1 + i), 1, tokens=i, task="KL") for i in range(100)),
        *(Row("error", "align", 1.0, 1, label=f"layer {i}", task="first step") for i in range(3)),
        Row("error", "align", 0.1, 1, label="layer 0", task="last step"),
        failure(MODELS[1], "vt", "too <long>", 4096, 2),
    )
    config = EvaluationConfig(
        models=tuple(ModelSource(label, "nowhere") for label in MODELS),
        out="not written",
        text=HeldOut("nowhere"),
        measurements={"every": EveryKind()},
        checks=(
            Check(metric="tokens", model="align", at_most=500.0, text="finds <needles>"),
            Check(metric="tokens", model="distill", at_least=1e4, text="is fast", required=False),
        ),
        title="A <title> & more",
        lead="What was done.",
        document=Document(
            path=str(folder / "docs" / "results.md"),
            title="Results",
            description="These models.",
            trained_length=128,
            figures=(
                DocumentFigure(
                    path=str(folder / "docs" / "figures" / "figure.svg"),
                    metrics=("needle", "decode_seconds"),
                ),
                DocumentFigure(
                    path=str(folder / "docs" / "training.svg"), metrics=("absent", "loss", "error")
                ),
                DocumentFigure(path=str(folder / "docs" / "absent.svg"), metrics=("absent",)),
            ),
        ),
    )
    return Results(config, report)


@pytest.fixture(scope="session")
def written(results, folder) -> pathlib.Path:
    """A folder with what `write_results` wrote: the page in new/page, the document in new/docs."""
    write_results(folder / "page", results)
    return folder
