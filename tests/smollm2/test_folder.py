"""The folder made of the package's file computes, reads and writes what transformers does with that file."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recorded import QUESTION, TEXT

from hypenet_jax.data.chat import chat_template
from hypenet_jax.data.tokenizer import load_tokenizer
from hypenet_jax.generation import generate
from hypenet_jax.weights import load_hf

pytestmark = [pytest.mark.smollm2, pytest.mark.timeout(600)]

LOGITS = 1e-3  # of up to 34; 1.4e-4 was seen


@pytest.fixture(scope="module")
def model(teacher):
    return load_hf(teacher)


@pytest.fixture(scope="module")
def logits(model, recorded):
    decoder, params = model

    @jax.jit
    def compute(params, tokens):
        bound = decoder.bind({"params": params})
        return bound.logits(bound(tokens).hidden)

    tokens = jnp.asarray([recorded["tokens"][TEXT]])
    return np.asarray(compute(params, tokens))[0]


def test_texts_become_the_same_tokens_and_themselves_again(teacher, recorded):
    tokenizer = load_tokenizer(teacher)
    for text, tokens in recorded["tokens"].items():
        assert tokenizer.encode(text).tolist() == tokens
        assert tokenizer.decode(tokens) == text


def test_a_question_in_the_chat_template_is_the_same_text_and_tokens(teacher, recorded):
    tokenizer = load_tokenizer(teacher)
    text = chat_template(tokenizer).render(QUESTION, add_generation_prompt=True)
    assert text == recorded["chat"]
    encoding = tokenizer.with_special_tokens.encode(text, add_special_tokens=False)
    assert encoding.ids == recorded["written"][1]["prompt"]


def test_logits_are_those_recorded(logits, recorded):
    for position, some in recorded["logits"].items():
        ours = logits[int(position), [int(token) for token in some]]
        np.testing.assert_allclose(ours, [*some.values()], rtol=0, atol=LOGITS)
        assert logits[int(position)].max() == pytest.approx(max(some.values()), abs=LOGITS)


def test_so_is_the_loss_of_the_text(logits, recorded):
    tokens = np.asarray(recorded["tokens"][TEXT])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:-1], tokens[1:])
    assert losses.mean() == pytest.approx(recorded["loss"], abs=1e-4)


def test_greedy_decoding_writes_the_same_tokens(model, recorded):
    decoder, params = model
    for each in recorded["written"]:
        prompt, tokens = np.asarray([each["prompt"]], np.int32), each["tokens"]
        written = generate(decoder, params, prompt, max_new_tokens=len(tokens))
        assert written[0].tolist() == tokens
