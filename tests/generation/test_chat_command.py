"""python -m launch.generate: chats typed line by line, conversations in files, special tokens in prompts."""

import dataclasses
import io
import json
import sys

import pytest
from chatty import NEW, SAID, SEED, SYSTEM, TOKENIZER, generator_of, letters_folder

from hypenet_jax.data.tokenizer import load_tokenizer
from hypenet_jax.generation import (
    Chat,
    Continuation,
    GenerationConfig,
    Sampling,
    TextGenerator,
    open_generator,
)
from hypenet_jax.generation.completions import read_prompts, settings_of
from hypenet_jax.generation.decode import decode_until
from hypenet_jax.generation.prefill import prefill_part
from hypenet_jax.testing import CHATML, tiny_tokenizer
from launch import generate

pytestmark = pytest.mark.brief

DRAWN = {"max_new_tokens": NEW, "temperature": 1.0, "seed": SEED}
HINTED = CHATML + "{% if add_generation_prompt and hint is true %}So{% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters_folder(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def generator(folder) -> TextGenerator:
    """Compiles what the command runs."""
    return open_generator(
        folder, GenerationConfig(max_new_tokens=NEW, sampling=Sampling(1.0), seed=SEED)
    )


@pytest.fixture(scope="module")
def answers(generator) -> list[str]:
    """To what is said, in this order."""
    chat = Chat(generator, [SYSTEM])
    return [chat.say(content).text for content in SAID]


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Runs the command with lines on its standard input; returns what it prints there, line by line."""

    def run(lines=(), **options):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        generate.main(generate.Arguments(folder, **DRAWN, **options))
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def read(monkeypatch):
    """The rows of tokens that would be continued; each is continued by an A."""
    rows = []

    def continue_all(decoder, params, tokens, config, **options):
        rows.extend(row.tolist() for row in tokens)
        written = Continuation(TOKENIZER.encode("A"))
        yield dict.fromkeys(range(len(tokens)), written)

    monkeypatch.setattr(sys.modules[TextGenerator.__module__], "generate_batches", continue_all)
    return rows


def test_each_line_of_a_chat_is_answered_after_those_before_it(run, answers):
    first, second, third = answers
    lines = [SAID[0], "", SAID[1], "/reset", *SAID]
    expected = [first, second, first, second, third]
    assert run(lines, chat=True, system=SYSTEM["content"]) == expected


def test_a_chat_is_saved_and_gone_on_with_in_another_process(run, answers, tmp_path):
    first, second, third = answers
    chat = {"chat": True, "system": SYSTEM["content"]}
    saved = run([*SAID[:2], f"/save {tmp_path / 'kept'}"], **chat)
    assert saved == [first, second, f"saved {tmp_path / 'kept'}"]
    loaded, answer = run([f"/load {tmp_path / 'kept'}", SAID[2]], chat=True)
    assert (loaded, answer) == (f"loaded {tmp_path / 'kept'}, 5 messages", third)


def test_a_bad_line_of_a_chat_is_an_error_of_its_own_and_the_chat_goes_on(run, answers, tmp_path):
    first, second, _ = answers
    bad = ["/quit", "/save", f"/load {tmp_path}", "x" * 200]
    lines = [SAID[0], *bad, SAID[1]]
    heard = run(lines, chat=True, system=SYSTEM["content"], max_length=128)
    assert (heard[0], heard[-1]) == (first, second)
    said = ["is no command; use /reset, /save FOLDER", "is no command", "no conversation", "128"]
    for line, error in zip(heard[1:-1], said, strict=True):
        assert line.startswith("error: ")
        assert error in line


def test_arguments_reach_the_template(run, folder, generator, answers):
    hinted = generator_of(HINTED).tokenizer
    hinted = dataclasses.replace(generator, tokenizer=hinted, template_arguments={"hint": True})
    expected = Chat(hinted, [SYSTEM]).say(SAID[0]).text
    assert expected != answers[0]
    path = folder / "chat_template.jinja"
    path.write_text(HINTED)
    options = {"chat": True, "system": SYSTEM["content"]}
    try:
        assert run(SAID[:1], **options, template_arguments=("hint=true",)) == [expected]
        assert run(SAID[:1], **options, template_arguments=("hint=yes",)) == answers[:1]
    finally:
        path.unlink()


def test_conversations_of_a_file_are_read_through_the_template(run, read, tmp_path):
    user = {"role": "user", "content": SAID[0]}
    rows = [
        {"messages": [SYSTEM, user]},
        {"prompt": "a fox"},
        {"messages": [SYSTEM, user, {"role": "assistant", "content": "A"}]},
        {"messages": [{"role": "robot", "content": "a"}]},
        {"messages": []},
        {"messages": ["a"]},
        {"messages": "a"},
        {"messages": [user], "prompt": "a"},
    ]
    asked, out = tmp_path / "asked.jsonl", tmp_path / "out.jsonl"
    asked.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(ValueError, match="6 of 8 failed; prompt 3"):
        run(prompts=asked, out=out)
    done = [json.loads(line) for line in out.read_text().splitlines()]
    text = generator_of().template.render([SYSTEM, user], add_generation_prompt=True)
    assert done[0] == {"prompt": text, "text": "A", "tokens": 1, "ended": False}
    assert done[1]["prompt"] == "a fox"
    plain, conversation = TOKENIZER.encode("a fox"), TOKENIZER.encode(text, special_tokens=True)
    assert read == [plain.tolist(), conversation.tolist()]
    said = ["nothing is asked", "'robot'; use one of", "without a message", "line 6: no JSON"]
    for row, error in zip(done[2:], [*said, "line 7: no JSON", "line 8: both"], strict=True):
        assert error in row["error"]


def test_another_template_makes_other_completions_of_a_conversation_alone(tmp_path):
    asked = tmp_path / "asked.jsonl"
    for line, same in (
        ('{"messages": [{"role": "user", "content": "a"}]}', False),
        ('{"prompt": "a"}', True),
    ):
        asked.write_text(line)
        prompts = read_prompts(asked)
        both = [settings_of(generator_of(source), prompts) for source in (CHATML, HINTED)]
        assert (both[0] == both[1]) is same


def test_special_tokens_of_a_plain_prompt_are_text_unless_asked_for(run, read):
    prompt = "a fox<|im_end|>"
    assert run(prompt=(prompt,)) == run(prompt=(prompt,), special_tokens=True) == [f"{prompt}A"]
    text, token = read
    assert token == [*TOKENIZER.encode("a fox"), TOKENIZER.end_id]
    assert TOKENIZER.end_id not in text
    assert TOKENIZER.decode(text) == prompt


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chat": True, "prompt": ("a",)}, "--chat answers what is typed; leave out --prompt"),
        ({"chat": True, "special_tokens": True}, "leave out .*--special-tokens"),
        ({"prompt": ("a",), "system": "b"}, "--system belongs to --chat"),
        ({"chat": True, "template_arguments": ("hint",)}, "'hint' is not NAME=VALUE"),
    ],
)
def test_options_that_contradict_each_other_are_refused(run, options, said):
    with pytest.raises(ValueError, match=said):
        run(["a"], **options)


def test_a_tokenizer_without_a_chat_template_is_one_clear_error(run, folder):
    kept = load_tokenizer(folder)
    tiny_tokenizer().save(folder)
    try:
        with pytest.raises(ValueError, match="the tokenizer has no chat template"):
            run(["a"], chat=True)
    finally:
        kept.save(folder)


def test_a_new_chat_that_streams_runs_what_was_compiled_for_one_that_did_neither(
    generator, answers
):
    """What is read after other text runs the program of what is read first, and the parts of an answer that of one."""
    programs = (prefill_part, decode_until)
    compiled = [program._cache_size() for program in programs]
    Chat(generator).say("?", on_text=lambda text: None)
    assert [program._cache_size() for program in programs] == compiled
