"""A stage that evaluates while it trains: its own loss on held-out text, and not a bit of the training changes."""

import dataclasses
import itertools
import shutil

import jax
import pytest
from tiny_chain import TEACHER

from hypenet_jax.convert import run_stage
from hypenet_jax.convert.inputs import Inputs, load_teacher
from hypenet_jax.convert.programs import models_of
from hypenet_jax.convert.training import MOST_BATCHES, heldout_loss
from hypenet_jax.data.loader import heldout_batches
from hypenet_jax.data.prepare import prepare
from hypenet_jax.data.prepared import open_prepared
from hypenet_jax.evals import EvalModel, held_out
from hypenet_jax.halo.finetune import finetune_stage
from hypenet_jax.halo.method import Weights, abstract_params
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.sharding import make_mesh
from hypenet_jax.train.metrics import read_metrics
from hypenet_jax.train.stage_output import load_params

pytestmark = pytest.mark.brief

STAGE = finetune_stage(Decoder(TEACHER))


@pytest.fixture(scope="module")
def evaluated(done, tmp_path_factory):
    """Distillation done again, evaluated after every step."""
    run = done.copied(tmp_path_factory.mktemp("evaluated") / "run").stage("distill")
    shutil.rmtree(run.folder)
    loop = dataclasses.replace(run.training.loop, evaluate_every=1)
    run = dataclasses.replace(run, training=dataclasses.replace(run.training, loop=loop))
    run_stage(run)
    return run


def of_kind(run, kind):
    return [r for r in read_metrics(run.folder / "metrics.jsonl") if r["kind"] == kind]


def test_the_loss_of_each_evaluation_is_recorded_and_training_keeps_its_bits(evaluated, done):
    found = of_kind(evaluated, "evaluation")
    assert [record["step"] for record in found] == [0, 1, 2]
    assert found[0]["loss"] != found[1]["loss"]
    before = of_kind(done.config.stage("distill"), "train")
    losses = [[r["loss"] for r in records] for records in (before, of_kind(evaluated, "train"))]
    assert losses[0] == losses[1]


def test_the_evaluated_loss_is_the_divergence_on_the_held_out_rows(evaluated):
    run, mesh = evaluated, make_mesh(evaluated.mesh)
    models = models_of(run)
    teacher = EvalModel("teacher", models.teacher, load_teacher(run, models, mesh))
    expected = abstract_params(models.student)
    like = jax.tree.map(
        lambda leaf, sharding: leaf.update(sharding=sharding),
        expected.shapes,
        expected.shardings(mesh),
    )
    params, _ = load_params(run.final_of("distill"), "distill", like=like)
    data = run.data
    batches = heldout_batches(
        open_prepared(data.corpus.folder),
        data.context_length,
        data.sequences_per_step,
        reset_documents=data.reset_documents,
    )
    report = held_out(
        EvalModel("student", models.student, params),
        itertools.islice(batches, MOST_BATCHES),
        teacher,
    )
    wanted = report.value("kl", "student", data.context_length)
    assert of_kind(run, "evaluation")[-1]["loss"] == pytest.approx(wanted, rel=1e-4)


def test_text_of_which_nothing_is_held_out_cannot_be_evaluated(copy, tmp_path):
    run = copy.stage("distill")
    corpus = dataclasses.replace(
        run.data.corpus, folder=str(tmp_path / "data"), heldout_fraction=0.0
    )
    inputs = Inputs(
        config=run,
        mesh=make_mesh(run.mesh),
        prepared=prepare(corpus),
        models=models_of(run),
        weights=Weights(),
    )
    with pytest.raises(ValueError, match=r"holds out no document.*larger heldout_fraction"):
        heldout_loss(STAGE, inputs)
