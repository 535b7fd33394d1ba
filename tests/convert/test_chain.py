"""A conversion from text to a report: what it leaves, that it goes on where it was cut off, and what it refuses."""

import dataclasses
import json
import logging
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.config_file import ConfigError
from hypenet_jax.convert import convert
from hypenet_jax.convert.inputs import load_teacher, open_inputs
from hypenet_jax.convert.programs import models_of, student_config
from hypenet_jax.convert.provenance import teacher_fingerprint
from hypenet_jax.halo.selection.chosen import read_selection
from hypenet_jax.model.config import with_logit_scale
from hypenet_jax.model.hype import LogLengthScale
from hypenet_jax.model.stacking import unstack_layers
from hypenet_jax.sharding import MeshConfig, make_mesh
from hypenet_jax.train.errors import CheckpointError
from hypenet_jax.train.metrics import read_metrics
from hypenet_jax.train.stage_output import load_params, read_stage_output
from hypenet_jax.weights import load_hf

pytestmark = pytest.mark.brief

TRAINED = ("teacher", "align", "distill", "finetune")


def changed(config, name, **fields):
    """The chain with other fields in one stage."""
    runs = tuple(dataclasses.replace(r, **fields) if r.name == name else r for r in config.stages)
    return dataclasses.replace(config, stages=runs)


def fingerprint(config, name):
    return read_stage_output(config.stage(name).folder / "final", name)["fingerprint"]


def test_every_stage_leaves_weights_and_one_record_per_step(done):
    for run in done.config.stages:
        assert (run.folder / "final").is_dir()
    for name in TRAINED:
        run = done.config.stage(name)
        records = read_metrics(run.folder / "metrics.jsonl")
        assert [record["step"] for record in records] == [*range(1, run.training.loop.steps + 1)]
        assert all(record["skipped"] == 0 and np.isfinite(record["loss"]) for record in records)


def test_each_stage_names_the_weights_it_started_from(done):
    parents = {"align": None, "select": "align", "distill": "align", "finetune": "distill"}
    for name, parent in parents.items():
        metadata = read_stage_output(done.folder / name / "final", name)
        assert metadata["parent"] == (parent and fingerprint(done.config, parent))


def test_a_checkpoint_of_stage_one_holds_its_mixers_and_nothing_of_the_teacher(done):
    about = done.folder / "align" / "checkpoints" / "2" / "metadata" / "metadata"
    paths = json.loads(about.read_text(encoding="utf-8"))["leaves"]
    held = {path.split("/q/")[0] for path in paths if "/q/" in path}
    adam = "opt_state/inner/1/0"
    assert held == {"params/mixers", f"{adam}/mu/mixers", f"{adam}/nu/mixers"}
    counts = {"opt_state/applied", f"{adam}/count", "opt_state/inner/1/2/count"}
    assert {path for path in paths if "mixers" not in path} == {"step", *counts}


def test_the_student_keeps_softmax_in_the_selected_layers(done):
    selection = read_selection(done.folder / "select" / "selection.json")
    student = student_config(done.config.stage("finetune"))
    assert student.softmax_layers == selection.softmax_layers
    assert len(selection.softmax_layers) == 1


def test_the_same_call_again_returns_at_once(done, caplog):
    written = {path: path.stat().st_mtime_ns for path in done.folder.rglob("*") if path.is_file()}
    with caplog.at_level(logging.INFO, "hypenet_jax"):
        assert convert(done.config)
    assert caplog.text.count("done before") == len(done.config.stages)
    assert written == {
        path: path.stat().st_mtime_ns for path in done.folder.rglob("*") if path.is_file()
    }


def test_a_stage_without_interruption_has_the_same_bits_as_one_that_was_cut_off(copy, done):
    shutil.rmtree(copy.stage("distill").folder)
    convert(copy, only="distill")
    assert fingerprint(copy, "distill") == fingerprint(done.config, "distill")


@pytest.mark.parametrize(
    ("field", "value", "key"),
    [("seed", 1, "seed"), ("data", {"sequences_per_step": 16}, "data.sequences_per_step")],
)
def test_a_changed_config_is_refused_by_the_name_of_the_key(done, field, value, key):
    run = done.config.stage("align")
    if isinstance(value, dict):
        value = dataclasses.replace(getattr(run, field), **value)
    with pytest.raises(CheckpointError, match=f"other settings.*{key}: "):
        convert(changed(done.config, "align", **{field: value}), only="align")


