"""Files of scores: a user's own, those of sweeps, and results of lm-evaluation-harness."""

import json
import pathlib

import numpy as np
import pytest

from hypenet_jax.halo.selection.score_files import read_scores, score_from_json, score_to_json
from hypenet_jax.halo.selection.scores import Score

GOOD = {"layer": 0, "kind": "retrieval", "task": "mine", "score": 0.5}


@pytest.fixture
def lines(tmp_path):
    """Writes a file of JSON lines."""

    def write(*objects) -> pathlib.Path:
        path = tmp_path / "scores.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in objects))
        return path

    return write


def test_json_lines_of_means_and_of_questions_are_read_in_any_order(lines):
    path = lines(
        {**GOOD, "layer": 1},
        {"layer": None, "kind": "retrieval", "task": "mine", "score": 0.9},
        {"layer": 1, "kind": "commonsense", "task": "q", "scores": [0, 1], "weights": [3, 1]},
        GOOD,
        {"layer": 0, "kind": "commonsense", "task": "q", "scores": [1, 0], "weights": [3, 1]},
    )
    scores = read_scores(path, 2)
    np.testing.assert_allclose(scores.of("retrieval"), (0.5, 0.5))
    np.testing.assert_allclose(scores.of("commonsense"), (0.75, 0.25))
    assert (scores.base("retrieval"), scores.num_questions) == (0.9, 1)


def test_a_score_is_what_its_line_says():
    for weights in (None, (1.0, 2.0)):
        score = Score(layer=3, kind="kl", task="t", values=(0.1, 1 / 3), weights=weights)
        assert score_from_json(json.loads(json.dumps(score_to_json(score)))) == score


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "speed"}, "no kind 'speed'; there are retrieval, commonsense, kl, mse"),
        ({"layer": "3"}, "neither a number nor null"),
        ({"layer": True}, "neither a number nor null"),
        ({"score": "good"}, "are not numbers"),
        ({"scores": [1]}, "score or scores"),
        ({"sore": 1}, r"unknown \['sore'\]"),
        ({"weights": [1, 2]}, "of each a weight above 0"),
        ({"weights": [0]}, "of each a weight above 0"),
    ],
)
def test_a_damaged_line_is_refused_with_its_number(lines, change, said):
    with pytest.raises(ValueError, match=rf"scores\.jsonl: line 2: .*{said}"):
        read_scores(lines(GOOD, {**GOOD, **change}), 1)


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ([GOOD], r"layers \[1\] have no score in retrieval mine"),
        ([GOOD, GOOD], "layer 0 in retrieval mine has two scores"),
        ([GOOD, {**GOOD, "layer": 2}], "the model has layers 0 to 1"),
        ([], "there are no scores"),
        (
            [GOOD, {"layer": 1, "kind": "retrieval", "task": "mine", "scores": [1, 2]}],
            "ask all models the same ones",
        ),
        (
            [
                {"layer": i, "kind": "kl", "task": "t", "scores": [1, 2], "weights": [1, 1 + i]}
                for i in (0, 1)
            ],
            "weighs questions otherwise",
        ),
        ([GOOD, {**GOOD, "layer": 1, "score": float("nan")}], "scores must be finite, and layer 1"),
    ],
)
def test_scores_that_are_not_those_of_one_sweep_are_refused(lines, objects, said):
    with pytest.raises(ValueError, match=rf"scores\.jsonl: .*{said}"):
        read_scores(lines(*objects), 2)


def test_what_sweeps_of_this_and_of_older_versions_left_is_read(tmp_path):
    now = {"models": {f"layer {i}": [{**GOOD, "layer": i, "score": i / 2}] for i in (0, 1)}}
    scored = {"scores": [[0.0, -2.0], [0.5, -3.0]]}
    chosen = {"retrieval": [0.0, 0.5], "commonsense": [-2.0, -3.0], "softmax_layers": [1]}
    today = {"scores": {"retrieval": [0.0, 0.5]}, "softmax_layers": [1], "rule": "jet"}
    for name, saved in {"a": now, "b": scored, "c": chosen, "d": today}.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(saved))
        np.testing.assert_allclose(read_scores(path, 2).of("retrieval"), (0.0, 0.5))
    np.testing.assert_allclose(read_scores(tmp_path / "b.json", 2).of("commonsense"), (-2.0, -3.0))


@pytest.mark.parametrize("saved", [{}, [], {"scores": 3}])
def test_a_file_without_scores_is_refused(tmp_path, saved):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"scores\.json: holds no scores; name"):
        read_scores(path, 2)
    with pytest.raises(FileNotFoundError):
        read_scores(tmp_path / "gone.json", 2)


