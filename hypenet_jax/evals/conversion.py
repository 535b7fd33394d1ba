"""What the stages of a conversion recorded, and how it is shown."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from hypenet_jax.evals.evaluator import Evaluator, Session
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, Row
from hypenet_jax.train.metrics import read_metrics

_SECTION = "How it was converted"
PRESENTATIONS = (
    Presentation(
        metric="training_loss",
        title="Training loss",
        kind="curves",
        section=_SECTION,
    ),
    Presentation(
        metric="alignment_error",
        title="Imitating each layer",
        note="Error of each new mixer relative to the variance of what it imitates.",
        kind="bars",
        label="relative error",
        section=_SECTION,
    ),
    Presentation(
        metric="selection_importance",
        title="Which layers keep softmax attention",
        note="How much the model needs softmax attention in each layer.",
        kind="bars",
        label="importance",
        section=_SECTION,
    ),
    Presentation(
        metric="tokens",
        title="Training tokens",
        unit="count",
        kind="list",
        section=_SECTION,
    ),
)

# A loss curve has at most this many points, each the mean of its neighbours.
CURVE_POINTS = 240
_ERROR = "relative_error/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversionEvaluator(Evaluator):
    """What the stages of a conversion recorded in its folder; no model is loaded for it.

    Attributes:
      run_dir: folder of the conversion.
    """

    models: tuple[str, ...] | None = ()
    run_dir: str

    together: ClassVar[bool] = True

    @property
    def presentations(self) -> tuple[Presentation, ...]:
        return PRESENTATIONS

    def compare(self, models: Sequence[EvalModel], session: Session) -> Report:
        """The rows of each stage, whose name stands for the model's.

        Returns:
          "training_loss" by step and "tokens" of a stage that trains; "alignment_error" of each layer at the first and
          the last step, "alignment_error_drop" and "alignment_error_worst" of stage 1; "selection_retrieval",
          "selection_commonsense" and "selection_importance" of each layer of a selection, and "softmax_layer" of each
          layer that it keeps.
        """
        report = Report()
        for folder in self._stages():
            if (folder / "metrics.jsonl").is_file():
                report += training_rows(folder)
            if (folder / "selection.json").is_file():
                report += selection_rows(folder)
        return report

    def summary(self, report: Report) -> Sequence[tuple[str, str]]:
        kept = [f"{row.value:g}" for row in report.select("softmax_layer").rows]
        names = f"layer{'s' * (len(kept) > 1)} {', '.join(kept)}" if kept else "none"
        selected = report.select("selection_importance").rows
        return [("softmax attention stays in", names)] if selected else []

    def _stages(self) -> list[pathlib.Path]:
        """Folders of the stages, in the order in which they ended."""
        names = ("metrics.jsonl", "selection.json")
        files = [file for name in names for file in pathlib.Path(self.run_dir).glob(f"*/{name}")]
        files.sort(key=lambda file: file.stat().st_mtime)
        return list(dict.fromkeys(file.parent for file in files))


def training_rows(folder: pathlib.Path) -> Report:
    """What a stage that trains recorded."""
    stage = folder.name
    records = [r for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "train"]
    if not records:
        return Report()
    first, last = _errors(records[0]), _errors(records[-1])
    rows = [*_curve(stage, records)]
    for when, errors in (("first step", first), ("last step", last)):
        rows += [
            Row("alignment_error", stage, error, 1, label=f"layer {layer}", task=when)
            for layer, error in errors.items()
        ]
    if first:
        drop = 1.0 - records[-1]["loss"] / records[0]["loss"]
        rows.append(Row("alignment_error_drop", stage, drop, 1))
        rows.append(Row("alignment_error_worst", stage, max(last.values()), 1))
    tokens = float(sum(record["tokens"] for record in records))
    return Report((*rows, Row("tokens", stage, tokens, 1)))


def selection_rows(folder: pathlib.Path) -> Report:
    """The scores by which layers were selected, and those that keep softmax attention."""
    selection = json.loads((folder / "selection.json").read_text(encoding="utf-8"))
    kept, rows = selection["softmax_layers"], []
    for score in ("retrieval", "commonsense", "importance"):
        for layer, value in enumerate(selection[score]):
            becomes = "keeps softmax attention" if layer in kept else "becomes recurrent"
            metric, label = f"selection_{score}", f"layer {layer}"
            rows.append(Row(metric, folder.name, float(value), 1, label=label, task=becomes))
    rows += [Row("softmax_layer", folder.name, float(i), 1, label=f"layer {i}") for i in kept]
    return Report(tuple(rows))


def _curve(stage: str, records: Sequence[dict[str, Any]]) -> Iterator[Row]:
    name, size = records[0].get("loss_name", "loss"), -(-len(records) // CURVE_POINTS)
    for start in range(0, len(records), size):
        part = records[start : start + size]
        value = sum(record["loss"] for record in part) / len(part)
        yield Row("training_loss", stage, value, len(part), task=name, step=part[-1]["step"])


def _errors(record: dict[str, Any]) -> dict[int, float]:
    """Error of each layer relative to the variance of its target."""
    return {
        int(name.removeprefix(_ERROR)): value
        for name, value in record.items()
        if name.startswith(_ERROR)
    }
