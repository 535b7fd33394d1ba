"""What a suite is refused for before anything is measured."""

import dataclasses
import json
import pathlib
import shutil

import pytest

from hypenet_jax.evals.config import (
    EvaluationConfig,
    HeldOut,
    ModelSource,
    PerplexityConfig,
    RulerConfig,
    SpeedConfig,
    SweepConfig,
)
from hypenet_jax.evals.suite_checks import check_suite
from hypenet_jax.weights import CheckpointError

pytestmark = pytest.mark.brief


@pytest.fixture
def config(done) -> EvaluationConfig:
    teacher, student = (str(done.folder / name / "hf") for name in ("teacher", "finetune"))
    return EvaluationConfig(
        models=(ModelSource("teacher", teacher), ModelSource("student", student)),
        out="not written",
        text=HeldOut(str(done.folder / "data")),
        ruler=RulerConfig(("vt",), (800,)),
        perplexity=PerplexityConfig((16,)),
    )


@pytest.fixture
def student(config, tmp_path) -> pathlib.Path:
    """The student's folder, to be spoiled."""
    return pathlib.Path(shutil.copytree(config.models[1].folder, tmp_path / "student"))


def test_what_can_be_measured_is_not_refused(config):
    check_suite(config)


def test_a_folder_without_tokenizer_is_refused(config, student):
    (student / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        check_suite(dataclasses.replace(config, models=(ModelSource("bare", str(student)),)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"ruler": RulerConfig(("niah",), (800,))},
            r"no tasks \['niah'\]; there are niah_single_1",
        ),
        ({"race": SpeedConfig((64,), chips=("h900",))}, r"no chips \['h900'\]; there are v4"),
        ({"sweep": SweepConfig("another", (4.0,))}, r"no models \['another'\]; there are teacher"),
    ],
)
def test_names_that_are_not_known_are_refused_before_anything_is_measured(config, changes, said):
    with pytest.raises(ValueError, match=said):
        check_suite(dataclasses.replace(config, **changes))


def test_a_scale_that_cannot_be_written_is_refused(config):
    swept = SweepConfig("teacher", (4.0,), write=True)
    with pytest.raises(CheckpointError, match="no attn_logits_scaling"):
        check_suite(dataclasses.replace(config, sweep=swept))
    check_suite(dataclasses.replace(config, sweep=dataclasses.replace(swept, model="student")))


@pytest.mark.parametrize(
    "section",
    [
        lambda: PerplexityConfig((16, 0)),
        lambda: RulerConfig((), (-1,)),
        lambda: SpeedConfig(rounds=0),
        lambda: SweepConfig(length=0),
    ],
)
def test_lengths_and_counts_below_one_are_refused(section):
    with pytest.raises(ValueError, match="use at least 1"):
        section()


def test_models_of_other_vocabularies_are_not_compared_by_perplexity(config, student):
    file = student / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[1:3]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(tokenizer))
    models = (*config.models, ModelSource("other", str(student)))
    with pytest.raises(ValueError, match=r"\['other'\] have another vocabulary than 'teacher'"):
        check_suite(dataclasses.replace(config, models=models))
    models = (*config.models, ModelSource("other", str(student), reads=False))
    check_suite(dataclasses.replace(config, models=models))


def test_a_tokenizer_with_ids_that_the_model_does_not_know_is_refused(config, student):
    file = student / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "vocab_size": 200}))
    with pytest.raises(ValueError, match="a vocabulary of 200"):
        check_suite(dataclasses.replace(config, models=(ModelSource("small", str(student)),)))


def test_models_of_one_label_are_refused(config):
    with pytest.raises(ValueError, match="different labels"):
        dataclasses.replace(config, models=config.models[:1] * 2)
