"""A suite of model folders: rows, files, cuts over devices, and failures that end nothing."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import shutil

import pytest
from tiny_chain import CATALOGUE

from hypenet_jax.evals.cache import attempt, kept_rows
from hypenet_jax.evals.checks import Bound
from hypenet_jax.evals.config import (
    Claim,
    Document,
    EvaluationConfig,
    HarnessConfig,
    HeldOut,
    ModelSource,
    NeedleConfig,
    PerplexityConfig,
    RulerConfig,
    SpeedConfig,
    SweepConfig,
)
from hypenet_jax.evals.harness.evaluator import responses_file
from hypenet_jax.evals.quality import Entrant, open_entrant
from hypenet_jax.evals.report import Report, Row, report_from_json_lines
from hypenet_jax.evals.runner import measure
from hypenet_jax.evals.sweep import sweep, write_scale
from hypenet_jax.sharding import MeshConfig, make_mesh, on_mesh
from hypenet_jax.weights import CheckpointError

pytestmark = pytest.mark.brief


@pytest.fixture(scope="module")
def config(done, tmp_path_factory) -> EvaluationConfig:
    out = tmp_path_factory.mktemp("suite")
    student = str(done.folder / "finetune/hf")
    return EvaluationConfig(
        models=(
            ModelSource("teacher", str(done.folder / "teacher/hf"), races=False),
            ModelSource("student", student),
        ),
        out=str(out),
        text=HeldOut(str(done.folder / "data")),
        ruler=RulerConfig(("niah_single_1",), (800,), samples=2, cache=str(out / "asked")),
        perplexity=PerplexityConfig(
            (16, 32, 10**6), 4, 8, position_length=32, sliding_length=32, stride=16
        ),
        race=SpeedConfig((64,), rounds=1),
        needle=NeedleConfig(CATALOGUE, (16, 32), 2, 8, 4, 32),
        claims=(
            Claim(
                "loses nothing",
                Bound("perplexity", "student", 32, at_most=9e9),
                over=("student", 16),
            ),
            Claim("is not there", Bound("needle", "student", 8192, at_least=0.5)),
        ),
        document=Document(str(out / "docs/results.md"), "Results", "Made here.", 16),
        conversion=str(done.folder),
        mesh=MeshConfig(data=2, fsdp=1, sequence=4),
    )


@pytest.fixture(scope="module")
def report(config):
    with contextlib.redirect_stdout(io.StringIO()):
        return measure(config)


def test_every_measurement_has_rows_for_every_model_that_it_is_asked_of(report):
    for metric in (
        *("needle", "needle_by_depth", "ruler", "ruler_by_depth", "ruler_mean"),
        *("perplexity", "perplexity_by_position", "perplexity_sliding"),
    ):
        assert report.select(metric).models == ("teacher", "student"), metric
    assert report.select("decode_seconds").models == ("student",)


def test_a_length_that_the_text_does_not_fill_is_a_row_and_the_others_are_measured(report):
    assert report.select("perplexity").lengths == (16, 32)
    failed = report.select("failed", "student").rows
    assert [(row.task, row.length) for row in failed] == [("perplexity", 10**6)]
    assert "give more text" in failed[0].label


def test_the_files_hold_the_rows_and_a_page(config, report):
    out = pathlib.Path(config.out)
    lines = (out / "report.jsonl").read_text()
    assert report_from_json_lines(lines).to_json_lines() == report.to_json_lines()
    page = (out / "index.html").read_text()
    for text in (
        "loses nothing",
        "Not measured",
        "By depth",
        "Tasks",
        "Which layers keep",
        "finetune",
    ):
        assert text in page, text
    assert not (out / "parts").exists()
    assert len(list((out / "asked").iterdir())) == 1  # teacher and student have one tokenizer


def test_the_document_says_what_holds_and_what_does_not(config):
    text = pathlib.Path(config.document.path).read_text()
    assert "| statement | measured | holds if | holds |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| is not there")]
    assert line == "| is not there | not measured | >= 0.5 | **no** |"
    assert "1 of 2 statements hold" in text
    assert "| context | 16 (1x) | 32 (2x) |" in text


@pytest.mark.slow
def test_devices_do_not_change_the_numbers(config, report, tmp_path):
    alone = dataclasses.replace(
        config,
        models=config.models[1:2],
        out=str(tmp_path),
        race=SpeedConfig(),
        claims=(),
        document=None,
        mesh=MeshConfig(data=8, fsdp=1),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        other = measure(alone)
    for row in other.rows:
        if row.metric.startswith(("perplexity", "ruler")):
            (same,) = [one for one in report.rows if one.key == row.key]
            assert row.value == pytest.approx(same.value, rel=1e-4)
            assert row.count == same.count


def test_what_a_measurement_raises_because_of_its_input_is_a_row_and_other_errors_are_bugs():
    def fail(error):
        raise error

    small = functools.partial(fail, MemoryError("no room\nfor it"))
    (row,) = attempt("student", "speed", 64, small).rows
    assert (row.metric, row.task, row.length) == ("failed", "speed", 64)
    assert row.label == "MemoryError: no room"
    with pytest.raises(KeyError):
        attempt("student", "speed", 64, functools.partial(fail, KeyError("bug")))


@pytest.fixture
def swept(config, tmp_path) -> EvaluationConfig:
    folder = tmp_path / "student"
    shutil.copytree(config.models[1].folder, folder)
    return dataclasses.replace(
        config,
        models=(ModelSource("student", str(folder)),),
        sweep=SweepConfig(constants=(4.0, 16.0), by="perplexity", length=32, write=True),
    )


def test_the_best_scale_is_found_and_written_into_the_config(swept):
    mesh = make_mesh(swept.mesh)
    with on_mesh(mesh):
        report = sweep(swept, mesh, kept_rows(swept))
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


def test_a_suite_that_was_cut_off_goes_on_after_what_it_measured(config, tmp_path):
    config = dataclasses.replace(config, out=str(tmp_path))
    rows = Report((Row("needle", "a", 0.5, 4, 16),))
    kept = kept_rows(config)
    assert kept("needles at 16", lambda: rows).rows == rows.rows
    assert kept_rows(config)("needles at 16", pytest.fail).rows == rows.rows
    other = kept_rows(dataclasses.replace(config, seed=1))
    assert other("needles at 16", Report).rows == ()
    assert kept.of("another model")("needles at 16", Report).rows == ()
    kept.clear()
    assert kept("needles at 16", Report).rows == ()


def test_answers_of_changed_weights_or_text_are_those_of_another_model(swept):
    mesh, harness = make_mesh(swept.mesh), HarnessConfig(cache="answers")
    asked = dataclasses.replace(swept, harness=harness)
    entrant = open_entrant(asked, asked.models[0], mesh)
    folder = pathlib.Path(asked.models[0].folder)

    def names(entrant: Entrant) -> tuple[str, pathlib.Path | None]:
        return entrant.fingerprint, responses_file(asked, entrant, 64)

    weights = folder / "model.safetensors"
    times, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1  # the last bit that can be seen in no size and no time
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = open_entrant(asked, asked.models[0], mesh)
    for before, after in zip(names(entrant), names(changed), strict=True):
        assert before != after
    elsewhere = folder.rename(folder.with_name("elsewhere"))
    moved = open_entrant(asked, ModelSource("student", str(elsewhere)), make_mesh(MeshConfig()))
    assert names(moved) == names(changed)
    other = dataclasses.replace(moved, text=moved.text[:-1])
    assert other.fingerprint != moved.fingerprint
    assert responses_file(asked, other, 64) == responses_file(asked, moved, 64)
    assert responses_file(asked, moved.scaled(2.0), 64) != responses_file(asked, moved, 64)
