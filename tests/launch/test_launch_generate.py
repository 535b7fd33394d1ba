"""python -m launch.generate: a folder made here continues prompts; files, streaming, errors."""

import io
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.data.tokenizer import TrainedTokenizer, train_tokenizer
from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.decoder import Decoder, init_params
from hypenet_jax.model.generate import Sampling
from hypenet_jax.model.layers import Initialization
from hypenet_jax.model.mixers import SoftmaxSpec
from hypenet_jax.run import generate as room
from hypenet_jax.weights import save_hf
from launch import generate

ROOT = pathlib.Path(__file__).parents[2]
TEACHER = ModelConfig(260, 16, 16, (SoftmaxSpec(2, 1, 8, 1e4),) * 2, True)
PROMPTS = ["a cat", "the dog sat", "x" * 40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("generate") / "model"
    config = hypenet(TEACHER, (1,))
    decoder = Decoder(config, jnp.float32, start=Initialization(std=0.5, embedding_std=1.0))
    save_hf(path, config, init_params(decoder, jax.random.key(0)), dtype="float32")
    train_tokenizer(["the cat sat on the mat"] * 3, TrainedTokenizer(260)).save(path)
    return path


@pytest.fixture(scope="module")
def writer(folder) -> room.Writer:
    return room.open_writer(folder, max_new_tokens=6, sampling=Sampling(1.0), seed=3, batch=2)


def test_a_prompt_in_a_batch_writes_what_it_writes_alone(writer):
    speed = room.Speed()
    together = room.complete(writer, PROMPTS, speed)
    assert [one.prompt for one in together] == PROMPTS
    assert speed.written == sum(one.tokens for one in together)
    assert room.complete(writer, PROMPTS[:1], room.Speed()) == together[:1]


def test_streamed_text_is_the_text(writer):
    heard = []
    (one,) = room.complete(writer, PROMPTS[:1], room.Speed(), heard.append)
    assert "".join(heard) == one.text


def test_prompts_share_a_few_widths_and_full_batches():
    lengths = np.random.default_rng(0).integers(1, 500, 1000).tolist()
    batches = list(room._batches(lengths, 8))
    assert {width for width, _ in batches} <= {32, 64, 128, 256, 512}
    assert sorted(row for _, rows in batches for row in rows) == list(range(1000))
    assert sum(len(rows) < 8 for _, rows in batches) <= 5
    assert all(lengths[row] <= width for width, rows in batches for row in rows)


def test_end_tokens_come_from_the_generation_config_then_the_config(tmp_path):
    assert room.end_ids(tmp_path) == ()
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert room.end_ids(tmp_path) == (7,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert room.end_ids(tmp_path) == (5, 6)


def test_the_command_reads_a_file_and_writes_json_lines(folder, tmp_path):
    asked, out = tmp_path / "asked.jsonl", tmp_path / "out.jsonl"
    asked.write_text('{"prompt": "the cat"}\n\n{"prompt": "a mat"}\n')
    words = ("--prompts", asked, "--max-new-tokens", "3", "--out", out)
    command = [sys.executable, "-m", "launch.generate", folder, *words]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["the cat", "a mat"]
    assert all(row["tokens"] <= 3 for row in rows)
    assert "tokens/s" in done.stderr


def test_each_line_typed_is_continued_until_the_input_ends(folder, monkeypatch, capsys):
    typed = io.StringIO("the cat\n\n")
    typed.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", typed)
    generate.main(generate.Arguments(folder, max_new_tokens=3))
    (expected,) = room.complete(
        room.open_writer(folder, max_new_tokens=3), ["the cat"], room.Speed()
    )
    captured = capsys.readouterr()
    assert captured.out == expected.text + "\n"
    assert "decode" in captured.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "nothing to continue"),
        ({"prompt": ("",)}, r"prompts \[1\] are empty"),
        ({"prompt": ("a",), "max_new_tokens": 0}, "at least 1"),
        ({"prompt": ("a",), "top_p": 2.0}, "top_p"),
    ],
)
def test_what_cannot_be_continued_is_one_clear_error(folder, monkeypatch, options, said):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(ValueError, match=said):
        generate.main(generate.Arguments(folder, **options))


def test_a_folder_without_tokenizer_and_a_line_without_prompt_are_errors(tmp_path):
    file = tmp_path / "asked.jsonl"
    file.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(ValueError, match="line 2"):
        room.read_prompts(file)
    save_hf(
        tmp_path / "bare",
        TEACHER,
        init_params(Decoder(TEACHER), jax.random.key(0)),
        dtype="float32",
    )
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        room.open_writer(tmp_path / "bare", max_new_tokens=1)
