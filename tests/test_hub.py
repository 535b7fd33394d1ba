"""Models by their name: found in the local cache, never downloaded, and a folder of that name wins."""

import shutil
import socket

import jax
import numpy as np
import pytest

from hypenet_jax import load_hf
from hypenet_jax.config_file import ConfigError
from hypenet_jax.data.tokenizer import load_tokenizer
from hypenet_jax.evals.model import ModelSource
from hypenet_jax.evals.runner import check_evaluation
from hypenet_jax.evals.sweep import SweepEvaluator
from hypenet_jax.generation import GenerationConfig, open_generator
from hypenet_jax.hub import cached_name, model_folder
from hypenet_jax.testing import tiny_student_folder
from hypenet_jax.weights import CheckpointError
from launch import evaluate

pytestmark = pytest.mark.brief

NAME = "some-org/a-tiny.Model"


@pytest.fixture(autouse=True)
def _no_connections(monkeypatch):
    def refuse(*args):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_student_folder(tmp_path_factory.mktemp("hub") / "student")


@pytest.fixture
def snapshot(folder, put_in_the_cache):
    return put_in_the_cache(folder, NAME)


def test_a_name_is_the_folder_in_the_cache(folder, snapshot):
    for revision in ("", "@main", "@v1.0", f"@{snapshot.name}"):
        assert model_folder(NAME + revision) == snapshot
    assert cached_name(snapshot) == NAME
    assert cached_name(folder) is None
    (decoder, params), (same, expected) = load_hf(NAME), load_hf(folder)
    assert decoder == same
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert load_tokenizer(NAME).fingerprint == load_tokenizer(folder).fingerprint
    generator = open_generator(NAME, GenerationConfig(max_new_tokens=1))
    assert generator.config.stop_tokens == (generator.tokenizer.end_id,)


def test_what_lies_at_that_path_wins(folder, snapshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / NAME)
    assert model_folder(NAME).resolve() == tmp_path / NAME


@pytest.mark.parametrize("revision", ["", "v2.0"])
def test_a_name_that_is_not_there_is_answered_with_the_download_command(snapshot, revision):
    name = "some-org/another" if not revision else f"{NAME}@{revision}"
    command = (
        "hf download some-org/another" if not revision else f"hf download {NAME} --revision v2.0"
    )
    for read in (load_hf, load_tokenizer):
        with pytest.raises(FileNotFoundError, match="no model in the local cache") as error:
            read(name)
        assert str(error.value).endswith(command)
    with pytest.raises(ConfigError, match=command):
        evaluate.config_of([name])


@pytest.mark.parametrize("path", ["nowhere", "/nowhere/at/all", "run/stage/hf", "no/model..--"])
def test_what_cannot_be_a_name_is_a_path(path):
    assert str(model_folder(path)) == path


def test_a_download_that_was_cut_off_is_answered_with_the_command_that_completes_it(snapshot):
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"hf download {NAME} --revision {snapshot.name}"):
        load_hf(NAME)


def test_an_evaluation_takes_a_name_and_does_not_write_to_the_cache(snapshot):
    config = evaluate.config_of([NAME, "--lengths", "8", "--tasks"])[0]
    check_evaluation(config)
    sweep = SweepEvaluator(by=config.measurements["perplexity"], metric="perplexity", write=True)
    with pytest.raises(ValueError, match="python -m launch"):
        sweep.check([ModelSource("model", NAME)])