def test_without_the_weights_of_stage_one_distillation_says_which_stage_to_run(copy):
    shutil.rmtree(copy.stage("distill").folder)
    shutil.rmtree(copy.stage("align").folder / "final")
    with pytest.raises(CheckpointError, match="no final weights; run stage 'align' first"):
        convert(copy, start="distill")


def test_without_a_selection_distillation_says_what_writes_it(copy):
    shutil.rmtree(copy.stage("distill").folder)
    (copy.stage("select").folder / "selection.json").unlink()
    with pytest.raises(FileNotFoundError, match="run the select stage"):
        convert(copy, start="distill")


def test_another_teacher_than_the_config_names_is_refused_by_field(copy):
    shutil.rmtree(copy.stage("align").folder)
    wider = dataclasses.replace(copy.stage("align").teacher, d_mlp=56)
    with pytest.raises(ConfigError, match="d_mlp: 48 there, 56 in the config"):
        convert(changed(copy, "align", teacher=wider), only="align")


def test_a_teacher_may_be_named_as_in_the_local_cache(done, put_in_the_cache):
    stage = done.config.stage("distill")
    put_in_the_cache(pathlib.Path(stage.teacher_folder), "some-org/teacher")
    named = dataclasses.replace(stage, teacher_folder="some-org/teacher")
    assert teacher_fingerprint(named) == teacher_fingerprint(stage)
    mesh = make_mesh(MeshConfig())
    pair = [load_teacher(one, models_of(one), mesh) for one in (named, stage)]
    jax.tree.map(np.testing.assert_array_equal, *pair)
    gone = dataclasses.replace(stage, teacher_folder="some-org/another")
    assert teacher_fingerprint(gone) is None
    with pytest.raises(FileNotFoundError, match="hf download some-org/another"):
        load_teacher(gone, models_of(gone), mesh)


def test_an_unknown_stage_is_refused_with_the_names_of_those_there_are(done):
    for asked in ({"only": "aligm"}, {"start": "aligm"}):
        with pytest.raises(ConfigError, match=r"no stage 'aligm'; the stages are \['teacher', 'al"):
            convert(done.config, **asked)


def test_the_exported_folder_computes_what_the_final_weights_compute(done):
    run = done.config.stage("finetune")
    decoder, read = load_hf(run.hf_folder, dtype=jnp.float32)
    config = with_logit_scale(student_config(run), LogLengthScale(16.0))
    assert decoder.config == config
    params, _ = load_params(run.folder / "final", run.name)
    ours = models_of(run).student.clone(config=config, scan=False)
    tokens = jnp.arange(20, dtype=jnp.int32)[None]
    both = [
        one.apply(
            {"params": weights}, one.apply({"params": weights}, tokens).hidden, method="logits"
        )
        for one, weights in ((decoder, unstack_layers(read)), (ours, unstack_layers(params)))
    ]
    np.testing.assert_array_equal(*both)


def test_the_exported_folder_carries_the_tokenizer_of_the_text(done):
    hf = done.config.stage("finetune").hf_folder
    original = json.loads((done.folder / "data" / "tokenizer.json").read_text(encoding="utf-8"))
    assert json.loads((hf / "tokenizer.json").read_text(encoding="utf-8")) == original


def test_the_exported_folder_says_what_it_was_made_of_and_on_how_many_tokens(done):
    card = (done.config.stage("finetune").hf_folder / "README.md").read_text(encoding="utf-8")
    for stage in ("align", "distill", "finetune"):
        assert f"| training tokens, {stage} | " in card
    assert "training tokens, teacher" not in card  # its weights are no student's


def test_text_with_ids_that_the_teacher_does_not_know_is_refused(done):
    stage = done.config.stage("teacher")
    small = dataclasses.replace(stage, teacher=dataclasses.replace(stage.teacher, vocab_size=50))
    with pytest.raises(ConfigError, match="prepare it with the teacher's tokenizer"):
        open_inputs(small)
