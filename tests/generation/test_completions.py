"""python -m launch.generate: a folder made here continues prompts; files, streaming, errors."""

import dataclasses
import io
import json
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest
from jax import monitoring

from hypenet_jax.data.bpe import sentencepiece_bpe
from hypenet_jax.data.tokenizer import Tokenizer
from hypenet_jax.generation import (
    GenerationConfig,
    Sampling,
    TextGenerator,
    generate_batches,
    open_generator,
)
from hypenet_jax.generation.completions import (
    CompletionFile,
    complete_all,
    read_prompts,
    settings_of,
)
from hypenet_jax.generation.text_generator import end_ids
from hypenet_jax.generation.throughput import COMPILING, Pace, Throughput
from hypenet_jax.testing import (
    VOCABULARY,
    tiny_student_folder,
    tiny_teacher,
    tiny_teacher_folder,
    write_folder,
)
from hypenet_jax.weights import CheckpointError
from launch import generate

pytestmark = pytest.mark.brief

ROOT = pathlib.Path(__file__).parents[2]
PROMPTS = ["a cat", "the dog sat", "x" * 40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return tiny_student_folder(tmp_path_factory.mktemp("generate") / "model")


@pytest.fixture(scope="module")
def generator(folder) -> TextGenerator:
    return open_generator(
        folder, GenerationConfig(max_new_tokens=6, sampling=Sampling(1.0), seed=3)
    )


def complete(generator, prompts, throughput=None, **options):
    """All completions, in the order of their prompts."""
    done = {}
    for batch in generator.complete(prompts, throughput, **options):
        done |= batch
    return [done[i] for i in sorted(done)]


def with_config(generator, **changes) -> TextGenerator:
    config = dataclasses.replace(generator.config, **changes)
    return dataclasses.replace(generator, config=config)


def test_a_prompt_in_a_batch_writes_what_it_writes_alone(generator):
    throughput = Throughput()
    together = complete(generator, PROMPTS, throughput)
    assert [one.prompt for one in together] == PROMPTS
    assert throughput.decode.tokens == sum(one.tokens for one in together)
    assert complete(generator, PROMPTS[:1]) == together[:1]
    assert complete(generator, PROMPTS, skip=(1, 2)) == together[:1]


def test_streamed_text_is_the_text(generator):
    heard = []
    (one,) = complete(generator, PROMPTS[:1], on_text=heard.append)
    assert "".join(heard) == one.text


def test_the_space_before_the_first_new_word_stays(generator):
    words = ["<unk>", "</s>", "▁", *(f"▁{i}" for i in range(3, VOCABULARY))]
    vocab = {word: i for i, word in enumerate(words)}
    backend = sentencepiece_bpe(vocab, [], unknown="<unk>", prefix=True)
    other, heard = dataclasses.replace(generator, tokenizer=Tokenizer(backend, "</s>", {})), []
    (one,) = complete(other, [" "], on_text=heard.append)
    assert one.text.startswith(" ")
    assert "".join(heard) == one.text


def test_what_cannot_be_continued_is_an_error_of_its_own_and_the_others_go_on(
    generator, monkeypatch
):
    (expected,) = complete(generator, PROMPTS[:1])

    def with_nan(decoder, params, context, *given, **options):  # in the row of the longest
        context = prefill(decoder, params, context, *given, **options)
        return dataclasses.replace(context, logits=context.logits.at[0].set(jnp.nan))

    module = sys.modules[generate_batches.__module__]
    prefill = module.prefill
    monkeypatch.setattr(module, "prefill", with_nan)
    bad = [PROMPTS[0], PROMPTS[1], "", ValueError("line 4: no JSON"), "x" * 40]
    done = complete(with_config(generator, max_length=30), bad)
    assert done[0] == expected
    errors = [one.error or "" for one in done]
    for error, said in zip(errors, ["", "NaN", "is empty", "line 4", "length 30"], strict=True):
        assert said in error
    assert [one.tokens for one in done[1:]] == [0] * 4
    small = dataclasses.replace(generator.decoder.config, vocab_size=5)
    other = dataclasses.replace(generator, decoder=generator.decoder.clone(config=small))
    assert "tokenizer that the model was trained with" in (
        complete(other, PROMPTS[:1])[0].error or ""
    )


def test_the_pace_leaves_out_the_time_of_compilation_and_counts_it_once():
    def report(seconds):
        monitoring.record_event_duration_secs(COMPILING + "something", seconds)

    pace = Pace(tokens=10)
    with pace.timed():
        time.sleep(0.3)
        report(0.1)
        report(0.2)  # the 0.1 before are a part of it
    assert pace.compiling == pytest.approx(0.2, abs=1e-6)
    assert 0.3 <= pace.seconds < 3
    assert str(pace) == f"10 tokens, {10 / (pace.seconds - 0.2):.1f} tokens/s"


def test_a_run_that_was_cut_off_goes_on_and_ends_as_if_it_had_not_been(generator, tmp_path):
    settings = settings_of(generator, PROMPTS)
    complete_all(generator, PROMPTS, CompletionFile(tmp_path / "whole.jsonl", settings))
    out = tmp_path / "out.jsonl"
    first, *_ = generator.complete(PROMPTS)
    CompletionFile(out, settings).add(first)
    partial = out.with_name("out.jsonl.partial")
    partial.write_text(partial.read_text() + '{"index": 2, "promp')
    with pytest.raises(ValueError, match="started with another seed"):
        CompletionFile(out, {**settings, "seed": 4})
    again = CompletionFile(out, settings)
    assert again.done == first
    complete_all(generator, PROMPTS, again)
    assert out.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert not partial.exists()


def test_completions_of_other_weights_are_not_gone_on_with(generator, tmp_path):
    out = tmp_path / "out.jsonl"
    CompletionFile(out, settings_of(generator, PROMPTS))
    params = jax.tree.map(lambda leaf: leaf, generator.params)
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[0].add(1e-3)
    other = dataclasses.replace(generator, params=params)
    with pytest.raises(ValueError, match="started with another model"):
        CompletionFile(out, settings_of(other, PROMPTS))


def test_end_tokens_come_from_the_generation_config_then_the_config(tmp_path):
    assert end_ids(tmp_path) == ()
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert end_ids(tmp_path) == (7,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert end_ids(tmp_path) == (5, 6)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": ["<end>"]}')
    with pytest.raises(CheckpointError, match="must be an id or a list of ids"):
        end_ids(tmp_path)


def test_tokens_that_the_model_does_not_know_are_refused(tmp_path):
    folder = tiny_teacher_folder(tmp_path / "model")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "vocab_size": 270}))
    with pytest.raises(
        ValueError, match=r"2 tokens of the tokenizer .* beyond a vocabulary of 270"
    ):
        open_generator(folder, GenerationConfig(max_new_tokens=2))


