"""Scores of lm-evaluation-harness: of this project and of the harness's own Hugging Face backend, on one folder."""

import dataclasses
import json
import math
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from harness_folder import local_tasks, write_folder

from hypenet_jax.data.tokenizer import (
    Tokenizer,
    TrainedTokenizer,
    load_tokenizer,
    train_tokenizer,
)
from hypenet_jax.evals.harness import requests
from hypenet_jax.evals.harness.evaluator import HarnessEvaluator
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.report import Report
from hypenet_jax.weights import load_hf

pytestmark = pytest.mark.harness

MAX_LENGTH = 64
REQUESTS = [
    ("The river", " freezes in the night"),
    ("The river ", "freezes"),
    ("", "Snow"),
    ("", "</s>Snow"),
    ("<s>Snow is", " cold"),
    ("The old men count the boats. " * 20, "There were more of them"),
    ("To bake bread, take flour", ","),
    ("To bake bread, take flour", "?"),
]


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    """Read when the harness is imported, so before any test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture(scope="module", params=[False, True], ids=["as Qwen3", "<s> before texts"])
def folder(request, tmp_path_factory) -> pathlib.Path:
    return write_folder(tmp_path_factory.mktemp("harness") / "m", begins_texts=request.param)


@pytest.fixture(scope="module")
def tokenizer(folder) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def eval_model(folder, tokenizer) -> EvalModel:
    return EvalModel("tiny", *load_hf(folder, dtype=jnp.float32), tokenizer)


@pytest.fixture(scope="module")
def ours(eval_model) -> Any:
    from hypenet_jax.evals.harness.model import HarnessModel

    return HarnessModel(eval_model, max_length=MAX_LENGTH)


@pytest.fixture(scope="module")
def theirs(folder) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(str(folder), device="cpu", dtype="float32", batch_size=3, max_length=MAX_LENGTH)


@pytest.fixture(scope="module")
def their_results(theirs) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    found = simple_evaluate(theirs, tasks=local_tasks(), task_manager=manager, bootstrap_iters=0)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def our_report(eval_model) -> Report:
    return HarnessEvaluator(max_length=MAX_LENGTH).measure(eval_model, local_tasks())


def instances(kind: str, arguments: list[tuple]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


def assert_same(our: list[tuple[float, bool]], their: list[tuple[float, bool]]) -> None:
    np.testing.assert_allclose(
        [log_p for log_p, _ in our], [log_p for log_p, _ in their], atol=1e-4
    )
    assert [greedy for _, greedy in our] == [greedy for _, greedy in their]


def test_texts_become_the_same_tokens(ours, theirs):
    texts = ["", "Snow is cold.", "<s>Snow</s>", "</s>Snow", " a  b\n"]
    assert [ours.tok_encode(text) for text in texts] == [theirs.tok_encode(text) for text in texts]
    assert ours.prefix_token_id == theirs.prefix_token_id
    assert ours.eot_token_id == theirs.eot_token_id


def test_log_likelihoods_are_equal(ours, theirs):
    asked = instances("loglikelihood", REQUESTS)
    assert_same(ours.loglikelihood(asked), theirs.loglikelihood(asked))


def test_rolling_log_likelihoods_are_equal(ours, theirs):
    texts = [("Snow.",), ("The boats come up from the sea. " * 12,), ("a" * MAX_LENGTH * 2,)]
    asked = instances("loglikelihood_rolling", texts)
    our, their = ours.loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked)
    np.testing.assert_allclose(our, their, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"until": ["\n"], "max_gen_toks": 40},
        {"until": ["a", "e", "i"], "max_gen_toks": 50, "do_sample": False, "temperature": 0.7},
        {"until": [], "max_new_tokens": 7, "num_beams": 1},
    ],
)
def test_generated_texts_are_equal(ours, theirs, settings):
    # Theirs decides for a whole batch, by its first text, whether <s> is to be put before each.
    for begun in (False, True):
        contexts = [c for c, _ in REQUESTS if c and c.startswith("<s>") == begun]
        asked = instances("generate_until", [(context, settings) for context in contexts])
        our = ours.generate_until(asked)
        assert our == theirs.generate_until(asked)
        assert any(our)


def test_what_is_generated_is_greedy_and_another_token_is_not(ours, theirs):
    context = ours.tok_encode("The river rises")
    asked = instances("generate_until", [("The river rises", {"max_gen_toks": 20})])
    ((_, written),) = ours.respond(ours._generation_request(asked, [0]))
    other = [*written[:-1], (written[-1] + 1) % 257]
    asked = [(None, context, written), (None, context, other)]
    our = ours._loglikelihood_tokens(asked)
    assert [greedy for _, greedy in our] == [True, False]
    assert_same(our, theirs._loglikelihood_tokens(asked))


def test_each_answer_of_the_tasks_is_equal(ours, their_results):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    found = simple_evaluate(ours, tasks=local_tasks(), task_manager=manager, bootstrap_iters=0)
    assert found is not None
    assert found["samples"].keys() == their_results["samples"].keys()
    for task, samples in their_results["samples"].items():
        for our, their in zip(found["samples"][task], samples, strict=True):
            assert our["arguments"] == their["arguments"]
            if task == "local_generate":
                assert our["resps"] == their["resps"]
            elif task == "local_rolling":
                np.testing.assert_allclose(our["resps"], their["resps"], rtol=1e-6)
            else:
                assert_same([r[0] for r in our["resps"]], [r[0] for r in their["resps"]])


def test_the_metrics_of_the_report_are_equal(our_report, their_results):
    seen = 0
    for task, metrics in their_results["results"].items():
        for key, value in metrics.items():
            if not key.endswith(",none") or "_stderr" in key:
                continue
            metric = f"harness/{key.removesuffix(',none')}"
            assert our_report.value(metric, "tiny", task=task) == pytest.approx(value, rel=1e-5)
            seen += 1
    assert seen == len(our_report.rows) == 9


def test_a_suite_asks_the_harness_and_shows_what_it_answers(folder, our_report, tmp_path):
    from hypenet_jax.data.sources import TextFiles
    from hypenet_jax.evals.config import EvaluationConfig
    from hypenet_jax.evals.model import ModelSource
    from hypenet_jax.evals.runner import evaluate

    for task in local_tasks():
        (tmp_path / f"{task['task']}.yaml").write_text(json.dumps(task))
    (tmp_path / "text.txt").write_text("Snow is cold. " * 20)
    harness = HarnessEvaluator(
        tasks=("local_choice", "no_such_task"), folder=str(tmp_path), max_length=MAX_LENGTH
    )
    config = EvaluationConfig(
        models=(ModelSource("tiny", str(folder)),),
        out=str(tmp_path / "out"),
        text=TextFiles(str(tmp_path), ("*.txt",)),
        measurements={"harness": harness},
        dtype="float32",
    )
    report = evaluate(config).report
    (failed,) = report.select("failed").rows
    assert failed.task == "no_such_task"
    assert "the harness knows no tasks ['no_such_task']" in (failed.label or "")
    for metric in ("harness/acc", "harness/acc_norm"):
        expected = our_report.value(metric, "tiny", task="local_choice")
        assert report.value(metric, "tiny", task="local_choice") == expected
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Tasks of lm-evaluation-harness" in page
    assert "local_choice" in page


def test_a_mean_over_documents_has_an_interval(our_report):
    (row,) = our_report.select("harness/acc", task="local_choice").rows
    assert row.count == 7
    assert row.low is not None
    assert row.high is not None
    assert row.low <= row.value <= row.high
    (row,) = our_report.select("harness/word_perplexity", task="local_rolling").rows
    assert row.low is None
    assert math.isfinite(row.value)


def test_responses_are_kept_in_the_cache_file(eval_model, our_report, tmp_path, monkeypatch):
    harness = HarnessEvaluator(max_length=MAX_LENGTH, cache=str(tmp_path / "responses"))
    assert harness.measure(eval_model, local_tasks()) == our_report
    for name in ("likelihoods", "generate_batches"):
        monkeypatch.setattr(requests, name, lambda *asked, **_: pytest.fail(f"{asked} is known"))
    assert harness.measure(eval_model, local_tasks()) == our_report


def test_a_chat_is_written_as_by_transformers(tokenizer, ours, theirs):
    chat = [
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": " What is snow? "},
    ]
    assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)
    begun = [*chat, {"role": "assistant", "content": "Snow is "}]
    assert ours.apply_chat_template(begun, False) == theirs.apply_chat_template(begun, False)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_gen_toks": 9, "num_beams": 4}, "beams"),
        ({"max_gen_toks": 9, "repetition_penalty": 1.2}, "repetition_penalty"),
        ({"max_gen_toks": MAX_LENGTH}, "leaves no room"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(ours, settings, said):
    with pytest.raises(ValueError, match=said):
        ours.generate_until(instances("generate_until", [("Snow", settings)]))


def test_a_continuation_that_does_not_fit_and_a_foreign_tokenizer_are_refused(ours, eval_model):
    with pytest.raises(ValueError, match="does not fit into max_length"):
        ours.loglikelihood(instances("loglikelihood", [("a", " b" * MAX_LENGTH * 2)]))
    large = train_tokenizer(["abc"], TrainedTokenizer(257, reserved=("<more>",)))
    foreign = dataclasses.replace(eval_model, tokenizer=large)
    with pytest.raises(ValueError, match="use the tokenizer that the model was trained with"):
        HarnessEvaluator(max_length=MAX_LENGTH).measure(foreign, local_tasks())


def test_contexts_that_are_too_long_are_told_once(ours, caplog):
    asked = instances("loglikelihood", [("Snow is cold. " * 30, "Snow")] * 5)
    with caplog.at_level("WARNING", logger="hypenet_jax"):
        ours.loglikelihood(asked)
    assert [record.getMessage()[:19] for record in caplog.records] == ["5 of 5 requests are"]
