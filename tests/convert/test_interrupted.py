"""A conversion asked to stop outside of training, and one whose earlier stages or teacher are not what they were."""

import dataclasses
import itertools
import json
import logging
import pathlib
import shutil
import sys

import chex
import jax
import numpy as np
import pytest
from tiny_chain import evaluation

from hypenet_jax.convert import convert, run_stage
from hypenet_jax.convert.inputs import open_inputs
from hypenet_jax.convert.provenance import TEXT, provenance_of, teacher_fingerprint
from hypenet_jax.convert.selection import heldout_rows, measure
from hypenet_jax.data import prepare
from hypenet_jax.data.loader import heldout_batches
from hypenet_jax.evals import EvalModel
from hypenet_jax.halo.selection.chosen import read_selection
from hypenet_jax.sharding import MeshConfig
from hypenet_jax.train.errors import CheckpointError, Preempted
from hypenet_jax.train.provenance import Provenance
from hypenet_jax.train.stage_output import load_params, save_params
from hypenet_jax.weights import load_hf

pytestmark = pytest.mark.brief

OTHER = MeshConfig(data=4, fsdp=2)  # all eight are fsdp where nothing is said

# What is asked of the first candidate does not matter: it is not reached.


def test_a_selection_that_was_stopped_goes_on_after_the_layers_it_had_scored(
    copy, done, monkeypatch, caplog
):
    shutil.rmtree(copy.stage("select").folder)
    with pytest.raises(Preempted, match="stopped after layer 0 of select; its scores are kept"):
        convert(copy, only="select", stop=lambda layer: True)
    module, scored = sys.modules["hypenet_jax.convert.chain"], []
    real = module.measure
    monkeypatch.setattr(module, "measure", lambda *args: scored.append(args[1]) or real(*args))
    stages = tuple(dataclasses.replace(stage, mesh=OTHER) for stage in copy.stages)
    with caplog.at_level(logging.INFO, "hypenet_jax"):
        convert(dataclasses.replace(copy, stages=stages), only="select")
    assert scored == ["retrieval", "commonsense"]
    assert "select: going on after layer 0, fingerprint holds" in caplog.text
    again, before = (
        read_selection(config.stage("select").folder / "selection.json")
        for config in (copy, done.config)
    )
    assert again.softmax_layers == before.softmax_layers
    for kind, layers in before.scores.items():
        assert again.scores[kind] == pytest.approx(layers, rel=1e-5)


def test_rows_of_a_sweep_are_spread_over_more_devices_than_a_batch_has_rows(copy):
    run = copy.stage("select")
    inputs = open_inputs(run)
    few = dataclasses.replace(run, data=dataclasses.replace(run.data, sequences_per_step=3))
    inputs = dataclasses.replace(inputs, config=few)
    (batch,) = heldout_rows(inputs, 7)
    assert batch.tokens.shape == (8, 16)
    wanted = itertools.islice(heldout_batches(inputs.prepared, 16, 3, True), 2)
    whole = jax.tree.map(lambda *parts: np.concatenate(parts), *wanted)
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[:6], batch), whole)
    assert not any(leaf[6:].any() for leaf in jax.tree.leaves(batch))


def test_a_selection_by_a_file_of_scores_is_refused_once_that_is_another(copy, tmp_path):
    path, run = tmp_path / "mine.jsonl", copy.stage("select")
    shutil.rmtree(run.folder)

    def write(*scores):
        line = {"kind": "commonsense", "task": "mine"}
        lines = [{**line, "layer": i, "score": score} for i, score in enumerate(scores)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    method = dataclasses.replace(run.method, scores=str(path), rule="likelihood")
    run = dataclasses.replace(run, method=method)
    write(-1.0, -2.0)
    for _ in range(2):
        run_stage(run)
        assert read_selection(run.folder / "selection.json").softmax_layers == (1,)
    write(-2.0, -1.0)
    with pytest.raises(CheckpointError, match="files_fingerprint"):
        run_stage(run)
    path.unlink()  # a file that is gone cannot have changed
    run_stage(run)


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
    found, by = measure(inputs, "retrieval", model.decoder, model.params, 4)
    assert (len(found), set(by)) == (4, {1.0})
    assert 0.0 <= found.mean() < 0.5  # it never saw a code
    likelihoods, tokens = measure(inputs, "commonsense", model.decoder, model.params, 8)
    assert len(likelihoods) == 8
    assert (tokens > 200).all()
    assert -10.0 < likelihoods.mean() < 0.0


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
