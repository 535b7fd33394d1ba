"""python -m launch.evaluate: a folder or a config, what can be set, and one small run."""

import json
import pathlib

import pytest

from hypenet_jax.config import StageConfig
from hypenet_jax.config_file import ConfigError, load, resolved
from hypenet_jax.data.sources import JsonLines, TextFiles
from hypenet_jax.data.tokenizer import load_tokenizer
from hypenet_jax.evals.config import EvaluationConfig
from hypenet_jax.evals.model import text_tokens
from hypenet_jax.evals.report import report_from_json_lines
from hypenet_jax.evals.ruler.tasks import TASKS
from hypenet_jax.runtime import BAD_CONFIG, FINISHED
from hypenet_jax.testing import tiny_student_folder
from launch import evaluate

pytestmark = pytest.mark.brief

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = str(ROOT / "configs/evals/results.py")


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return tiny_student_folder(tmp_path_factory.mktemp("evaluate") / "model")


def test_a_folder_is_measured_and_a_length_too_long_for_the_text_is_said(folder, tmp_path, capsys):
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("the cat sat on the mat. " * 40)
    out = tmp_path / "out"
    words = [str(folder), "--text", str(tmp_path / "text"), "--out", str(out)]
    words += ["--lengths", "32", "5000", "--tasks", "--speed.lengths"]
    words += ["--perplexity.windows", "2", "--perplexity.targets", "8"]
    assert evaluate.main(words) == FINISHED
    report = report_from_json_lines((out / "report.jsonl").read_text())
    assert report.select("perplexity").lengths == (32,)
    assert {row.length for row in report.select("failed").rows} == {5000}
    assert "report:" in capsys.readouterr().out


def test_a_folder_and_its_teacher_become_the_shipped_suite(folder, tmp_path):
    config = evaluate.config_of(
        [str(folder), "--teacher", "teacher", "--lengths", "64", "--ruler.samples", "3"]
    )[0]
    ruler, speed = config.measurements["ruler"], config.measurements["speed"]
    assert [one.label for one in config.models] == ["teacher", "model"]
    assert ruler.tasks == tuple(TASKS)
    assert (ruler.samples, speed.lengths, config.mesh.data) == (3, (64,), -1)
    assert isinstance(config.text, TextFiles)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    config = evaluate.config_of([str(folder), "--text", str(tmp_path)])[0]
    assert isinstance(config.text, JsonLines)


def test_the_config_of_the_results_loads_and_reads_back(tmp_path):
    config = load(RESULTS, EvaluationConfig, ["--run-dir", "elsewhere", "--speed.rounds", "1"])
    assert config.models[0].folder == "elsewhere/teacher/hf"
    assert config.measurements["speed"].rounds == 1
    plain = resolved(config)
    assert json.loads(json.dumps(plain)) == plain
    with pytest.raises(ConfigError, match=r"use python -m launch\.evaluate"):
        load(RESULTS, StageConfig)


def test_every_check_of_the_results_is_about_a_number_that_is_measured():
    config = load(RESULTS, EvaluationConfig)
    needle, perplexity, speed = (
        config.measurements[name] for name in ("needle", "perplexity", "speed")
    )
    measured = {
        "needle": (needle, needle.lengths),
        "perplexity": (perplexity, perplexity.lengths),
        "decode_speedup": (speed, speed.lengths),
        "state_bytes": (speed, speed.lengths),
        "prefill_speedup": (speed, [n for n in speed.lengths if n <= speed.longest_prefill]),
    }
    for check in config.checks:
        evaluator, lengths = measured[check.metric]
        labels = {source.label for source in evaluator.selected(config.models)}
        for model, length in filter(None, [(check.model, check.length), check.minus, check.over]):
            assert model in labels
            assert length in lengths


def test_a_sweep_is_decided_by_perplexity_or_by_the_tasks(folder):
    words = [str(folder), "--sweep.constants", "64", "128", "--sweep.by.lengths", "4096"]
    sweep = evaluate.config_of(words)[0].measurements["sweep"]
    assert (sweep.constants, sweep.metric, sweep.maximize) == ((64, 128), "perplexity", False)
    assert (sweep.by.lengths, sweep.models) == ((4096,), ("model",))
    sweep = evaluate.config_of([str(folder), "--sweep-by", "ruler"])[0].measurements["sweep"]
    assert (sweep.by.tasks, sweep.metric, sweep.maximize) == (tuple(TASKS), "ruler_mean", True)
    assert not sweep.active


@pytest.mark.parametrize(("passed", "code"), [(True, FINISHED), (False, evaluate.CHECK_FAILED)])
def test_a_required_check_that_fails_has_its_exit_code(folder, monkeypatch, passed, code):
    class Results:
        def __init__(self):
            self.passed = passed

    monkeypatch.setattr(evaluate, "evaluate", lambda config, stop: Results())
    assert evaluate.main([str(folder)]) == code


def test_without_a_model_the_use_is_said(capsys):
    for words, code in (([], BAD_CONFIG), (["--help"], FINISHED)):
        with pytest.raises(SystemExit) as stopped:
            evaluate.main(words)
        assert stopped.value.code == code
    assert "python -m launch.evaluate MODEL" in capsys.readouterr().out


def test_help_after_a_model_lists_all_that_can_be_set(folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([str(folder), "--help"])
    assert stopped.value.code == FINISHED
    said = capsys.readouterr().out
    for flag in ("--lengths", "--speed.rounds", "--sweep.constants", "--passkey.lengths"):
        assert flag in said


def test_a_model_that_is_not_there_ends_with_its_code(capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["absent"])
    assert stopped.value.code == BAD_CONFIG
    assert "absent is neither a folder nor a file" in capsys.readouterr().err


def test_a_folder_whose_documents_hold_no_text_is_refused(folder, tmp_path):
    tokenizer = load_tokenizer(folder)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="holds text: all are empty or not UTF-8"):
        text_tokens(TextFiles(str(tmp_path), ("*.txt",)), tokenizer, 100)
    (tmp_path / "words.txt").write_text("the cat")
    tokens = text_tokens(TextFiles(str(tmp_path), ("*.txt",)), tokenizer, 100)
    assert tokenizer.decode(tokens) == "the cat<|endoftext|>"
