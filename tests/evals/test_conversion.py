"""What is read of the records of a conversion."""

import json
import math
import pathlib

import pytest

from hypenet_jax.evals.conversion import ConversionEvaluator
from hypenet_jax.evals.evaluator import Session
from hypenet_jax.evals.report import Report

LAYERS = 12


def write(path: pathlib.Path, *records: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def trained(step: int, loss: float | None) -> dict:
    return {"step": step, "kind": "train", "loss_name": "KL", "loss": loss, "tokens": 10}


def evaluated(step: int, loss: float) -> dict:
    # JSON of a tree: its keys are sorted as text.
    errors = {f"relative_error/{i}": i + loss for i in sorted(range(LAYERS), key=str)}
    gates = {f"gate/{i}": 0.5 for i in range(LAYERS)}
    nats = {"cross_entropy": loss + math.log(3), "teacher_cross_entropy": loss}
    return {
        "step": step,
        "kind": "evaluation",
        "loss_name": "KL",
        "loss": loss,
        **errors,
        **gates,
        **nats,
    }


@pytest.fixture
def report(tmp_path) -> Report:
    fits = ({"layer": float(i), "tokens": 100.0} for i in range(2))
    errors = {"mixer/before": 670.0, "mixer/after": 0.1}
    write(tmp_path / "align" / "fits.jsonl", *({**fit, **errors} for fit in fits))
    steps = (trained(1, 0.5), trained(2, None), evaluated(2, 0.25), trained(3, 0.2))
    write(tmp_path / "align" / "metrics.jsonl", evaluated(0, 2.0), *steps)
    for name, kept in (("select", [1]), ("half_select", [0, 1])):
        scores = {score: [0.0, 1.0] for score in ("retrieval", "commonsense", "importance")}
        write(tmp_path / name / "selection.json", {"softmax_layers": kept, **scores})
    session = Session(model="", seed=0, folder=tmp_path, key="")
    return ConversionEvaluator(run_dir=str(tmp_path)).compare((), session)


def test_curves_are_over_the_tokens_that_a_stage_had_read_those_of_its_fits_included(report):
    assert report.value("tokens", "align") == 130
    losses = report.select("training_loss", "align", task="KL").rows
    assert [row.tokens for row in losses] == [110, 120, 130]
    held_out = report.select("heldout_loss", "align", task="KL").rows
    assert [(row.tokens, row.value) for row in held_out] == [(100, 2.0), (120, 0.25)]


def test_the_perplexity_gap_is_what_the_students_is_above_the_teachers(report):
    gaps = report.select("heldout_perplexity_gap", "align").rows
    assert [(row.tokens, round(row.value, 6)) for row in gaps] == [(100, 2.0), (120, 2.0)]


def test_errors_of_layers_are_in_the_order_of_the_layers(report):
    rows = report.select("heldout_alignment_error", "align", tokens=120).rows
    assert [row.label for row in rows] == [f"layer {i}" for i in range(LAYERS)]
    assert [row.value for row in rows] == [i + 0.25 for i in range(LAYERS)]


def test_what_evaluations_tell_of_layers_is_shown_over_the_tokens(report):
    rows = report.select("gate_openness", "align").rows
    assert [row.tokens for row in rows] == [100] * LAYERS + [120] * LAYERS
    assert {row.value for row in rows} == {0.5}
    assert not report.select("state_norm", "align").rows


def test_a_loss_that_was_not_finite_is_not_a_number(report):
    assert math.isnan(report.value("training_loss", "align", tokens=120))


def test_errors_of_closed_form_fits_are_told_before_and_after(report):
    for when, error in (("before", 670.0), ("after", 0.1)):
        rows = report.select("mixer_fit_error", "align", task=when).rows
        assert [(row.label, row.value) for row in rows] == [("layer 0", error), ("layer 1", error)]


def test_the_confidence_of_a_selection_is_told_by_layer(tmp_path):
    sure = {"resamples": 9, "rank_low": [1, 1], "rank_high": [2, 1.5], "kept": [0.25, 0.75]}
    scores = {"kl": [0.5, 0.2]}
    chosen = {"softmax_layers": [1], "importance": [0.0, 0.3], "confidence": sure, "scores": scores}
    write(tmp_path / "select" / "selection.json", chosen)
    placed = {"softmax_layers": [0], "importance": None, "confidence": None, "scores": {}}
    write(tmp_path / "even" / "selection.json", placed)
    session = Session(model="", seed=0, folder=tmp_path, key="")
    report = ConversionEvaluator(run_dir=str(tmp_path)).compare((), session)
    ranks = report.select("selection_rank", "select").rows
    assert [(row.value, row.interval) for row in ranks] == [(2, (1, 2)), (1, (1, 1.5))]
    kept = report.select("selection_kept").rows
    assert [(row.value, row.count, row.model) for row in kept] == [
        (0.25, 9, "select"),
        (0.75, 9, "select"),
    ]
    assert [row.value for row in report.select("selection_kl").rows] == [0.5, 0.2]
    assert report.value("softmax_layer", "even") == 0
    assert not report.select("selection_importance", "even").rows


def test_several_selections_are_told_apart(report, tmp_path):
    told = dict(ConversionEvaluator(run_dir=str(tmp_path)).summary(report))
    assert told == {
        "softmax attention stays in by select": "layer 1",
        "softmax attention stays in by half_select": "layers 0, 1",
    }
