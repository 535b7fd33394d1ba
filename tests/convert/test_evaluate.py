"""The report of a conversion, and what it says of its bounds."""

import contextlib
import dataclasses
import io
import json

import pytest
from tiny_chain import CATALOGUE

from hypenet_jax.convert import convert
from hypenet_jax.evals.checks import Bound, Candidate, EvaluateConfig

pytestmark = pytest.mark.brief

EVALUATE = EvaluateConfig(
    candidates=(
        Candidate("teacher", None, (16,), reads=True, races=True),
        Candidate("student", "finetune", (16, 32), reads=True, races=True),
        Candidate("scaled", "finetune", (16,), logit_scale=16.0),
    ),
    student="student",
    catalogue=CATALOGUE,
    needles=2,
    sequences=8,
    long_sequences=4,
    long_length=32,
    read_lengths=(32,),
    read_windows=4,
    read_targets=8,
    race_lengths=(64,),
    heldout_rows=16,
    bounds=(
        Bound("alignment_error_worst", "align", at_least=0.0),
        Bound("heldout_top1", "student", at_least=2.0),
    ),
    prompts=("the a of file",),
    sample_tokens=4,
)


@pytest.fixture(scope="module")
def report(done, tmp_path_factory):
    """(whether all bounds hold, report.json, the page, what was printed)."""
    place = tmp_path_factory.mktemp("evaluated") / "run"
    config = dataclasses.replace(done.copied(place), evaluation=EVALUATE)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        held = convert(config, only="evaluate")
    folder = place / "report"
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    page = (folder / "index.html").read_text(encoding="utf-8")
    return held, found, page, printed.getvalue()


def rows(found, metric, model):
    return [row for row in found["numbers"] if (row["metric"], row["model"]) == (metric, model)]


def test_a_missed_bound_makes_the_answer_no_and_is_named(report):
    held, found, _, printed = report
    assert held is False
    assert [check["passed"] for check in found["checks"]] == [True, False]
    assert "MISSED heldout_top1 of student" in printed


def test_every_candidate_is_measured_at_every_length_it_asks_for(report):
    _, found, _, _ = report
    for one in EVALUATE.candidates:
        lengths = [row["length"] for row in rows(found, "needle", one.label)]
        assert lengths == list(one.needle_lengths)
    for label in ("teacher", "student"):
        assert [row["length"] for row in rows(found, "perplexity", label)] == [32]


def test_the_student_is_compared_with_the_teacher_on_held_out_text(report):
    _, found, _, _ = report
    (student,), (teacher,) = (
        rows(found, "heldout_perplexity", who) for who in ("student", "teacher")
    )
    (gap,) = rows(found, "perplexity_gap", "student")
    assert gap["value"] == pytest.approx(student["value"] / teacher["value"] - 1)
    (divergence,) = rows(found, "heldout_kl", "student")
    assert divergence["value"] > 0
    assert not rows(found, "heldout_kl", "teacher")


def test_times_stand_apart_from_numbers_that_are_the_same_every_run(report):
    _, found, _, _ = report
    assert {row["metric"] for row in found["times"]} == {
        "prefill_seconds",
        "prefill_speedup",
        "decode_seconds",
        "decode_speedup",
    }
    assert not {row["metric"] for row in found["numbers"]} & {"prefill_seconds", "decode_seconds"}


def test_the_report_counts_the_tokens_of_every_stage(report):
    _, found, _, _ = report
    (align,) = rows(found, "tokens", "align")
    assert 0 < align["value"] <= 2 * 8 * 16


def test_the_page_names_models_checks_and_selected_layers(report):
    _, found, page, _ = report
    for text in ("teacher", "student", "scaled", found["checks"][1]["name"]):
        assert text in page
    assert found["config"]["kind"] == "HaloConfig"
    assert found["samples"][0]["prompt"] == "the a of file"
