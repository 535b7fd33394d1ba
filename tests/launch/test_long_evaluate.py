"""A million tokens through the suite, whole and sliding: memory grows by the text and what is told of it alone."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from configs.quickstart import TEACHER
from hypenet_jax.data.tokenizer import TrainedTokenizer, train_tokenizer
from hypenet_jax.evals.report import Report, report_from_json_lines
from hypenet_jax.model.config import hypenet
from hypenet_jax.model.decoder import Decoder, init_params
from hypenet_jax.weights import save_hf

ROOT = pathlib.Path(__file__).parents[2]
SHORT, LONG = 2**16, 2**20
# Per token: the text and its windows, slots of documents, losses in two precisions. One activation would be 512.
TOLD = 96
SPARE = 2**26  # of the allocator


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """The quickstart's student without softmax attention, with random weights."""
    path = tmp_path_factory.mktemp("long") / "model"
    config = hypenet(TEACHER, ())
    params = init_params(Decoder(config, jnp.float32), jax.random.key(0))
    save_hf(path, config, params, dtype="float32")
    train_tokenizer([pathlib.Path(__file__).read_text()], TrainedTokenizer(512)).save(path)
    return path


def measured(folder: pathlib.Path, out: pathlib.Path, longest: int) -> tuple[Report, int]:
    """The rows up to a context length, and the largest resident memory of the command in bytes."""
    words = ["--out", out, "--lengths", longest, "--tasks", "--race.lengths"]
    words += ["--perplexity.windows", 1, "--perplexity.sliding-length", longest]
    words += ["--perplexity.stride", longest - 1]
    command = [sys.executable, "-m", "launch.evaluate", folder, *words]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.Popen(list(map(str, command)), env=environment, cwd=ROOT)
    _, status, used = os.wait4(done.pid, 0)
    done.returncode = os.waitstatus_to_exitcode(status)
    assert done.returncode == 0
    return report_from_json_lines((out / "report.jsonl").read_text()), 1024 * used.ru_maxrss


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_perplexity_of_a_million_tokens_takes_the_memory_of_a_part(folder, tmp_path):
    _, short = measured(folder, tmp_path / "short", SHORT)
    report, long = measured(folder, tmp_path / "long", LONG)
    print(f"peak {short} bytes at {SHORT} tokens, {long} at {LONG}")
    assert report.select("perplexity").lengths == (LONG,)
    assert report.select("perplexity_by_position").lengths == tuple(2**i for i in range(1, 21))
    assert report.select("perplexity_sliding").lengths == (LONG,)
    assert not report.select("failed").rows
    assert long - short < TOLD * (LONG - SHORT) + SPARE
