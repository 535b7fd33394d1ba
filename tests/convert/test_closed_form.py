"""Stages that start in closed form: from text to a report, the same bits after a cut, settings of the command line."""

import dataclasses
import shutil

import pytest
from tiny_chain import chain

from hypenet_jax.config import HaloConfig, StudentConfig
from hypenet_jax.config_file import ConfigError, load
from hypenet_jax.convert import convert
from hypenet_jax.evals.conversion import ConversionEvaluator
from hypenet_jax.evals.evaluator import Session
from hypenet_jax.halo.align import AlignConfig
from hypenet_jax.halo.refit import RefitConfig
from hypenet_jax.train.errors import CheckpointError, Preempted
from hypenet_jax.train.metrics import read_metrics
from hypenet_jax.train.stage_output import read_stage_output

pytestmark = pytest.mark.brief

CONFIG = """
from test_closed_form import in_closed_form
from tiny_chain import chain

def config(text: str, run_dir: str):
    return in_closed_form(chain(text, run_dir))
"""


def in_closed_form(config: HaloConfig) -> HaloConfig:
    """Teacher, align from a ridge start, and a refit with softmax attention in layer 1."""
    align, distill = config.stage("align"), config.stage("distill")
    align = dataclasses.replace(align, method=AlignConfig(ridge_batches=2))
    refit = dataclasses.replace(
        distill,
        name="refit",
        student=StudentConfig(softmax_layers=(1,)),
        method=RefitConfig(start_from="align", batches=2),
        training=None,
    )
    return dataclasses.replace(config, stages=(config.stages[0], align, refit))


@pytest.fixture(scope="module")
def whole(done, tmp_path_factory):
    """A finished conversion without a cut."""
    run = done.copied(tmp_path_factory.mktemp("closed") / "run")
    shutil.rmtree(run.stage("align").folder)
    config = in_closed_form(run)
    assert convert(config)
    return config


@pytest.fixture
def fresh(whole, done, tmp_path):
    """The same with nothing but its teacher and text made."""
    shutil.copytree(whole.run_dir, tmp_path / "run")
    for name in ("align", "refit"):
        shutil.rmtree(tmp_path / "run" / name)
    return in_closed_form(chain(done.text, tmp_path / "run"))


def with_ridge(config, name, ridge):
    """The same with another strength of the regression in one stage."""
    stages = [
        dataclasses.replace(stage, method=dataclasses.replace(stage.method, ridge=ridge))
        if stage.name == name
        else stage
        for stage in config.stages
    ]
    return dataclasses.replace(config, stages=tuple(stages))


def fingerprint(config, name):
    return read_stage_output(config.stage(name).folder / "final", name)["fingerprint"]


def test_each_fit_is_recorded_and_the_first_gradient_step_starts_below_the_official_start(
    whole, done
):
    align, refit = (whole.stage(name).folder for name in ("align", "refit"))
    fits = read_metrics(align / "fits.jsonl")
    assert [(record["step"], record["layer"]) for record in fits] == [(1, 0), (2, 1)]
    assert all(record["mixer/after"] < record["mixer/before"] for record in fits)
    assert [record["step"] for record in read_metrics(refit / "fits.jsonl")] == [1, 2, 3, 4]
    ours, official = (
        read_metrics(config.stage("align").folder / "metrics.jsonl")[0]["loss"]
        for config in (whole, done.config)
    )
    assert ours < official


def test_a_cut_conversion_goes_on_after_the_fits_it_had_made_to_the_same_bits(whole, fresh, caplog):
    for name, fit, count in (("align", 1, 2), ("refit", 3, 4)):
        words = f"{name}: stopped after fit {fit} of {count}; it is kept"
        with pytest.raises(Preempted, match=words):
            convert(fresh, only=name, stop=lambda number, fit=fit: number == fit)
        with pytest.raises(
            CheckpointError, match=r"fits.0: other settings.*method\.ridge: 0\.01 s"
        ):
            convert(with_ridge(fresh, name, 0.5), only=name)
        with caplog.at_level("INFO", "hypenet_jax"):
            convert(fresh, only=name)
        assert f"{name}: going on after fit {fit} of {count}, fingerprint holds" in caplog.text
        assert fingerprint(fresh, name) == fingerprint(whole, name)
        files = [config.stage(name).folder / "fits.jsonl" for config in (fresh, whole)]
        assert read_metrics(files[0]) == read_metrics(files[1])


def test_the_page_counts_their_tokens_and_shows_errors_before_and_after(whole, tmp_path):
    session = Session(model="", seed=0, folder=tmp_path, key="")
    report = ConversionEvaluator(run_dir=whole.run_dir).compare((), session)
    fits = {
        name: read_metrics(whole.stage(name).folder / "fits.jsonl") for name in ("align", "refit")
    }
    trained = read_metrics(whole.stage("align").folder / "metrics.jsonl")
    tokens = sum(record["tokens"] for record in trained)
    assert report.value("tokens", "align") == tokens + fits["align"][0]["tokens"]
    assert report.value("tokens", "refit") == fits["refit"][0]["tokens"]
    assert report.select("training_loss", "align").rows[-1].tokens == report.value(
        "tokens", "align"
    )
    for when in ("before", "after"):
        rows = report.select("mlp_fit_error", "refit", task=when).rows
        assert [row.label for row in rows] == ["layer 0", "layer 1"]
        assert rows[1].value == fits["refit"][3][f"mlp/{when}"]


def test_their_settings_are_options(done, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    words = ["--text", str(done.text), "--run-dir", str(tmp_path)]
    words += ["--align.method.ridge-batches", "3", "--refit.method.ridge", "0.1"]
    config = load(str(path), HaloConfig, words)
    assert config.stage("align").method == AlignConfig(ridge_batches=3)
    assert config.stage("refit").method == RefitConfig(start_from="align", batches=2, ridge=0.1)


def test_a_stage_has_a_training_section_where_it_trains_and_nowhere_else(whole):
    with pytest.raises(ConfigError, match="align: needs a training section"):
        dataclasses.replace(whole.stage("align"), training=None)
    training = whole.stage("align").training
    with pytest.raises(ConfigError, match="refit: trains nothing: leave training out"):
        dataclasses.replace(whole.stage("refit"), training=training)
