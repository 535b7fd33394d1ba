"""An evaluation of model folders: rows, files, meshes, resumption, and failures that end nothing."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import shutil

import pytest

from hypenet_jax.data.synthetic import Catalogue
from hypenet_jax.evals.checks import Check
from hypenet_jax.evals.config import Document, EvaluationConfig
from hypenet_jax.evals.efficiency.speed import SpeedEvaluator
from hypenet_jax.evals.evaluator import Session
from hypenet_jax.evals.harness.evaluator import HarnessEvaluator
from hypenet_jax.evals.language.perplexity import PerplexityEvaluator
from hypenet_jax.evals.model import EvalModel, HeldOut, ModelSource, open_model
from hypenet_jax.evals.report import Report, Row, report_from_json_lines
from hypenet_jax.evals.retrieval.needle import NeedleEvaluator
from hypenet_jax.evals.retrieval.passkey import PasskeyEvaluator
from hypenet_jax.evals.ruler.evaluator import RulerEvaluator
from hypenet_jax.evals.runner import evaluate
from hypenet_jax.evals.sweep import SweepEvaluator, write_scale
from hypenet_jax.model.rope_scaling import YarnScaling
from hypenet_jax.sharding import MeshConfig, make_mesh
from hypenet_jax.train.errors import Preempted
from hypenet_jax.weights import CheckpointError

pytestmark = pytest.mark.brief

CATALOGUE = Catalogue(first_id=280, classes=4, entries=4)
PERPLEXITY = PerplexityEvaluator(
    lengths=(16, 32, 10**6),
    windows=4,
    targets=8,
    position_length=32,
    sliding_length=32,
    stride=16,
)


def measured(config: EvaluationConfig, **options):
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluate(config, **options)


@pytest.fixture(scope="module")
def config(folders, tmp_path_factory) -> EvaluationConfig:
    out = tmp_path_factory.mktemp("evaluation")
    return EvaluationConfig(
        models=(
            ModelSource("teacher", str(folders / "teacher")),
            ModelSource("student", str(folders / "student")),
        ),
        out=str(out),
        text=HeldOut(str(folders / "data")),
        measurements={
            "needle": NeedleEvaluator(
                catalogue=CATALOGUE,
                lengths=(16, 32),
                needles=2,
                sequences=8,
                long_sequences=4,
                long_length=32,
            ),
            "perplexity": PERPLEXITY,
            "ruler": RulerEvaluator(
                tasks=("niah_single_1",), lengths=(800,), samples=2, cache=str(out / "questions")
            ),
            "passkey": PasskeyEvaluator(models=("student",), lengths=(400,), rows=2, statements=2),
            "speed": SpeedEvaluator(models=("student",), lengths=(64,), rounds=1),
        },
        checks=(
            Check(
                text="loses nothing",
                metric="perplexity",
                model="student",
                length=32,
                over=("student", 16),
                at_most=9e9,
            ),
            Check(text="is not there", metric="needle", model="student", length=8192, at_least=0.5),
        ),
        document=Document(
            path=str(out / "docs/results.md"),
            title="Results",
            description="Made here.",
            trained_length=16,
        ),
        mesh=MeshConfig(data=2, fsdp=1, sequence=4),
    )


@pytest.fixture(scope="module")
def results(config):
    return measured(config)


@pytest.fixture(scope="module")
def report(results) -> Report:
    return results.report


def test_every_measurement_has_rows_for_every_model_that_it_names(report):
    for metric in (
        *("needle", "needle_by_depth", "ruler", "ruler_by_depth", "ruler_mean"),
        *("perplexity", "perplexity_by_position", "perplexity_sliding"),
    ):
        assert report.select(metric).models == ("teacher", "student"), metric
    for metric in ("passkey", "decode_seconds"):
        assert report.select(metric).models == ("student",), metric


def test_a_length_that_the_text_does_not_fill_is_a_row_and_the_others_are_measured(report):
    assert report.select("perplexity").lengths == (16, 32)
    failed = report.select("failed", "student").rows
    assert [(row.task, row.length) for row in failed] == [("perplexity", 10**6)]
    assert "give more text" in failed[0].label


def test_the_files_hold_the_rows_the_checks_and_a_page(config, results, report):
    out = pathlib.Path(config.out)
    lines = (out / "report.jsonl").read_text()
    assert report_from_json_lines(lines).to_json_lines() == report.to_json_lines()
    record = json.loads((out / "checks.json").read_text())
    assert [check["passed"] for check in record["checks"]] == [True, False]
    assert record["config"]["measurements"]["speed"]["rounds"] == 1
    assert record["versions"]["jax"]
    page = (out / "index.html").read_text().lower()
    for text in ("loses nothing", "not measured", "by depth", "tasks"):
        assert text in page, text
    assert not (out / "parts").exists()
    assert len(list((out / "questions").iterdir())) == 1  # both models have one tokenizer
    assert not results.passed


def test_the_document_says_what_holds_and_what_does_not(config, results):
    assert config.document is not None
    text = pathlib.Path(config.document.path).read_text()
    assert "| statement | measured | holds if | holds |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| is not there")]
    assert line == "| is not there | not measured | at least 0.5 | **no** |"
    assert "1 of 2 statements hold" in text
    assert "| context | 16 (1x) | 32 (2x) |" in text


@pytest.mark.slow
def test_devices_do_not_change_the_numbers(config, report, tmp_path):
    kept = {name: config.measurements[name] for name in ("perplexity", "ruler")}
    alone = dataclasses.replace(
        config,
        models=config.models[1:2],
        out=str(tmp_path),
        measurements=kept,
        checks=(),
        document=None,
        mesh=MeshConfig(data=8, fsdp=1),
    )
    for row in measured(alone).report.rows:
        if row.metric.startswith(("perplexity", "ruler")):
            (same,) = [other for other in report.rows if other.key == row.key]
            assert row.value == pytest.approx(same.value, rel=1e-4)
            assert row.count == same.count


@pytest.fixture
def session(tmp_path) -> Session:
    return Session(model="student", seed=0, folder=tmp_path / "parts", key="seed 0")


def test_what_a_measurement_raises_because_of_its_input_is_a_row_and_other_errors_are_bugs(session):
    def fail(error):
        raise error

    small = functools.partial(fail, MemoryError("no room\nfor it"))
    (row,) = session.keep("speed", small, 64).rows
    assert (row.metric, row.task, row.length) == ("failed", "speed", 64)
    assert row.label == "MemoryError: no room"
    with pytest.raises(KeyError):
        session.keep("speed", functools.partial(fail, KeyError("bug")), 128)


@pytest.fixture
def swept(config, tmp_path) -> EvaluationConfig:
    folder = tmp_path / "student"
    shutil.copytree(config.models[1].folder, folder)
    by = dataclasses.replace(PERPLEXITY, lengths=(32,), position_length=None, sliding_length=None)
    sweep = SweepEvaluator(constants=(4.0, 16.0), by=by, metric="perplexity", write=True)
    return dataclasses.replace(
        config,
        models=(ModelSource("student", str(folder)),),
        out=str(tmp_path / "out"),
        measurements={"sweep": sweep},
        checks=(),
        document=None,
    )


def test_the_best_scale_is_found_and_written_into_the_config(swept):
    report = measured(swept).report
    values = {row.label: row.value for row in report.select("scale_sweep").rows}
    assert list(values) == ["none", "hype 4", "hype 16"]
    assert len(set(values.values())) == 3
    (best,) = report.select("scale_best").rows
    assert best.value == min(values.values()) == values[best.label]
    fields = json.loads((pathlib.Path(swept.models[0].folder) / "config.json").read_text())
    assert fields["attn_logits_scaling"] == (None if best.label == "none" else best.label)


def test_a_model_without_the_field_keeps_its_config(config):
    with pytest.raises(CheckpointError, match="no attn_logits_scaling"):
        write_scale(pathlib.Path(config.models[0].folder), "hype 4")


def test_an_evaluation_that_was_stopped_goes_on_after_what_it_measured(swept, monkeypatch):
    calls = iter((False, False, True))
    with pytest.raises(Preempted, match="stopped before perplexity of student; the same command"):
        measured(swept, stop=lambda part: next(calls))
    assert len(list((pathlib.Path(swept.out) / "parts").iterdir())) == 2
    asked = []
    report = measured(swept, stop=lambda part: asked.append(part) or False).report
    assert len(asked) == 1
    assert len(report.select("scale_sweep").rows) == 3


def test_rows_are_kept_for_the_same_part_of_the_same_measurement_alone(session):
    rows = Report((Row("needle", "a", 0.5, 4, 16),))
    assert session.keep("needles", lambda: rows, 16).rows == rows.rows
    assert session.keep("needles", pytest.fail, 16).rows == rows.rows
    others = (
        session.part("another constant"),
        *(dataclasses.replace(session, **{name: "other"}) for name in ("key", "model")),
    )
    for other in others:
        assert other.keep("needles", Report, 16).rows == ()
    assert session.keep("needles", Report, 32).rows == ()


def test_responses_of_changed_weights_or_text_are_those_of_another_model(swept):
    harness = HarnessEvaluator(cache="responses", max_length=64)
    source, folder = swept.models[0], pathlib.Path(swept.models[0].folder)

    def opened(source: ModelSource, mesh: MeshConfig = swept.mesh) -> EvalModel:
        return open_model(source, make_mesh(mesh), dtype=None, text=swept.text, at_most=100)

    def names(model: EvalModel) -> tuple[str, pathlib.Path | None]:
        return model.fingerprint, harness.responses_file(model, 0)

    model = opened(source)
    weights = folder / "model.safetensors"
    times, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1  # the last bit that can be seen in no size and no time
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = opened(source)
    for before, after in zip(names(model), names(changed), strict=True):
        assert before != after
    elsewhere = folder.rename(folder.with_name("elsewhere"))
    moved = opened(ModelSource("student", str(elsewhere)), MeshConfig())
    assert names(moved) == names(changed)
    other = dataclasses.replace(moved, text=moved.text[:-1])
    assert other.fingerprint != moved.fingerprint
    assert names(other)[1] == names(moved)[1]
    assert names(moved.scaled(2.0))[1] != names(moved)[1]
    yarn = dataclasses.replace(source, folder=str(elsewhere), rope_scaling=YarnScaling(4.0, 64))
    assert not set(names(opened(yarn))) & set(names(moved))
