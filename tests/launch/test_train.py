"""python -m launch.train: help, exit codes, and a stop in the middle."""

import logging
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from hypenet_jax.train.metrics import read_metrics
from launch import train

pytestmark = pytest.mark.brief

ROOT = pathlib.Path(__file__).parents[2]
ALIGN = str(ROOT / "configs" / "halo_2b" / "align.py")
STEPS = 300

# A model of one layer and 16 dimensions that reads its own text; `steps` is long enough to be stopped.
TINY = """
from hypenet_jax.config import StageConfig, TrainingConfig
from hypenet_jax.data.config import CorpusConfig, DataConfig
from hypenet_jax.data.sources import TextFiles
from hypenet_jax.data.tokenizer import TrainedTokenizer
from hypenet_jax.halo.align import AlignConfig
from hypenet_jax.halo.finetune import FinetuneConfig
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.mixers import SoftmaxSpec
from hypenet_jax.sharding import MeshConfig
from hypenet_jax.train.loop import LoopConfig
from hypenet_jax.train.optimizer import OptimizerConfig


def config(run_dir: str, text: str, teacher: str = "", steps: int = 300) -> StageConfig:
    source = TextFiles(text, ("*.txt",))
    corpus = CorpusConfig(
        folder=f"{run_dir}/data",
        source=source,
        tokenizer=TrainedTokenizer(260),
        block_length=16,
        heldout_fraction=0.0,
        seed=0,
    )
    return StageConfig(
        name="tiny",
        run_dir=run_dir,
        teacher=ModelConfig(
            vocab_size=260,
            d_model=16,
            d_mlp=16,
            mixers=(SoftmaxSpec(num_heads=2, num_kv_heads=1, head_dim=8, rope_theta=1e4),),
            tie_embeddings=True,
        ),
        teacher_folder=teacher or None,
        student=None,
        method=AlignConfig() if teacher else FinetuneConfig(start_from=None),
        data=DataConfig(corpus=corpus, context_length=16, sequences_per_step=8, first_token=0, seed=0),
        training=TrainingConfig(
            optimizer=OptimizerConfig(peak_lr=1e-3, final_lr=1e-3, warmup_steps=1, steps=steps),
            loop=LoopConfig(steps=steps, accumulate=1, checkpoint_every=steps),
            dtype="float32",
        ),
        mesh=MeshConfig(),
        seed=0,
    )
"""


@pytest.fixture
def words(tmp_path) -> list[str]:
    """The tiny config on the command line."""
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("abcabcabd " * 200)
    where = ["--run-dir", str(tmp_path / "run"), "--text", str(tmp_path / "text")]
    return [str(tmp_path / "tiny.py"), *where]


@pytest.fixture
def call():
    """(exit code of main); logging is as it was afterwards."""
    log = logging.getLogger("hypenet_jax")
    before = log.handlers[:], log.level, log.propagate

    def run(*words: str) -> int:
        try:
            return train.main(list(words))
        except SystemExit as end:
            return end.code

    yield run
    log.handlers[:], log.propagate = before[0], before[2]
    log.setLevel(before[1])


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), ([], 2)])
def test_help_prints_the_usage_and_so_does_nothing_at_all(call, capsys, words, code):
    assert call(*words) == code
    assert "python -m launch.train CONFIG" in capsys.readouterr().out


def test_help_of_a_config_lists_its_arguments(call, capsys):
    assert call(ALIGN, "--help") == 0
    assert "--teacher" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.py"], "no config file nowhere.py"),
        ([str(ROOT / "configs" / "halo_2b" / "halo.py")], "use python -m launch.halo"),
    ],
)
def test_a_bad_config_is_one_line_and_code_two(call, capsys, monkeypatch, words, said):
    monkeypatch.syspath_prepend(ROOT)
    assert call(*words) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed
    assert len(printed.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--training.loop.stps", "7"], "--training.loop.steps"),
        (["--mesh.tensor", "0"], "must be positive"),
    ],
)
def test_a_bad_argument_is_code_two_and_what_would_work(call, capsys, words, said):
    assert call(ALIGN, *words) == 2
    assert said in capsys.readouterr().err


def test_a_teacher_folder_that_is_none_is_code_five(call, capsys, words, tmp_path):
    assert call(*words, "--teacher", str(tmp_path / "nowhere")) == 5
    printed = capsys.readouterr().err
    assert "config.json" in printed
    assert "Traceback" not in printed


def test_text_that_is_not_there_is_code_five(call, capsys, words, tmp_path):
    assert call(*words, "--text", str(tmp_path / "nowhere")) == 5
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_42_and_the_same_command_finishes(words, tmp_path):
    command = [sys.executable, "-m", "launch.train", *words, "--steps", str(STEPS)]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    options = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **options) as process:
        for line in process.stderr:
            if f"step 1/{STEPS}" in line:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
    assert process.returncode == 42, rest
    assert "Preempted: stopped after step" in rest
    records = read_metrics(tmp_path / "run" / "tiny" / "metrics.jsonl")
    assert 1 <= len(records) < STEPS
    again = subprocess.run(command, check=False, **options)
    assert again.returncode == 0, again.stderr
    assert f"going on from step {len(records)}" in again.stderr
    records = read_metrics(tmp_path / "run" / "tiny" / "metrics.jsonl")
    assert [record["step"] for record in records] == [*range(1, STEPS + 1)]
    assert (tmp_path / "run" / "tiny" / "final").is_dir()
