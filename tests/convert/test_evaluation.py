"""The evaluation that a conversion ends with: its models from the folders that it exported, and its own records."""

import contextlib
import dataclasses
import io
import json

import pytest
from tiny_chain import evaluation

from hypenet_jax.convert import convert
from hypenet_jax.evals.checks import Check
from hypenet_jax.evals.report import report_from_json_lines

pytestmark = pytest.mark.brief

CHECKS = (
    Check(metric="alignment_error_worst", model="align", at_least=0.0),
    Check(metric="heldout_top1", model="student", at_least=2.0),
    Check(metric="decode_speedup", model="student", at_least=1e9, required=False),
)


@pytest.fixture(scope="module")
def place(done, tmp_path_factory):
    return tmp_path_factory.mktemp("evaluated") / "run"


@pytest.fixture(scope="module")
def config(done, place):
    measured = dataclasses.replace(evaluation(place), checks=CHECKS)
    return dataclasses.replace(done.copied(place), evaluation=measured)


@pytest.fixture(scope="module")
def said(config):
    """(whether all required checks hold, what was printed)."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        passed = convert(config, only="evaluation")
    return passed, printed.getvalue()


@pytest.fixture(scope="module")
def report(said, place):
    return report_from_json_lines((place / "report" / "report.jsonl").read_text(encoding="utf-8"))


def test_a_required_check_that_fails_makes_the_answer_no_and_is_named(said):
    passed, printed = said
    assert passed is False
    assert "ok     alignment_error_worst of align" in printed
    assert "MISSED heldout_top1 of student" in printed


def test_a_check_that_is_not_required_does_not_make_the_answer_no(config, tmp_path):
    changes = {"out": str(tmp_path), "checks": CHECKS[2:], "measurements": {}}
    only = dataclasses.replace(config.evaluation, **changes)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert convert(dataclasses.replace(config, evaluation=only), only="evaluation")
    assert "missed, not required decode_speedup of student" in printed.getvalue()


def test_every_model_is_measured_at_every_length_that_names_it(report):
    for model, lengths in {"teacher": (16, 32), "student": (16, 32), "scaled": (16,)}.items():
        assert report.select("needle", model).lengths == lengths
    for model in ("teacher", "student"):
        assert report.select("perplexity", model).lengths == (32,)
    assert not report.select("perplexity", "scaled").rows


def test_the_student_is_compared_with_the_teacher_on_held_out_text(report):
    student, teacher = (report.value("heldout_perplexity", m) for m in ("student", "teacher"))
    gap = report.value("perplexity_gap", "student")
    assert gap == pytest.approx(student / teacher - 1)
    assert report.value("heldout_kl", "student") > 0
    assert not report.select("heldout_kl", "teacher").rows
    assert not report.select("perplexity_gap", "teacher").rows


def test_times_are_told_by_their_metric_from_numbers_that_are_the_same_every_run(report):
    metrics = {row.metric for row in report.rows}
    times = {metric for metric in metrics if metric.endswith(("_seconds", "_speedup"))}
    assert times == {"prefill_seconds", "prefill_speedup", "decode_seconds", "decode_speedup"}


def test_the_report_tells_what_the_stages_recorded(report, config):
    assert 0 < report.value("tokens", "align") <= 2 * 8 * 16
    assert report.select("tokens").models == ("align", "distill", "finetune", "teacher")
    for when in ("first step", "last step"):
        errors = report.select("alignment_error", "align", task=when).rows
        assert [row.label for row in errors] == ["layer 0", "layer 1"]
    last = report.select("alignment_error", "align", task="last step").rows
    assert report.value("alignment_error_worst", "align") == max(row.value for row in last)
    losses = {row.model: row.task for row in report.select("training_loss").rows}
    assert losses == {
        "align": "mean squared error",
        "distill": "KL, nats",
        "finetune": "cross entropy, nats",
        "teacher": "cross entropy, nats",
    }
    read = [row.tokens for row in report.select("training_loss", "distill").rows]
    assert len(read) == 2
    assert read[-1] == report.value("tokens", "distill")
    kept = [row.value for row in report.select("softmax_layer").rows]
    selection = json.loads((config.stage("select").folder / "selection.json").read_text())
    assert kept == selection["softmax_layers"]
    scores = report.select("selection_importance", "select").rows
    assert [row.value for row in scores] == pytest.approx(selection["importance"])


def test_the_files_hold_checks_samples_versions_and_the_config(report, place):
    about = json.loads((place / "report" / "checks.json").read_text(encoding="utf-8"))
    assert [check["passed"] for check in about["checks"]] == [True, False, False]
    assert [check["required"] for check in about["checks"]] == [True, True, False]
    assert about["config"]["kind"] == "EvaluationConfig"
    assert about["versions"]["jax"]
    (sample,) = report.select("sample").rows
    assert (sample.model, sample.task) == ("student", "the a of file")
    assert sample.label


def test_the_page_names_models_checks_and_selected_layers(report, place):
    page = (place / "report" / "index.html").read_text(encoding="utf-8")
    kept = int(report.value("softmax_layer", "select"))
    for text in ("teacher", "student", "scaled", "heldout_top1 of student", f"layer {kept}"):
        assert text in page
