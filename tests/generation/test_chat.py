"""Turns of a chat: each is answered as if the whole conversation were read anew, and reads only what is new."""

import dataclasses
import json
import sys
import time

import jax.numpy as jnp
import pytest
from chatty import (
    CONFIG,
    NEW,
    SAID,
    SYSTEM,
    TOKENIZER,
    count,
    generator_of,
    letters_folder,
    speller,
)

from hypenet_jax.generation import Chat, GenerationConfig, open_generator
from hypenet_jax.generation.throughput import Throughput
from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.mixers import SoftmaxSpec
from hypenet_jax.testing import CHATML, random_params

pytestmark = pytest.mark.brief

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# Earlier answers lose their first letter, as those of Qwen3 lose their thoughts.
FORGETS = (
    "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}"
    "<|im_start|>assistant\n{{ m.content[1:] }}<|im_end|>\n{% else %}" + TURN + "{% endif %}"
    "{% endfor %}" + OPENING
)
# An answer begins with what is not repeated once it is there, as Qwen3's without thinking.
HINTS = CHATML + "{% if add_generation_prompt and hint %}{{ hint }}{% endif %}"
# The last turn alone is numbered, so that nothing before it reads as it did.
NUMBERS = "{{ messages | length }}" + CHATML


def talk(generator, said=SAID):
    """Replies to what is said, and what each is in a chat that reads all of its conversation anew."""
    chat, replies, anew = Chat(generator, [SYSTEM]), [], []
    for content in said:
        anew.append(Chat(generator, chat.messages).say(content))
        replies.append(chat.say(content))
    return chat, replies, anew


@pytest.mark.parametrize("template", [CHATML, FORGETS, HINTS, NUMBERS])
@pytest.mark.parametrize("params", [speller(), random_params(CONFIG)], ids=["letters", "bytes"])
def test_a_turn_is_answered_as_if_all_were_read_anew(template, params):
    """Of random bytes most are no text, so that no template can repeat the answer as it was written."""
    _, replies, anew = talk(generator_of(template, params, {"hint": "So"}))
    assert [reply.text for reply in replies] == [reply.text for reply in anew]
    assert replies[0] == anew[0]


def test_a_turn_reads_only_what_is_new():
    _, replies, anew = talk(generator_of())
    assert {reply.ended for reply in replies} == {True, False}
    for before, reply, content in zip(replies, replies[1:], SAID[1:], strict=False):
        end = "" if before.ended else "<|im_end|>"
        new = f"{end}\n<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
        assert reply.read == count(new)
    assert [reply.read for reply in anew] > [reply.read for reply in replies]


def test_an_answer_that_the_template_rewrites_is_read_as_it_stands_then():
    _, replies, _ = talk(generator_of(FORGETS))
    rest = f"<|im_end|>\n<|im_start|>user\n{SAID[1]}<|im_end|>\n<|im_start|>assistant\n"
    assert replies[1].read == count(replies[0].text[1:] + rest)


def test_what_an_answer_begins_with_and_is_not_repeated_is_not_kept():
    _, replies, _ = talk(generator_of(HINTS, arguments={"hint": "So"}))
    rest = f"<|im_end|>\n<|im_start|>user\n{SAID[1]}<|im_end|>\n<|im_start|>assistant\nSo"
    assert replies[1].read == count(replies[0].text + rest)


def test_a_conversation_that_reads_otherwise_from_its_start_is_read_anew():
    _, replies, anew = talk(generator_of(NUMBERS))
    assert replies == anew


def test_streamed_text_is_the_answer_and_all_that_was_read_is_counted():
    heard, throughput = [], Throughput()
    chat = Chat(generator_of(), [SYSTEM])
    replies = [chat.say(content, on_text=heard.append, throughput=throughput) for content in SAID]
    assert "".join(heard) == "".join(reply.text for reply in replies)
    assert throughput.prefill.tokens == sum(reply.read for reply in replies)
    assert throughput.decode.tokens == sum(reply.tokens for reply in replies)


def test_after_a_reset_only_the_system_prompt_is_left():
    chat, replies, _ = talk(generator_of())
    chat.reset()
    assert chat.messages == (SYSTEM,)
    assert chat.say(SAID[0]) == replies[0]