def test_weights_padded_beyond_the_tokenizer_write_text(tmp_path):
    folder = write_folder(tmp_path / "model", tiny_teacher(280, layers=1))
    (done,) = complete(open_generator(folder, GenerationConfig(max_new_tokens=4)), ["a cat"])
    assert (done.error, done.tokens) == (None, 4)


def test_the_command_reads_a_file_and_writes_json_lines(folder, tmp_path):
    asked, out = tmp_path / "asked.jsonl", tmp_path / "out.jsonl"
    asked.write_text('{"prompt": "the cat"}\n\n{"text": "x"}\n{"prompt": "a mat"}\n')
    words = ("--prompts", asked, "--max-new-tokens", "3", "--out", out)
    command = [sys.executable, "-m", "launch.generate", folder, *words]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "1 of 3 failed; prompt 2" in done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["the cat", "", "a mat"]
    assert [row["tokens"] for row in rows] == [3, 0, 3]
    assert ["line 3" in row.get("error", "") for row in rows] == [False, True, False]
    assert "tokens/s" in done.stderr


def test_each_line_typed_is_continued_until_the_input_ends(folder, monkeypatch, capsys):
    typed = io.StringIO("the cat\n\nzz\n")
    typed.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", typed)
    generate.main(generate.Arguments(folder, max_new_tokens=3, max_length=5))
    captured = capsys.readouterr()
    generator = open_generator(folder, GenerationConfig(max_new_tokens=3, max_length=5))
    refused, expected = complete(generator, ["the cat", "zz"])
    assert captured.out == f"\nerror: {refused.error}\n{expected.text}\n"
    assert "decode" in captured.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "nothing to continue"),
        ({"prompt": ("",)}, "1 of 1 failed; prompt 1: the prompt is empty"),
        ({"prompt": ("a",), "max_new_tokens": 0}, "at least 1"),
        ({"prompt": ("a",), "top_p": 2.0}, "top_p"),
        ({"prompt": ("a",), "max_length": 128}, "no room for a prompt and 128 new tokens"),
        ({"prompt": ("a",), "max_new_tokens": 2**44}, "1 of 1 failed; prompt 1: MemoryError"),
    ],
)
def test_what_cannot_be_continued_is_one_clear_error(folder, monkeypatch, options, said):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(ValueError, match=said):
        generate.main(generate.Arguments(folder, **options))


def test_a_line_that_is_no_prompt_says_so_in_its_place(tmp_path):
    file = tmp_path / "asked.jsonl"
    file.write_text('{"prompt": "a"}\n{"text": "b"}\n[\n{"prompt": 3}\n{"prompt": "c"}\n')
    first, *bad, last = read_prompts(file)
    assert (first, last) == ("a", "c")
    assert [f"line {number}" in str(error) for number, error in enumerate(bad, 2)] == [True] * 3
    plain = tmp_path / "asked.txt"
    plain.write_text("a b\n\n{}\n")
    assert read_prompts(plain) == ["a b", "{}"]


def test_a_file_without_prompts_and_a_folder_to_write_to_are_refused(tmp_path):
    file = tmp_path / "asked.txt"
    for content, said in ((b" \n", "holds no prompt"), (b"\xff\xfe", "not UTF-8")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            read_prompts(file)
    with pytest.raises(ValueError, match="is a folder"):
        CompletionFile(tmp_path, {})
    CompletionFile(tmp_path / "new" / "out.jsonl", {})
    assert (tmp_path / "new" / "out.jsonl.partial").is_file()


def test_a_batch_that_the_device_has_no_room_for_fails_and_the_others_go_on(generator, monkeypatch):
    def small(decoder, rows, capacity):
        if capacity > 32 + generator.config.max_new_tokens:
            raise MemoryError("too small")

    monkeypatch.setattr(sys.modules[generate_batches.__module__], "check_memory", small)
    done = complete(generator, [PROMPTS[0], "y" * 40])
    assert (done[0].error, done[0].tokens) == (None, 6)
    assert done[1].error == "MemoryError: too small"


def test_a_folder_without_tokenizer_is_an_error(tmp_path):
    (tiny_teacher_folder(tmp_path / "bare") / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        open_generator(tmp_path / "bare", GenerationConfig(max_new_tokens=1))
    with pytest.raises(CheckpointError, match=r"absent.*a checkpoint folder holds config\.json"):
        open_generator(tmp_path / "absent", GenerationConfig(max_new_tokens=1))
