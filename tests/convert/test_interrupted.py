"""A conversion asked to stop outside of training, and one whose earlier stages or teacher are not what they were."""

import dataclasses
import logging
import pathlib
import shutil
import sys

import jax
import pytest
from tiny_chain import evaluation

from hypenet_jax.convert import convert
from hypenet_jax.convert.inputs import open_inputs
from hypenet_jax.convert.provenance import TEXT, provenance_of, teacher_fingerprint
from hypenet_jax.data import prepare
from hypenet_jax.evals import EvalModel
from hypenet_jax.halo.select import read_selection
from hypenet_jax.train.errors import CheckpointError, Preempted
from hypenet_jax.train.provenance import Provenance
from hypenet_jax.train.stage_output import load_params, save_params
from hypenet_jax.weights import load_hf

pytestmark = pytest.mark.brief

# What is asked of the first candidate does not matter: it is not reached.


def test_a_selection_that_was_stopped_goes_on_after_the_layers_it_had_scored(
    copy, done, monkeypatch, caplog
):
    shutil.rmtree(copy.stage("select").folder)
    with pytest.raises(Preempted, match="stopped after layer 0 of select; its scores are kept"):
        convert(copy, only="select", stop=lambda layer: True)
    module, scored = sys.modules["hypenet_jax.convert.selection"], []
    real = module._score
    monkeypatch.setattr(module, "_score", lambda *args: scored.append(args) or real(*args))
    with caplog.at_level(logging.INFO, "hypenet_jax"):
        convert(copy, only="select")
    assert len(scored) == 1
    assert "select: going on after layer 0, fingerprint holds" in caplog.text
    again, before = (
        read_selection(config.stage("select").folder / "selection.json")
        for config in (copy, done.config)
    )
    assert again == before


def test_scores_of_another_sweep_are_refused(copy):
    shutil.rmtree(copy.stage("select").folder / "final")
    method = dataclasses.replace(copy.stage("select").method, rows=8)
    runs = tuple(
        dataclasses.replace(run, method=method) if run.name == "select" else run
        for run in copy.stages
    )
    with pytest.raises(
        CheckpointError, match=r"scores\.json: other settings.*method\.rows: 16 sav"
    ):
        convert(dataclasses.replace(copy, stages=runs), only="select")


def test_text_without_a_catalogue_is_scored_by_codes_stated_in_words(copy, tmp_path):
    run = copy.stage("select")
    corpus = dataclasses.replace(
        run.data.corpus, folder=str(tmp_path / "longer"), block_length=256, heldout_fraction=0.5
    )
    data = dataclasses.replace(
        run.data, corpus=corpus, context_length=256, first_token=0, needles=None
    )
    inputs = dataclasses.replace(
        open_inputs(run),
        config=dataclasses.replace(run, data=data),
        prepared=prepare.prepare(corpus),
    )
    model = EvalModel("teacher", *load_hf(run.teacher_folder))
    retrieved, likelihood = sys.modules["hypenet_jax.convert.selection"]._score(inputs, model, 4)
    assert 0.0 <= retrieved < 0.5  # it never saw a code
    assert -10.0 < likelihood < 0.0


def test_an_evaluation_that_is_asked_to_stop_says_that_the_same_command_goes_on(copy):
    config = dataclasses.replace(copy, evaluation=evaluation(pathlib.Path(copy.run_dir)))
    with pytest.raises(Preempted, match=r"stopped before needle of teacher; .* goes on"):
        convert(config, only="evaluation", stop=lambda part: True)


@pytest.mark.parametrize("after", ["select", "distill"])
def test_what_came_of_weights_that_were_made_anew_is_refused(copy, after):
    run = copy.stage("align")
    params, metadata = load_params(run.folder / "final", "align")
    other, wrote = jax.tree.map(lambda leaf: leaf + 1, params), metadata["fingerprint"]
    text = metadata["config"][TEXT]
    provenance = provenance_of(run, metadata["parent"], teacher_fingerprint(run), text)
    save_params(run.folder / "final", other, provenance)
    with pytest.raises(CheckpointError, match=f"{after}.final: started from weights {wrote}"):
        convert(copy, start=after)


def test_what_an_older_version_left_is_refused_in_one_line_that_says_so(copy):
    final = copy.stage("align").folder / "final"
    params, metadata = load_params(final, "align")
    settings = dict(metadata["config"])
    settings["stage"] = settings.pop("method")  # its name in earlier versions
    save_params(final, params, Provenance("align", settings, metadata["parent"]))
    older = "align.final: an older version of this code wrote it"
    with pytest.raises(
        CheckpointError, match=rf"{older}: .* \(method, stage\); use another folder$"
    ):
        convert(copy, only="align")
    (final / "metadata").rename(final / "about")  # as was this
    with pytest.raises(CheckpointError, match=f"{older}; use another folder$"):
        convert(copy, only="align")


def change_teacher(config):
    """Another last bit of its last weight."""
    (file,) = config.stage("teacher").hf_folder.glob("*.safetensors")
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(bytes(raw))


def test_what_a_teacher_had_taught_is_refused_once_the_teacher_changed(copy):
    change_teacher(copy)
    for name in ("align", "select", "distill"):
        with pytest.raises(CheckpointError, match=f"{name}.final: other settings.*teacher_weights"):
            convert(copy, only=name)
    convert(copy, only="finetune")  # reads no teacher


def test_a_stage_that_was_cut_off_does_not_go_on_with_another_teacher(copy):
    shutil.rmtree(copy.stage("align").folder / "final")
    change_teacher(copy)
    with pytest.raises(CheckpointError, match=r"align.checkpoints.2: .*teacher_weights: \w+ s"):
        convert(copy, only="align")


def test_mixers_are_not_used_with_another_teacher_than_they_imitate(copy):
    shutil.rmtree(copy.stage("distill").folder)
    change_teacher(copy)
    with pytest.raises(CheckpointError, match=r"align.final: imitates a teacher with the weights"):
        convert(copy, only="distill")


def test_a_finished_stage_outlives_its_teacher_and_its_data(copy):
    shutil.rmtree(copy.stage("teacher").hf_folder)
    shutil.rmtree(copy.stages[0].data.corpus.folder)
    convert(copy, only="distill")


def test_a_stage_that_was_cut_off_does_not_go_on_with_another_text(copy, monkeypatch):
    run = copy.stage("finetune")
    shutil.rmtree(run.folder / "final")
    shutil.rmtree(run.data.corpus.folder)
    monkeypatch.setattr(prepare, "source_fingerprint", lambda source: "of other files")
    other = r"text_fingerprint: \w+ saved, of other files now"
    with pytest.raises(CheckpointError, match=f"finetune.checkpoints.2: .*{other}"):
        convert(copy, only="finetune")
    with pytest.raises(CheckpointError, match=f"distill.final: .*{other}"):
        convert(copy, only="distill")
