"""What the stages of a conversion recorded, and how it is shown."""

import bisect
import dataclasses
import functools
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

from hypenet_jax.evals.evaluator import Evaluator, Session
from hypenet_jax.evals.language.perplexity import exp
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.present.presentation import Number, Presentation
from hypenet_jax.evals.report import Report, Row
from hypenet_jax.train.metrics import read_metrics

_recorded = functools.partial(Presentation, section="How it was converted")
_losses = functools.partial(_recorded, kind="curves", unit="error")
_errors = functools.partial(_recorded, kind="bars", unit="error", label="relative error")
PRESENTATIONS = (
    _losses(metric="training_loss", title="Training loss"),
    _losses(metric="heldout_loss", title="Loss on held-out text while training"),
    _losses(
        metric="heldout_perplexity_gap",
        title="Perplexity above the teacher's while training",
        note="The part by which the student's perplexity of held-out text is above the teacher's.",
    ),
    _errors(
        metric="heldout_alignment_error",
        title="Imitating each layer on held-out text",
        note="Error of each new mixer relative to the variance of what it imitates.",
        kind="curves",
    ),
    _errors(
        metric="heldout_hidden_gap",
        title="Following the teacher's stream on held-out text",
        note="Squared gap between what each layer reads in both models, relative to the teacher's square.",
        kind="curves",
    ),
    _recorded(
        metric="gate_openness",
        title="How open output gates are",
        note="Mean of the gate over tokens and channels of held-out text: 0 is shut, 1 open.",
        kind="curves",
        unit="share",
        label="openness",
    ),
    _recorded(
        metric="state_norm",
        title="Size of recurrent states",
        note="Root mean square of each layer's state after rows of held-out text.",
        kind="curves",
        label="size",
    ),
    _errors(
        metric="alignment_error",
        title="Imitating each layer",
        note="Error of each new mixer relative to the variance of what it imitates.",
    ),
    _errors(
        metric="mixer_fit_error",
        title="Fitting what mixers write in closed form",
        note="Weighted squared error of what each output projection should write, relative to it.",
    ),
    _errors(
        metric="mlp_fit_error",
        title="Fitting what MLPs write in closed form",
        note="The same of the projections of the MLPs.",
    ),
    _recorded(
        metric="selection_importance",
        title="Which layers keep softmax attention",
        note="How much the model needs softmax attention in each layer.",
        kind="bars",
        label="importance",
    ),
    _recorded(
        metric="selection_steps",
        title="Softmax layers one after another",
        note="KL to the teacher, in nats, of the refitted student once each layer was restored, from left to right.",
        kind="bars",
        label="KL, nats",
    ),
    _recorded(
        metric="selection_kept",
        title="How sure the choice of layers is",
        note="Share of {counts} draws of the questions with replacement in which a layer is kept.",
        kind="bars",
        unit="share",
        label="share of draws",
    ),
    _recorded(
        metric="selection_rank",
        title="The rank of each layer",
        note="1 keeps softmax attention first; 95\u00a0% of the ranks in {counts} draws lie in the interval.",
        kind="bars",
        label="rank",
    ),
    _recorded(metric="tokens", title="Training tokens", unit="count", kind="list"),
)

Record: TypeAlias = Mapping[str, Any]
"""A line of metrics.jsonl or fits.jsonl."""

