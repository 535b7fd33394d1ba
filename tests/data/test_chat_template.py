"""Conversations as text and tokens; renderings and answers are compared with transformers'."""

import dataclasses

import numpy as np
import pytest
from chat_templates import SPECIAL, TEMPLATES

from hypenet_jax.data.chat import ChatTemplate, chat_template
from hypenet_jax.data.tokenizer import TrainedTokenizer, train_tokenizer
from hypenet_jax.testing import CHATML, tiny_tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "Où est <the> fox? "}
THOUGHT = {"role": "assistant", "content": "<think>\nA dog?\n</think>\n\nThere\n\n it jumps."}
ANSWER = {"role": "assistant", "content": "There it jumps."}
MORE = {"role": "user", "content": "And the dog?"}
CONVERSATIONS = {
    "a question": [QUESTION],
    "with a system prompt": [SYSTEM, QUESTION],
    "answered": [SYSTEM, QUESTION, THOUGHT],
    "answered without a thought": [QUESTION, ANSWER],
    "of two turns": [QUESTION, THOUGHT, MORE, ANSWER],
}
TOOLS = [{"type": "function", "function": {"name": "où", "parameters": {"x": "<y>"}}}]
ARGUMENTS = [{}, {"enable_thinking": False}, {"tools": TOOLS}, {"date_string": "1 May"}]


def tokenizer_of(source):
    plain = train_tokenizer(["the fox jumps over the dog"], TrainedTokenizer(257, SPECIAL))
    tokens = {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>", "unk_token": None}
    config = {**plain.config, **tokens, "chat_template": source}
    return dataclasses.replace(plain, end_token="<|im_end|>", config=config)


@pytest.fixture(scope="module")
def chatml():
    return tokenizer_of(CHATML)


def learned(tokenizer, messages, *, last_answer_alone=False, **arguments):
    """What the assistant writes of this conversation."""
    template = chat_template(tokenizer, arguments)
    encoded = template.encode(tokenizer, messages, last_answer_alone=last_answer_alone)
    return tokenizer.decode(encoded.tokens[encoded.from_assistant])


@pytest.mark.parametrize("name", TEMPLATES)
def test_special_tokens_of_a_rendering_are_tokens(name):
    tokenizer = tokenizer_of(TEMPLATES[name])
    template = chat_template(tokenizer, {"date_string": "1 May"})
    messages = [SYSTEM, QUESTION, ANSWER]
    tokens = template.encode(tokenizer, messages).tokens
    text = template.render(messages)
    assert tokenizer.decode(tokens) == text
    marks = [token for token in SPECIAL if token in text]
    assert marks
    for token in marks:
        assert np.count_nonzero(tokens == tokenizer.id_of(token)) == text.count(token)


def test_an_answer_is_what_follows_its_prompt_up_to_its_end_token(chatml):
    messages = [SYSTEM, QUESTION, ANSWER, MORE, {"role": "assistant", "content": "It sleeps.\n"}]
    assert learned(chatml, messages) == "There it jumps.<|im_end|>It sleeps.\n<|im_end|>"


def test_generation_blocks_say_what_the_assistant_writes():
    tokenizer = tokenizer_of(TEMPLATES["llama3"])
    assert learned(tokenizer, [QUESTION, ANSWER, MORE]) == "There it jumps.<|eot_id|>"
    assert learned(tokenizer, [QUESTION]) == ""
    two = [QUESTION, ANSWER, MORE, THOUGHT]
    assert learned(tokenizer, two, last_answer_alone=True) == THOUGHT["content"] + "<|eot_id|>"


def test_a_thought_is_learned_where_the_template_keeps_it():
    tokenizer = tokenizer_of(TEMPLATES["qwen3"])
    assert learned(tokenizer, [QUESTION, THOUGHT]) == THOUGHT["content"] + "<|im_end|>"
    answer = learned(tokenizer, [QUESTION, ANSWER], enable_thinking=False)
    assert answer == "There it jumps.<|im_end|>"


def test_of_a_template_that_rewrites_earlier_turns_the_last_answer_alone_is_learned():
    tokenizer, messages = tokenizer_of(TEMPLATES["qwen3"]), CONVERSATIONS["of two turns"]
    with pytest.raises(ValueError, match="message 2, the assistant's, otherwise once more follows"):
        learned(tokenizer, messages)
    last = learned(tokenizer, messages, last_answer_alone=True)
    assert last == "<think>\n\n</think>\n\nThere it jumps.<|im_end|>"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "robot", "content": "a"}], "message 1 has the role 'robot'; use one of system"),
        ([QUESTION, {"role": "assistant"}], "message 2, of role 'assistant', has no text"),
        ([{"role": "user", "content": ["a"]}], "message 1, of role 'user', has no text"),
        ([{"role": "user", "content": "\ufdd0"}], r"holds U\+FDD0"),
    ],
)
def test_messages_that_are_none_are_refused(chatml, messages, said):
    with pytest.raises(ValueError, match=said):
        chat_template(chatml).render(messages)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('only in pairs') }}", "refuses these messages: only in pairs"),
        ("{{ 'a' + messages }}", "refuses these messages: .*concatenate"),
        ("{{ messages.append(1) }}", "refuses these messages: .*unsafe"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages: .*unsafe"),
        ("{% if %}", "no jinja2: line 1"),
        ("{{ messages[-1].content }}", "leaves out message 1, of role 'system'"),
    ],
)
def test_a_template_that_fails_is_one_clear_error(source, said):
    template = ChatTemplate(source=source, special_tokens={})
    with pytest.raises(ValueError, match=said):
        template.render([SYSTEM, QUESTION])


def test_a_tokenizer_without_a_chat_template_says_where_it_belongs():
    with pytest.raises(ValueError, match=r"neither chat_template.jinja nor a chat_template in"):
        chat_template(tiny_tokenizer())


def test_of_several_templates_the_default_is_taken(chatml):
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    several = dataclasses.replace(chatml, config={**chatml.config, "chat_template": named})
    assert chat_template(several).source == CHATML


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Tokenizers of transformers by the name of their template."""
    transformers = pytest.importorskip("transformers")
    loaded = {}
    for name, source in TEMPLATES.items():
        folder = tmp_path_factory.mktemp(name)
        tokenizer_of(source).save(folder)
        loaded[name] = transformers.AutoTokenizer.from_pretrained(folder)
    return loaded


@pytest.mark.torch
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_renderings_and_tokens_are_those_of_transformers(name, messages, theirs):
    tokenizer = tokenizer_of(TEMPLATES[name])
    for arguments in ARGUMENTS:
        template = chat_template(tokenizer, arguments)
        for prompt in (True, False):
            ask = {"add_generation_prompt": prompt, **arguments}
            text = template.render(messages, add_generation_prompt=prompt)
            assert text == theirs[name].apply_chat_template(messages, tokenize=False, **ask)
            ids = theirs[name].apply_chat_template(messages, return_dict=False, **ask)
            assert tokenizer.encode(text, special_tokens=True).tolist() == ids


@pytest.mark.torch
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_tokens_of_generation_blocks_are_those_of_transformers(messages, theirs):
    tokenizer = tokenizer_of(TEMPLATES["llama3"])
    encoded = chat_template(tokenizer).encode(tokenizer, messages)
    expected = theirs["llama3"].apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded.tokens.tolist() == expected["input_ids"]
    assert encoded.from_assistant.tolist() == [bool(x) for x in expected["assistant_masks"]]
