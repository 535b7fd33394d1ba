"""A stage that reads conversations: what it learns, what it measures, and what it leaves."""

import dataclasses
import json
import pathlib
import shutil

import pytest
from tiny_chain import LONG, ROWS

from hypenet_jax.config import StageConfig
from hypenet_jax.convert import run_stage
from hypenet_jax.convert.programs import models_of
from hypenet_jax.data.chat import chat_template
from hypenet_jax.data.loader import heldout_batches
from hypenet_jax.data.prepared import open_prepared
from hypenet_jax.data.sources import Conversations
from hypenet_jax.data.tokenizer import TokenizerFile, load_tokenizer
from hypenet_jax.evals import EvalModel, held_out
from hypenet_jax.testing import CHATML, tiny_chat_tokenizer
from hypenet_jax.train.metrics import read_metrics
from hypenet_jax.weights import load_hf

pytestmark = pytest.mark.brief


def write_conversations(folder: pathlib.Path) -> None:
    """Forty questions with their answers, 25 tokens each, and the tokenizer that reads them."""
    tiny_chat_tokenizer().save(folder)
    with (folder / "a.jsonl").open("w") as lines:
        for i in range(10, 50):
            chat = [{"role": role, "content": f"{role[0]}{i}"} for role in ("user", "assistant")]
            lines.write(json.dumps({"messages": chat}) + "\n")


def on_conversations(stage: StageConfig, folder: pathlib.Path) -> StageConfig:
    """The stage with another corpus, whose blocks are its rows."""
    corpus = dataclasses.replace(
        stage.data.corpus,
        folder=f"{folder}/prepared",
        source=Conversations(str(folder), ("*.jsonl",)),
        tokenizer=TokenizerFile(str(folder)),
        block_length=LONG,
    )
    data = dataclasses.replace(
        stage.data, corpus=corpus, context_length=LONG, first_token=0, needles=None
    )
    return dataclasses.replace(stage, data=data)


@pytest.fixture(scope="module")
def tuned(done, tmp_path_factory) -> StageConfig:
    """Stage 3 of a finished conversion done again, on conversations."""
    place = tmp_path_factory.mktemp("tuned")
    write_conversations(place / "chats")
    stage = on_conversations(done.copied(place / "run").stage("finetune"), place / "chats")
    shutil.rmtree(stage.folder)
    loop = dataclasses.replace(stage.training.loop, evaluate_every=2)
    training = dataclasses.replace(stage.training, loop=loop)
    # The exported model computes what was trained.
    student = dataclasses.replace(stage.student, logit_scale=None)
    stage = dataclasses.replace(stage, training=training, student=student)
    run_stage(stage)
    return stage


def test_the_held_out_loss_of_a_stage_is_that_of_the_assistants_tokens(tuned):
    records = read_metrics(tuned.folder / "metrics.jsonl")
    *_, found = [record for record in records if record["kind"] == "evaluation"]
    prepared = open_prepared(tuned.data.corpus.folder)
    decoder, params = load_hf(tuned.hf_folder, dtype="float32")
    batches = heldout_batches(prepared, LONG, ROWS, reset_documents=True)
    (row,) = held_out(EvalModel("student", decoder, params), batches).select("cross_entropy").rows
    assert found["loss"] == pytest.approx(row.value, rel=1e-4)
    assert row.count == prepared.manifest["splits"]["heldout"]["learned"]


def test_a_student_reads_conversations_as_it_was_taught(tuned):
    tokenizer = load_tokenizer(tuned.hf_folder)
    assert tokenizer.end_token == "<|im_end|>"
    assert chat_template(tokenizer).source == CHATML


def test_the_corpus_alone_decides_that_a_distillation_counts_what_the_assistant_says(done):
    stage = done.config.stage("distill")
    assert not models_of(stage).answers_only
    assert models_of(on_conversations(stage, pathlib.Path("chats"))).answers_only
