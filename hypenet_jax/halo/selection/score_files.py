"""Files of scores: those that a sweep leaves, a user's own JSON lines, and results of lm-evaluation-harness.

A line of JSON lines is one task of one model:

    {"layer": 3, "kind": "retrieval", "task": "fda", "score": 0.7623}
    {"layer": null, "kind": "commonsense", "task": "mine", "scores": [1, 0, 1], "weights": [2, 1, 1]}

"layer" null is the unmodified teacher, which the rule `jet` alone needs. "scores" are of single questions, from which
the confidence of a ranking comes; "weights" are optional. The `scores.json` of a sweep holds the same objects.
"""

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hypenet_jax.halo.selection.harness_results import harness_scores
from hypenet_jax.halo.selection.scores import KINDS, Kind, Score, Scores, collect

FIELDS = {"layer", "kind", "task", "score", "scores", "weights"}
OLDER: tuple[Kind, Kind] = ("retrieval", "commonsense")
"""What sweeps of older versions scored, in their order."""


def read_scores(path: pathlib.Path, num_layers: int) -> Scores:
    """The scores of a file or folder, whoever wrote it.

    Args:
      path: of a `scores.json` or a `selection.json`, those of older versions included; of JSON lines (`.jsonl`); or a
        folder of results of lm-evaluation-harness, see `harness_scores`.
    Raises:
      FileNotFoundError: there is nothing.
      ValueError: it holds something else, or what `collect` refuses.
    """
    if path.is_dir():
        scores: Iterable[Score] = harness_scores(path)
    elif path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        scores = _of_lines(path, lines)
    else:
        scores = _of_json(path, json.loads(path.read_text(encoding="utf-8")))
    try:
        return collect(scores, num_layers)
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def score_to_json(score: Score) -> dict[str, Any]:
    """One line of JSON lines; undone by `score_from_json`."""
    weights = {} if score.weights is None else {"weights": list(score.weights)}
    own = {"layer": score.layer, "kind": score.kind, "task": score.task}
    return {**own, "scores": list(score.values), **weights}


def score_from_json(line: Any) -> Score:
    """Undoes `score_to_json`.

    Raises:
      ValueError: a field is missing, unknown or not what it should be.
    """
    if not isinstance(line, Mapping):
        raise ValueError("is no JSON object")
    unknown, missing = sorted(line.keys() - FIELDS), sorted({"layer", "kind", "task"} - line.keys())
    if unknown or missing or ("score" in line) == ("scores" in line):
        problem = f"unknown {unknown}, missing {missing}"
        raise ValueError(f"give layer, kind, task, and score or scores ({problem})")
    if line["kind"] not in KINDS:
        raise ValueError(f"no kind {line['kind']!r}; there are {', '.join(KINDS)}")
    if line["layer"] is not None and type(line["layer"]) is not int:
        raise ValueError(f"layer {line['layer']!r} is neither a number nor null")
    values = line["scores"] if "scores" in line else [line["score"]]
    weights = line.get("weights")
    for numbers in (values, [] if weights is None else weights):
        if not isinstance(numbers, list) or not all(_is_number(number) for number in numbers):
            raise ValueError(f"{numbers!r} are not numbers")
    if not values or (weights is not None and (len(weights) != len(values) or min(weights) <= 0)):
        raise ValueError("give a score of each question, and of each a weight above 0 or none")
    return Score(
        layer=line["layer"],
        kind=line["kind"],
        task=str(line["task"]),
        values=tuple(map(float, values)),
        weights=None if weights is None else tuple(map(float, weights)),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of_lines(path: pathlib.Path, lines: list[str]) -> Iterator[Score]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield score_from_json(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}: line {number}: {error}") from error


def _of_json(path: pathlib.Path, saved: Any) -> Iterator[Score]:
    """Of what a sweep or a selection left, by this version or an older one."""
    if not isinstance(saved, Mapping):
        saved = {}
    means = saved if "retrieval" in saved else saved.get("scores")
    if isinstance(saved.get("models"), Mapping):
        for scores in saved["models"].values():
            yield from map(score_from_json, scores)
    elif isinstance(means, Mapping):
        for kind in KINDS:
            yield from _means(kind, means.get(kind, ()))
    elif isinstance(means, list):
        for kind, column in zip(OLDER, zip(*means, strict=True), strict=True):
            yield from _means(kind, column)
    else:
        raise ValueError("holds no scores; name a scores.json, JSON lines, or a folder of results")


def _means(kind: Kind, layers: Iterable[float]) -> Iterator[Score]:
    for layer, mean in enumerate(layers):
        yield Score(layer=layer, kind=kind, task=kind, values=(float(mean),))
