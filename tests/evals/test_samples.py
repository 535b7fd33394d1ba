"""What models write and answer."""

import dataclasses
import pathlib

import pytest

from hypenet_jax.data.chat import chat_template
from hypenet_jax.data.tokenizer import load_tokenizer
from hypenet_jax.evals.evaluator import Session
from hypenet_jax.evals.language.samples import SamplesEvaluator
from hypenet_jax.evals.model import EvalModel, ModelSource
from hypenet_jax.generation.generate import GenerationConfig, generate_batches
from hypenet_jax.testing import CHATML, tiny_chat_tokenizer, tiny_teacher, write_folder
from hypenet_jax.weights import load_hf

pytestmark = pytest.mark.brief

ASKED = SamplesEvaluator(instructions=("who sleeps?",), tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    words = tiny_chat_tokenizer()
    path = tmp_path_factory.mktemp("chat") / "model"
    return write_folder(path, tiny_teacher(words.vocab_size), tokenizer=words)


@pytest.fixture(scope="module")
def model(folder) -> EvalModel:
    words = load_tokenizer(folder)
    return EvalModel("teacher", *load_hf(folder), words, (words.end_id,))


def test_an_instruction_is_answered_as_the_chat_template_renders_it(model, tmp_path):
    session = Session(model="teacher", seed=0, folder=tmp_path, key="")
    (row,) = ASKED.run(model, session).rows
    assert (row.metric, row.task) == ("answer", "who sleeps?")
    text = chat_template(model.tokenizer).render(
        [{"role": "user", "content": "who sleeps?"}], add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>assistant\n")
    tokens = model.tokenizer.encode(text, special_tokens=True)
    config = GenerationConfig(max_new_tokens=6, stop_tokens=model.end_ids)
    (batch,) = generate_batches(model.decoder, model.params, [tokens], config)
    new = [token for token in batch[0].tokens.tolist() if token not in model.end_ids]
    assert row.label == model.tokenizer.continuation(new)


def test_instructions_to_a_model_without_a_chat_template_are_refused(folder, tmp_path):
    config = {**tiny_chat_tokenizer().config, "chat_template": None}
    plain = dataclasses.replace(tiny_chat_tokenizer(), config=config)
    plain.save(tmp_path)
    ASKED.check([ModelSource("teacher", str(folder))])
    with pytest.raises(ValueError, match="'plain': the tokenizer has no chat template"):
        ASKED.check([ModelSource("plain", str(tmp_path))])
    dataclasses.replace(ASKED, instructions=()).check([ModelSource("plain", str(tmp_path))])


def test_an_instruction_that_the_template_refuses_is_refused_before_anything_is_measured(tmp_path):
    strict = "{{ raise_exception('no questions') }}" + CHATML
    tiny_chat_tokenizer(strict).save(tmp_path)
    with pytest.raises(ValueError, match=r"'strict': the chat template refuses.*no questions"):
        ASKED.check([ModelSource("strict", str(tmp_path))])