def test_a_failed_turn_leaves_the_conversation_as_it_was(monkeypatch):
    chat, _, _ = talk(generator_of(), SAID[:1])
    expected = Chat(chat.generator, chat.messages).say("why not")
    before, module = chat.messages, sys.modules[Chat.__module__]
    with monkeypatch.context() as patch:
        patch.setattr(module, "decode", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            chat.say("why not")
    assert chat.messages == before
    assert chat.say("why not") == expected


def test_a_conversation_that_grows_too_long_is_refused_and_can_be_reset():
    chat = Chat(generator_of(max_length=60))
    first = chat.say("a fox")
    with pytest.raises(ValueError, match="exceed the maximum length 60"):
        chat.say("and " * 20)
    chat.reset()
    assert chat.say("a fox") == first


@pytest.mark.parametrize("template", [CHATML, FORGETS])
def test_a_saved_conversation_goes_on_as_the_one_that_was_saved(template, tmp_path):
    generator = generator_of(template)
    chat, _, _ = talk(generator, SAID[:2])
    chat.save(tmp_path / "saved")
    loaded = Chat(generator)
    loaded.load(tmp_path / "saved")
    assert loaded.say(SAID[2]) == chat.say(SAID[2])
    assert loaded.messages == chat.messages
    loaded.load(tmp_path / "saved")  # what was said since is gone
    assert len(loaded.messages) == 5
    file = tmp_path / "saved" / "conversation.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "marked": 1}))
    with pytest.raises(ValueError, match="damaged: its tokens are not those of context"):
        loaded.load(tmp_path / "saved")


def test_a_conversation_before_its_first_turn_can_be_saved(tmp_path):
    generator = generator_of()
    Chat(generator, [SYSTEM]).save(tmp_path / "saved")
    loaded = Chat(generator)
    loaded.load(tmp_path / "saved")
    assert loaded.messages == (SYSTEM,)


def test_folders_that_do_not_belong_to_a_chat_are_refused_and_it_goes_on(tmp_path):
    chat = Chat(generator_of())
    chat.save(tmp_path / "saved")
    with pytest.raises(FileExistsError, match="is there already"):
        chat.save(tmp_path / "saved")
    with pytest.raises(FileNotFoundError, match="holds no conversation"):
        chat.load(tmp_path)
    with pytest.raises(ValueError, match="another model or chat template"):
        Chat(generator_of(HINTS)).load(tmp_path / "saved")
    file = tmp_path / "saved" / "conversation.json"
    for text in ("{", json.dumps({"messages": []})):
        file.write_text(text)
        with pytest.raises(ValueError, match="damaged"):
            chat.load(tmp_path / "saved")
    assert chat.say("a fox").tokens


def test_the_first_token_after_8k_of_history_comes_ten_times_sooner_than_by_reading_it_again():
    small = ModelConfig(
        vocab_size=TOKENIZER.vocab_size,
        d_model=16,
        d_mlp=16,
        mixers=(SoftmaxSpec(1, 1, 8, 1e4),) * 2,
        tie_embeddings=True,
    )
    config = hypenet(small, softmax_layers=(1,))
    model = {"decoder": Decoder(config, jnp.float32), "params": random_params(config)}
    chat = Chat(dataclasses.replace(generator_of(max_new_tokens=2), **model))
    chat.say("Once more. " * 745)

    def seconds_to_first_token(chat):
        started, heard = time.perf_counter(), []
        chat.say("?", on_text=lambda _: heard.append(time.perf_counter()))
        return heard[0] - started

    going_on = min(seconds_to_first_token(chat) for _ in range(3))
    again = Chat(chat.generator, chat.messages)
    assert count(chat.generator.template.render(chat.messages)) > 8192
    assert seconds_to_first_token(again) > 10 * going_on


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_chat_is_what_transformers_answers_turn_by_turn(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    folder = letters_folder(tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    words = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    chat = Chat(open_generator(folder, GenerationConfig(max_new_tokens=NEW)), [SYSTEM])
    ends = {"eos_token_id": TOKENIZER.end_id, "pad_token_id": TOKENIZER.end_id}
    for content in SAID:
        asked = [*chat.messages, {"role": "user", "content": content}]
        tokens = words.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
        with torch.no_grad():
            whole = theirs.generate(**tokens, max_new_tokens=NEW, do_sample=False, **ends)
        new = whole[0, tokens["input_ids"].shape[1] :]
        assert chat.say(content).text == words.decode(new, skip_special_tokens=True)
