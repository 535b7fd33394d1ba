"""A new kind of stage is one file and one line of a config: it is trained, planned, chained and set like the others."""

import dataclasses
import pathlib
import re

import pytest
from toy_stage import FollowConfig

from hypenet_jax.config import HaloConfig
from hypenet_jax.config_file import load
from hypenet_jax.convert import convert
from hypenet_jax.plan import here, plan
from hypenet_jax.train.metrics import read_metrics
from hypenet_jax.train.stage_output import read_metadata, read_stage_output

pytestmark = pytest.mark.brief

CONFIG = """
from tiny_chain import chain

from test_new_stage import with_follow

def config(text: str, run_dir: str):
    return with_follow(chain(text, run_dir))
"""


def with_follow(config: HaloConfig, **optimizer: str) -> HaloConfig:
    """The chain with the new stage in place of distillation."""
    method, distill = FollowConfig(start_from="align"), config.stage("distill")
    changed = dataclasses.replace(distill.training.optimizer, **optimizer)
    training = dataclasses.replace(distill.training, optimizer=changed)
    distill = dataclasses.replace(distill, name="follow", method=method, training=training)
    return dataclasses.replace(config, stages=(*config.stages[:3], distill))


def test_the_chain_runs_it_in_any_precision_and_the_same_call_finds_it_done(copy, caplog):
    config = with_follow(copy, weights="bfloat16")
    with caplog.at_level("INFO", "hypenet_jax"):
        assert convert(config)
    trained = r"follow: trains [\d,]+ of [\d,]+ parameters; frozen: [\d,]+ in 1 arrays"
    assert re.search(trained, caplog.text)
    stage = config.stage("follow")
    saved = read_metadata(stage.folder / "checkpoints" / "2")["leaves"]
    kept = {leaf["dtype"] for path, leaf in saved.items() if "kernel" in path}
    assert kept == {"bfloat16"}
    output = read_stage_output(stage.folder / "final", "follow")
    parent = read_stage_output(stage.final_of("align"), "align")
    assert output["parent"] == parent["fingerprint"]
    assert {leaf["dtype"] for leaf in output["leaves"].values()} == {"float32"}
    assert output["config"]["method"]["kind"] == "FollowConfig"
    records = read_metrics(stage.folder / "metrics.jsonl")
    assert [record["gap"] == pytest.approx(record["loss"]) for record in records] == [True, True]
    with caplog.at_level("INFO", "hypenet_jax"):
        assert convert(config, only="follow")
    assert "follow: done before" in caplog.text


def test_a_plan_compiles_its_step(copy):
    planned = plan(with_follow(copy).stage("follow"), here(8))
    assert planned.program.flops.model > 0
    assert planned.compiled.peak > planned.compiled.arguments


def test_its_numbers_are_options(done, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    words = ["--text", str(done.text), "--run-dir", str(tmp_path), "--follow.method.weight", "2"]
    config = load(str(path), HaloConfig, words)
    assert config.stage("follow").method == FollowConfig(start_from="align", weight=2.0)


def test_no_file_of_the_product_names_it():
    root = pathlib.Path(__file__).parents[2]
    folders = ("hypenet_jax", "launch", "configs")
    sources = [path for folder in folders for path in (root / folder).rglob("*.py")]
    assert len(sources) > 50
    assert not any("FollowConfig" in path.read_text() for path in sources)