BY_LAYER = {
    "relative_error": "heldout_alignment_error",
    "hidden_gap": "heldout_hidden_gap",
    "gate": "gate_openness",
    "state_norm": "state_norm",
}
"""Names in records of evaluations, before the slash and the layer, and in reports."""

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
          "tokens" of a stage; by the tokens that it had read, those of its closed-form fits included, "training_loss"
          and, of its evaluations, "heldout_loss" and what they told of each layer ("heldout_alignment_error",
          "heldout_hidden_gap", "gate_openness", "state_norm"); "alignment_error" of each layer at the first and the
          last step, "alignment_error_drop" and "alignment_error_worst" of stage 1;
          "mixer_fit_error" and "mlp_fit_error" of what was fitted in closed form; "selection_importance" of each layer
          of a selection, "selection_retrieval" and the like of each kind of scores, "selection_rank" and
          "selection_kept" of its confidence, "selection_steps" of a greedy search, and "softmax_layer" of each layer
          that it keeps.
        """
        folder, report = pathlib.Path(self.run_dir), Report()
        files = [file for name in RECORDS for file in folder.glob(f"*/{name}")]
        for file in sorted(files, key=lambda file: file.stat().st_mtime):
            report += RECORDS[file.name](file)
        return report

    def summary(self, report: Report) -> Sequence[tuple[str, str]]:
        pairs, stages = [], report.select("selection_importance").models
        for stage in stages:
            kept = [f"{row.value:g}" for row in report.select("softmax_layer", stage).rows]
            names = f"layer{'s' * (len(kept) > 1)} {', '.join(kept)}" if kept else "none"
            by = f" by {stage}" if len(stages) > 1 else ""
            pairs.append((f"softmax attention stays in{by}", names))
        return pairs


def training_rows(file: pathlib.Path) -> Report:
    """What a stage that trains recorded in its metrics.jsonl."""
    stage, records = file.parent.name, read_metrics(file)
    steps = [record for record in records if record["kind"] == "train"]
    if not steps:
        return Report()
    read = list(
        itertools.accumulate((s["tokens"] for s in steps), initial=fitted_tokens(file.parent))
    )
    rows = [Row("tokens", stage, float(read[-1]), 1)]
    rows += _loss_rows(stage, steps, read[1:])
    ends = {"first step": steps[0], "last step": steps[-1]}
    errors = {when: _by_layer(record, "relative_error") for when, record in ends.items()}
    for when, layers in errors.items():
        rows += (Row("alignment_error", stage, x, 1, label=n, task=when) for n, x in layers.items())
    if worst := errors["last step"].values():
        drop = 1.0 - _number(steps[-1]["loss"]) / _number(steps[0]["loss"])
        rows.append(Row("alignment_error_drop", stage, drop, 1))
        rows.append(Row("alignment_error_worst", stage, max(worst), 1))
    ends = [0, *(s["step"] for s in steps)]
    for record in records:
        if record["kind"] == "evaluation":
            tokens = int(read[bisect.bisect_right(ends, record["step"]) - 1])
            rows += _evaluation_rows(stage, record, tokens)
    return Report(tuple(rows))


def _loss_rows(stage: str, steps: Sequence[Record], read: Sequence[float]) -> Iterator[Row]:
    """The curve of the loss of a stage, over the tokens that it had read after each step."""
    size = -(-len(steps) // CURVE_POINTS)
    for start in range(0, len(steps), size):
        part = steps[start : start + size]
        loss = sum(_number(step["loss"]) for step in part) / len(part)
        tokens = int(read[start + len(part) - 1])
        yield Row("training_loss", stage, loss, len(part), task=_loss_name(part[0]), tokens=tokens)


def _evaluation_rows(stage: str, record: Record, tokens: int) -> Iterator[Row]:
    """An evaluation on held-out text."""
    loss = _number(record["loss"])
    yield Row("heldout_loss", stage, loss, 1, task=_loss_name(record), tokens=tokens)
    if "teacher_cross_entropy" in record:
        above = _number(record["cross_entropy"]) - _number(record["teacher_cross_entropy"])
        task = "perplexity over the teacher's - 1"
        yield Row("heldout_perplexity_gap", stage, exp(above) - 1, 1, task=task, tokens=tokens)
    for name, metric in BY_LAYER.items():
        for layer, value in _by_layer(record, name).items():
            yield Row(metric, stage, value, 1, label=layer, tokens=tokens)


def _loss_name(record: Record) -> str:
    return record.get("loss_name", "loss")


def _number(value: Number | None) -> float:
    """What was not finite was recorded as null."""
    return math.nan if value is None else float(value)


def _by_layer(record: Record, name: str) -> dict[str, float]:
    """The numbers of this name, in the order of the layers."""
    prefix = f"{name}/"
    named = ((name, error) for name, error in record.items() if name.startswith(prefix))
    errors = sorted((int(name.removeprefix(prefix)), _number(error)) for name, error in named)
    return {f"layer {layer}": error for layer, error in errors}


def fit_rows(file: pathlib.Path) -> Report:
    """What a stage recorded of the output projections that it fitted in closed form."""
    stage, rows = file.parent.name, []
    if not (file.parent / "metrics.jsonl").exists():  # the stage trains nothing
        rows.append(Row("tokens", stage, fitted_tokens(file.parent), 1))
    for record in read_metrics(file):
        label = f"layer {record['layer']:g}"
        for name, error in record.items():
            sublayer, fitted, when = name.partition("/")
            if fitted:
                metric = f"{sublayer}_fit_error"
                rows.append(Row(metric, stage, _number(error), 1, label=label, task=when))
    return Report(tuple(rows))


def fitted_tokens(stage: pathlib.Path) -> float:
    """Tokens that the closed-form fits of a stage read; all read the same."""
    file = stage / "fits.jsonl"
    records = read_metrics(file) if file.exists() else []
    return records[0]["tokens"] if records else 0.0


def selection_rows(file: pathlib.Path) -> Report:
    """The scores by which layers were selected, and those that keep softmax attention."""
    selection, stage = json.loads(file.read_text(encoding="utf-8")), file.parent.name
    kept = selection["softmax_layers"]
    rows = [Row("softmax_layer", stage, float(i), 1, label=f"layer {i}") for i in kept]
    for layer, kl in selection.get("steps", ()):
        rows.append(Row("selection_steps", stage, float(kl), 1, label=f"layer {layer}"))
    # Older versions wrote two kinds of scores beside the importance.
    older = ("retrieval", "commonsense")
    scores = selection.get("scores") or {k: selection[k] for k in older if k in selection}
    columns = {**scores, "importance": selection.get("importance")}
    count, intervals = 1, {}
    if sure := selection.get("confidence"):
        columns |= {"rank": _ranks(selection["importance"]), "kept": sure["kept"]}
        count = sure["resamples"]
        intervals["rank"] = list(zip(sure["rank_low"], sure["rank_high"], strict=True))
    for score, layers in columns.items():
        for layer, value in enumerate(layers or ()):
            becomes = "keeps softmax attention" if layer in kept else "becomes recurrent"
            own: dict[str, Any] = {"label": f"layer {layer}", "task": becomes}
            if score in intervals:
                own["low"], own["high"] = map(float, intervals[score][layer])
            drawn = count if score in ("rank", "kept") else 1
            rows.append(Row(f"selection_{score}", stage, float(value), drawn, **own))
    return Report(tuple(rows))


def _ranks(importance: Sequence[float]) -> list[int]:
    """From 1, the most important; of equal layers the deeper comes first, as in the selection."""
    order = sorted(range(len(importance)), key=lambda i: (importance[i], i), reverse=True)
    return [order.index(layer) + 1 for layer in range(len(importance))]


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
