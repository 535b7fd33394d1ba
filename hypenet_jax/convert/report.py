"""What the stages themselves recorded, and the two files a conversion ends with: report.json and a page to look at."""

import dataclasses
import json
import pathlib
from typing import Any

from hypenet_jax.config import HaloConfig, StageConfig
from hypenet_jax.config_file import resolved
from hypenet_jax.evals import Report, Row
from hypenet_jax.evals.present.page import write_page
from hypenet_jax.evals.present.parts import length_text
from hypenet_jax.evals.present.results import Check, Curve, LayerError, LayerScore, Results
from hypenet_jax.halo.align import AlignConfig
from hypenet_jax.halo.distill import DistillConfig
from hypenet_jax.halo.select import SelectConfig, Selection, read_selection
from hypenet_jax.train.metrics import read_metrics
from hypenet_jax.train.provenance import versions

# Numbers that change from run to run; all others are the same bits for the same config on the same machine.
TIMED = ("prefill_seconds", "prefill_speedup", "decode_seconds", "decode_speedup")
_ERROR = "relative_error/"


def stage_rows(config: HaloConfig) -> Report:
    """Alignment errors, layer scores and tokens, from what the runs left in their folders."""
    align, choice = first_run(config, AlignConfig), first_run(config, SelectConfig)
    first, last = _records(align)[0], _records(align)[-1]
    rows = [
        Row(f"alignment_error_{when}", align.name, error, 1, label=f"layer {layer}")
        for when, record in (("first", first), ("last", last))
        for layer, error in _errors(record).items()
    ]
    drop, worst = 1.0 - last["loss"] / first["loss"], max(_errors(last).values())
    rows.append(Row("alignment_error_drop", align.name, drop, 1))
    rows.append(Row("alignment_error_worst", align.name, worst, 1))
    selection = read_selection(choice.folder / "selection.json")
    for metric in ("retrieval", "commonsense", "importance"):
        rows += [
            Row(f"selection_{metric}", choice.name, value, 1, label=f"layer {i}")
            for i, value in enumerate(getattr(selection, metric))
        ]
    rows += [Row("tokens", run.name, _tokens(run), 1) for run in _trained(config)]
    return Report(tuple(rows))


def write_report(
    folder: pathlib.Path,
    config: HaloConfig,
    report: Report,
    checks: list[Check],
    samples: list[tuple[str, str]],
) -> None:
    """report.json with everything, and index.html for a person."""
    folder.mkdir(parents=True, exist_ok=True)
    timed = Report(tuple(row for row in report.rows if row.metric in TIMED))
    fixed = Report(tuple(row for row in report.rows if row.metric not in TIMED))
    found: dict[str, Any] = {
        "checks": [dataclasses.asdict(check) for check in checks],
        "numbers": [json.loads(line) for line in fixed.to_json_lines().splitlines()],
        "times": [json.loads(line) for line in timed.to_json_lines().splitlines()],
        "samples": [{"prompt": prompt, "continuation": text} for prompt, text in samples],
        "versions": versions(),
        "config": resolved(config),
    }
    (folder / "report.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_page(folder / "index.html", _results(config, report, checks))


def first_run(config: HaloConfig, kind: type) -> StageConfig:
    """The first run of this kind of stage."""
    return next(run for run in config.stages if isinstance(run.method, kind))


def _results(config: HaloConfig, report: Report, checks: list[Check]) -> Results:
    asked = config.evaluation
    assert asked is not None
    align, choice = first_run(config, AlignConfig), first_run(config, SelectConfig)
    first, last = (_errors(_records(align)[i]) for i in (0, -1))
    selection = read_selection(choice.folder / "selection.json")
    passed = sum(check.passed for check in checks)
    gap = report.value("perplexity_gap", asked.student)
    longest = max(report.select("decode_speedup", asked.student).lengths)
    return Results(
        title="From Qwen3 to HypeNet",
        lead="A small Qwen3 teacher, its HypeNet student and controls; every number was measured by this run.",
        models=tuple(one.label for one in asked.candidates),
        summary=(
            ("checks passed", f"{passed} of {len(checks)}"),
            ("held-out perplexity against the teacher", f"{gap:+.1%}"),
            *(
                (
                    f"{what} at {length_text(longest)} against the teacher",
                    f"{report.value(f'{what}_speedup', asked.student, longest):.1f}\u00d7 as fast",
                )
                for what in ("prefill", "decode")
            ),
            ("layers that keep softmax attention", ", ".join(map(str, selection.softmax_layers))),
        ),
        report=report,
        chance=None if asked.catalogue is None else 1.0 / asked.catalogue.entries,
        curves=tuple(_curve(run) for run in _trained(config)),
        alignment=tuple(LayerError(i, first[i], last[i]) for i in first),
        selection=layer_scores(selection),
        checks=tuple(checks),
        tokens={run.name: int(_tokens(run)) for run in _trained(config)},
    )


def _curve(run: StageConfig) -> Curve:
    name = {AlignConfig: "mean squared error", DistillConfig: "KL, nats"}
    return curve_of(run.folder, name.get(type(run.method), "cross entropy, nats"))


def curve_of(folder: pathlib.Path, loss_name: str = "loss") -> Curve:
    """The loss of the stage that left its metrics in a folder."""
    records = _train_records(folder)
    steps, losses = ([record[name] for record in records] for name in ("step", "loss"))
    return Curve(folder.name, steps, losses, loss_name)


def layer_scores(selection: Selection) -> tuple[LayerScore, ...]:
    """A score per layer, and whether the layer was kept."""
    return tuple(
        LayerScore(i, score, i in selection.softmax_layers)
        for i, score in enumerate(selection.importance)
    )


def _trained(config: HaloConfig) -> list[StageConfig]:
    return [run for run in config.stages if run.training is not None]


def _tokens(run: StageConfig) -> float:
    return sum(record["tokens"] for record in _records(run))


def _errors(record: dict[str, Any]) -> dict[int, float]:
    return {
        int(name.removeprefix(_ERROR)): value
        for name, value in record.items()
        if name.startswith(_ERROR)
    }


def _records(run: StageConfig) -> list[dict[str, Any]]:
    return _train_records(run.folder)


def _train_records(folder: pathlib.Path) -> list[dict[str, Any]]:
    return [r for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "train"]
