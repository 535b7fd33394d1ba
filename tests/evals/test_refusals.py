"""What an evaluation is refused for before anything is measured."""

import dataclasses
import json
import pathlib
import shutil

import pytest

from hypenet_jax.evals.config import EvaluationConfig
from hypenet_jax.evals.efficiency.speed import SpeedEvaluator
from hypenet_jax.evals.language.perplexity import PerplexityEvaluator
from hypenet_jax.evals.model import HeldOut, ModelSource
from hypenet_jax.evals.ruler.evaluator import RulerEvaluator
from hypenet_jax.evals.runner import check_evaluation
from hypenet_jax.evals.sweep import SweepEvaluator
from hypenet_jax.model.rope_scaling import YarnScaling
from hypenet_jax.weights import CheckpointError

pytestmark = pytest.mark.brief

PERPLEXITY = PerplexityEvaluator(lengths=(16,))


@pytest.fixture
def config(folders) -> EvaluationConfig:
    teacher, student = (str(folders / name) for name in ("teacher", "student"))
    return EvaluationConfig(
        models=(ModelSource("teacher", teacher), ModelSource("student", student)),
        out="not written",
        text=HeldOut(str(folders / "data")),
        measurements={
            "perplexity": PERPLEXITY,
            "ruler": RulerEvaluator(tasks=("vt",), lengths=(800,)),
        },
    )


@pytest.fixture
def student(config, tmp_path) -> pathlib.Path:
    """The student's folder, to be spoiled."""
    return pathlib.Path(shutil.copytree(config.models[1].folder, tmp_path / "student"))


def check(config: EvaluationConfig, **changes) -> None:
    """With these measurements in place of others of the same name."""
    check_evaluation(dataclasses.replace(config, measurements={**config.measurements, **changes}))


def test_what_can_be_measured_is_not_refused(config):
    check(config)


def test_a_folder_without_tokenizer_is_refused(config, student):
    (student / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        check(dataclasses.replace(config, models=(ModelSource("bare", str(student)),)))


@pytest.mark.parametrize(
    ("evaluator", "said"),
    [
        (
            RulerEvaluator(tasks=("niah",), lengths=(800,)),
            r"no tasks \['niah'\]; there are niah_single_1",
        ),
        (
            SpeedEvaluator(lengths=(64,), chips=("h900",)),
            r"no chips \['h900'\]; there are v4",
        ),
        (
            dataclasses.replace(PERPLEXITY, models=("another",)),
            r"no models \['another'\]; there are teacher",
        ),
    ],
)
def test_names_that_are_not_known_are_refused_before_anything_is_measured(config, evaluator, said):
    with pytest.raises(ValueError, match=said):
        check(config, another=evaluator)


def test_a_scale_that_cannot_be_written_is_refused(config):
    sweep = SweepEvaluator(
        models=("teacher",), constants=(4.0,), by=PERPLEXITY, metric="perplexity", write=True
    )
    with pytest.raises(CheckpointError, match="no attn_logits_scaling"):
        check(config, sweep=sweep)
    check(config, sweep=dataclasses.replace(sweep, models=("student",)))


def test_a_scale_of_a_model_that_has_nothing_to_scale_is_refused(config, student):
    file = student / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lightning_use_rope": False}))
    source = ModelSource("NoPE", str(student), rope_scaling=YarnScaling(4.0, 64))
    with pytest.raises(ValueError, match="'NoPE': no layer has rotary positions for YarnScaling"):
        check(dataclasses.replace(config, models=(source,)))
    source = ModelSource("loud", str(student), logit_scale="hype 1")
    with pytest.raises(ValueError, match="'loud': the logit-scale constant a must be at least 2"):
        check(dataclasses.replace(config, models=(source,)))


@pytest.mark.parametrize(
    "section",
    [
        lambda: PerplexityEvaluator(lengths=(16, 0)),
        lambda: RulerEvaluator(lengths=(-1,)),
        lambda: SpeedEvaluator(rounds=0),
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
    config = dataclasses.replace(
        config, models=(*config.models, ModelSource("other", str(student)))
    )
    with pytest.raises(ValueError, match=r"\['other'\] have another vocabulary than 'teacher'"):
        check(config)
    check(config, perplexity=dataclasses.replace(PERPLEXITY, models=("teacher", "student")))


def test_a_tokenizer_with_ids_that_the_model_does_not_know_is_refused(config, student):
    file = student / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "vocab_size": 200}))
    with pytest.raises(ValueError, match="a vocabulary of 200"):
        check(dataclasses.replace(config, models=(ModelSource("small", str(student)),)))


def test_models_of_one_label_are_refused(config):
    with pytest.raises(ValueError, match="different labels"):
        dataclasses.replace(config, models=config.models[:1] * 2)
