"""What the stages of a conversion recorded, and how it is shown."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from hypenet_jax.evals.evaluator import Evaluator, Session
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, Row
from hypenet_jax.train.metrics import read_metrics

_recorded = functools.partial(Presentation, section="How it was converted")
PRESENTATIONS = (
    _recorded(metric="training_loss", title="Training loss", kind="curves"),
    _recorded(
        metric="alignment_error",
        title="Imitating each layer",
        note="Error of each new mixer relative to the variance of what it imitates.",
        kind="bars",
        label="relative error",
    ),
    _recorded(
        metric="fit_error_before",
        title="Output projections before their closed-form fit",
        note="Weighted squared error of what each projection should write, relative to it.",
        kind="bars",
        label="relative error",
    ),
    _recorded(
        metric="fit_error",
        title="Output projections after their closed-form fit",
        note="The same on the same tokens, once fitted.",
        kind="bars",
        label="relative error",
    ),
    _recorded(
        metric="selection_importance",
        title="Which layers keep softmax attention",
        note="How much the model needs softmax attention in each layer.",
        kind="bars",
        label="importance",
    ),
    _recorded(metric="tokens", title="Training tokens", unit="count", kind="list"),
)

# A loss curve has at most this many points, each the mean of its neighbours.
CURVE_POINTS = 240


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversionEvaluator(Evaluator):
    """What the stages of a conversion recorded in its folder; no model is loaded for it.

    Attributes:
      run_dir: folder of the conversion.
    """

    models: tuple[str, ...] | None = ()
    run_dir: str

    together: ClassVar[bool] = True
    shown: ClassVar = PRESENTATIONS

    def compare(self, models: Sequence[EvalModel], session: Session) -> Report:
        """The rows of each stage in the order in which they ended; its name stands for the model's.

        Returns:
          "tokens" of a stage, and "training_loss" by step; "alignment_error" of each layer at the first and the last
          step, "alignment_error_drop" and "alignment_error_worst" of stage 1; "fit_error_before" and "fit_error" of
          each output projection that was fitted in closed form; "selection_retrieval",
          "selection_commonsense" and "selection_importance" of each layer of a selection, and "softmax_layer" of each
          layer that it keeps.
        """
        folder, report = pathlib.Path(self.run_dir), Report()
        files = [file for name in RECORDS for file in folder.glob(f"*/{name}")]
        for file in sorted(files, key=lambda file: file.stat().st_mtime):
            report += RECORDS[file.name](file)
        return report

    def summary(self, report: Report) -> Sequence[tuple[str, str]]:
        kept = [f"{row.value:g}" for row in report.select("softmax_layer").rows]
        names = f"layer{'s' * (len(kept) > 1)} {', '.join(kept)}" if kept else "none"
        selected = report.select("selection_importance").rows
        return [("softmax attention stays in", names)] if selected else []


def training_rows(file: pathlib.Path) -> Report:
    """What a stage that trains recorded in its metrics.jsonl."""
    stage = file.parent.name
    records = [record for record in read_metrics(file) if record["kind"] == "train"]
    if not records:
        return Report()
    first, last = records[0], records[-1]
    tokens = sum(record["tokens"] for record in records) + fitted_tokens(file.parent)
    rows = [Row("tokens", stage, float(tokens), 1)]
    size, task = -(-len(records) // CURVE_POINTS), first.get("loss_name", "loss")
    for start in range(0, len(records), size):
        part = records[start : start + size]
        loss, step = sum(record["loss"] for record in part) / len(part), part[-1]["step"]
        rows.append(Row("training_loss", stage, loss, len(part), task=task, step=step))
    for when, record in (("first step", first), ("last step", last)):
        rows += [
            Row("alignment_error", stage, error, 1, label=layer, task=when)
            for layer, error in _errors(record).items()
        ]
    if errors := _errors(last):
        rows.append(Row("alignment_error_drop", stage, 1.0 - last["loss"] / first["loss"], 1))
        rows.append(Row("alignment_error_worst", stage, max(errors.values()), 1))
    return Report(tuple(rows))


def fit_rows(file: pathlib.Path) -> Report:
    """What a stage recorded of the output projections that it fitted in closed form."""
    stage, rows = file.parent.name, []
    if not (file.parent / "metrics.jsonl").exists():  # the stage trains nothing
        rows.append(Row("tokens", stage, fitted_tokens(file.parent), 1))
    for record in read_metrics(file):
        label = f"layer {record['layer']:g}"
        for metric, when in (("fit_error_before", "before"), ("fit_error", "after")):
            rows += [
                Row(metric, stage, record[name], 1, label=label, task=name.split("/")[0])
                for name in record
                if name.endswith(f"/{when}")
            ]
    return Report(tuple(rows))


def fitted_tokens(stage: pathlib.Path) -> float:
    """Tokens that the closed-form fits of a stage read; all read the same."""
    file = stage / "fits.jsonl"
    records = read_metrics(file) if file.exists() else []
    return records[0]["tokens"] if records else 0.0


def _errors(record: dict[str, Any]) -> dict[str, float]:
    """Error of each layer relative to the variance of its target."""
    named = ((name.partition("relative_error/"), value) for name, value in record.items())
    return {f"layer {layer}": value for (_, found, layer), value in named if found}


def selection_rows(file: pathlib.Path) -> Report:
    """The scores by which layers were selected, and those that keep softmax attention."""
    selection, stage = json.loads(file.read_text(encoding="utf-8")), file.parent.name
    kept = selection["softmax_layers"]
    rows = [Row("softmax_layer", stage, float(i), 1, label=f"layer {i}") for i in kept]
    for score in ("retrieval", "commonsense", "importance"):
        for layer, value in enumerate(map(float, selection[score])):
            becomes = "keeps softmax attention" if layer in kept else "becomes recurrent"
            label = f"layer {layer}"
            rows.append(Row(f"selection_{score}", stage, value, 1, label=label, task=becomes))
    return Report(tuple(rows))


RECORDS: Mapping[str, Callable[[pathlib.Path], Report]] = {
    "fits.jsonl": fit_rows,
    "metrics.jsonl": training_rows,
    "selection.json": selection_rows,
}
"""Files in the folder of a stage, and the rows that each holds."""


def tokens_read(stage: pathlib.Path) -> int:
    """Tokens that the stage of this folder has trained on, those of its closed-form fits included."""
    files = [stage / name for name in RECORDS]
    rows = [row for file in files if file.exists() for row in RECORDS[file.name](file).rows]
    return sum(int(row.value) for row in rows if row.metric == "tokens")