# What lm-evaluation-harness 0.4 writes, as far as it is read.
def write_results(folder: pathlib.Path, results, samples=None, groups=None) -> None:
    folder = folder / "model__name"
    folder.mkdir(parents=True, exist_ok=True)
    stamp = "2026-01-01T00-00-00"
    saved = {"results": results, "group_subtasks": {**(groups or {}), "hellaswag": []}}
    (folder / f"results_{stamp}.json").write_text(json.dumps(saved))
    for task, values in (samples or {}).items():
        path = folder / f"samples_{task}_{stamp}.jsonl"
        path.write_text("".join(json.dumps(sample) + "\n" for sample in values))


def choice(acc, norm, **more):
    errors = {"acc_stderr,none": 0.1, "acc_norm_stderr,none": "N/A"}
    return {"alias": "x", "sample_len": 4, "acc,none": acc, "acc_norm,none": norm, **errors, **more}


@pytest.fixture
def results(tmp_path):
    """Results of a model of two layers and of its teacher."""
    for layer, name in ((0, "layer0"), (1, "1"), (None, "teacher")):
        hits = {0: (0, 1, 0, 0), 1: (1, 1, 0, 0), None: (1, 1, 1, 0)}[layer]
        sampled = [
            {"doc_id": i, "filter": "none", "metrics": ["acc"], "acc": 0.0, "acc_norm": float(hit)}
            for i, hit in reversed(list(enumerate(hits)))
        ]
        swde = {"alias": "swde", "contains,none": 0.5 + (layer or 0) / 4, "contains_stderr,none": 0}
        ruler = {"4096,none": 0.25, "8192,none": 0.75, "16384,none": -1.0}
        tasks = {"hellaswag": choice(0.0, sum(hits) / 4), "swde": swde, "ruler_qa_squad": ruler}
        group = {"ruler": {"alias": "ruler", "4096,none": 0.1}}
        write_results(
            tmp_path / "sweep" / name,
            {**tasks, **group},
            {"hellaswag": sampled},
            {"ruler": ["ruler_qa_squad"]},
        )
    return tmp_path / "sweep"


def test_results_of_the_harness_are_read_with_samples_where_they_were_logged(results):
    scores = read_scores(results, 2)
    tasks = {task.name: task for task in scores.tasks}
    assert set(tasks) == {"hellaswag", "swde", "ruler_qa_squad 4096", "ruler_qa_squad 8192"}
    np.testing.assert_array_equal(tasks["hellaswag"].layers, [[0, 1, 0, 0], [1, 1, 0, 0]])
    np.testing.assert_allclose(scores.of("commonsense"), (0.25, 0.5))  # acc_norm, not acc
    np.testing.assert_allclose(scores.of("retrieval"), (0.5, 1.75 / 3))
    assert scores.base("commonsense") == 0.75
    assert len(tasks["swde"].weights) == 1


def test_samples_whose_mean_is_not_the_result_are_not_taken_for_it(results):
    for file in results.rglob("samples_*"):
        sample = {"doc_id": 0, "filter": "none", "acc_norm": 0.9}
        file.write_text(json.dumps(sample) + "\n")
    tasks = {task.name: task for task in read_scores(results, 2).tasks}
    np.testing.assert_allclose(tasks["hellaswag"].layers, [[0.25], [0.5]])


@pytest.mark.parametrize(
    ("folder", "tasks", "said"),
    [
        ("best", {}, "is no layer; name folders of results layer0"),
        ("layer1", {"gsm8k": {"acc,none": 0.1}}, "is gsm8k retrieval or common sense?"),
        ("layer1", {"swde": {"f1,none": 0.1, "em,none": 0.2}}, "none is one of acc_norm"),
        ("layer1", {"swde": {"acc,none": 0.1, "acc,strict": 0.2}}, "with one filter"),
        ("layer1", {"swde": {"alias": "swde"}}, "has the metrics none"),
    ],
)
def test_results_that_say_too_little_are_refused_by_name(tmp_path, folder, tasks, said):
    write_results(tmp_path / "sweep" / folder, tasks)
    with pytest.raises(ValueError, match=said):
        read_scores(tmp_path / "sweep", 2)


def test_a_folder_without_results_is_refused(tmp_path):
    (tmp_path / "layer0").mkdir()
    with pytest.raises(ValueError, match=r"holds no results\*\.json"):
        read_scores(tmp_path, 1)
