"""python -m launch.convert: what it writes, what it prints, and how it ends."""

import pathlib
import runpy
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.model.config import MixerOptions, ModelConfig, hypenet
from hypenet_jax.model.mixers import SoftmaxSpec
from hypenet_jax.weights import read_hf, save_hf
from hypenet_jax.weights.names import flatten, nest, tensors

pytestmark = pytest.mark.brief

QWEN3 = ModelConfig(
    vocab_size=40,
    d_model=24,
    d_mlp=36,
    mixers=(SoftmaxSpec(4, 2, 8, rope_theta=1e6),) * 2,
    tie_embeddings=True,
)


@pytest.fixture
def source(tmp_path: pathlib.Path) -> str:
    draw = np.random.default_rng(0)
    leaves = {t.ours: draw.normal(size=t.our_shape) for t in tensors(QWEN3)}
    params = nest({path: jnp.asarray(leaf, jnp.bfloat16) for path, leaf in leaves.items()})
    save_hf(tmp_path / "source", QWEN3, params, dtype="bfloat16")
    return str(tmp_path / "source")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    def call(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["convert", *words])
        try:
            runpy.run_module("launch.convert", run_name="__main__")
        except SystemExit as end:
            return end.code
        return 0

    return call


def test_without_layers_it_copies_and_proves_it(run, source, tmp_path, capsys):
    target = str(tmp_path / "target")
    assert run(source, target, "--verify") == 0
    assert "source and result: 0\n" in capsys.readouterr().out
    first, second = flatten(read_hf(source)[1]), flatten(read_hf(target)[1])
    for path, leaf in first.items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(second[path]))


def test_a_mixer_that_is_not_listed_is_refused_by_name(run, source, tmp_path, capsys):
    assert run(source, str(tmp_path / "new"), "--softmax-layers", "1", "--mixer", "rnn") == 2
    assert "no mixer 'rnn'; there are softmax, lightning" in capsys.readouterr().err


def test_with_layers_it_writes_a_student_of_the_teachers_weights(run, source, tmp_path):
    target = str(tmp_path / "target")
    (tmp_path / "source" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert run(source, target, "--softmax-layers", "1", "--recurrent.rope", "False") == 0
    assert "mit, the licence of the model" in (tmp_path / "target" / "README.md").read_text()
    (_, teacher), (config, student) = read_hf(source), read_hf(target)
    assert config == hypenet(QWEN3, (1,), recurrent=MixerOptions(rope=False))
    for path in ("layer_0/mixer/q/kernel", "layer_1/mixer/k/kernel", "layer_0/mlp/up/kernel"):
        np.testing.assert_array_equal(
            np.asarray(flatten(teacher)[path]), np.asarray(flatten(student)[path])
        )


def test_a_name_in_the_local_cache_is_a_source(run, source, put_in_the_cache, tmp_path, capsys):
    put_in_the_cache(pathlib.Path(source), "some-org/tiny")
    target = tmp_path / "target"
    assert run("some-org/tiny", str(target), "--softmax-layers", "1") == 0
    assert "base_model: some-org/tiny" in (target / "README.md").read_text()
    assert run("some-org/other", str(tmp_path / "new")) == 2
    assert "hf download some-org/other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("{source}", "{target}", "--softmax-layers", "9"), 2, "softmax_layers (9,)"),
        (("{source}", "{target}", "--softmax-layer", "1"), 2, "--softmax-layers"),
        (("{source}",), 2, "PATH"),
        (("{source}", "{source}"), 2, "not empty"),
        (("{source}", "{target}", "--recurrent.rope", "False"), 2, "a copy has the plan"),
        (("{source}/nowhere", "{target}"), 5, "config.json"),
        (("{source}.gguf", "{target}", "--softmax-layers", "1"), 2, "a GGUF file becomes a folder"),
        (("{source}", "{target}", "--end-tokens", "<end>"), 2, "are for GGUF files"),
    ],
)
def test_errors_are_one_screen_with_their_exit_code(
    run, source, tmp_path, capsys, words, code, said
):
    places = {"source": source, "target": str(tmp_path / "target")}
    assert run(*(word.format(**places) for word in words)) == code
    captured = capsys.readouterr()
    assert said in captured.err + captured.out
    assert "Traceback" not in captured.err
    assert not (tmp_path / "target").exists()
