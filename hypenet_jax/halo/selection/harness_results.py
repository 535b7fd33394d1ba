"""Scores of results that lm-evaluation-harness left: a folder per layer, `--output_path` of the model that lost it."""

import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from hypenet_jax.halo.selection.scores import Kind, Score

LAYER, UNMODIFIED = re.compile(r"(?:layer[ _-]?)?(\d+)"), ("teacher", "original")
KIND_OF_TASKS: Mapping[Kind, tuple[str, ...]] = {
    "retrieval": ("fda", "swde", "squad_completion", "ruler*", "niah*", "passkey*"),
    "commonsense": (
        *("arc_challenge", "arc_easy", "hellaswag", "piqa", "winogrande", "openbookqa"),
        *("boolq", "social_iqa", "commonsense_qa", "copa", "sciq", "lambada*"),
    ),
}
# Of several metrics of a task the first of these; those of RULER are context lengths, and all of them count.
METRICS = ("acc_norm", "contains", "acc")


def harness_scores(folder: pathlib.Path) -> Iterator[Score]:
    """Scores of folders `layer3` or `3`, and of `teacher` or `original`, however deep their results lie.

    Where samples were logged (`--log_samples`) they are the questions, if their mean is the result; else there is the
    result alone. Lengths that were not run (negative results) are left out, as in the official code of HALO.

    Raises:
      ValueError: a folder of another name or without results, or a task whose kind or metric is not known.
    """
    for model in sorted(path for path in folder.iterdir() if path.is_dir()):
        layer = LAYER.fullmatch(model.name)
        if layer is None and model.name not in UNMODIFIED:
            raise ValueError(
                f"{model} is no layer; name folders of results layer0, layer1, ..., and {UNMODIFIED[0]}"
            )
        files = sorted(model.rglob("results*.json"))
        if not files:
            raise ValueError(f"{model} holds no results*.json; evaluate with --output_path {model}")
        for file in files:
            yield from _of_file(file, None if layer is None else int(layer[1]))


def _of_file(file: pathlib.Path, layer: int | None) -> Iterator[Score]:
    saved = json.loads(file.read_text(encoding="utf-8"))
    groups = {name for name, tasks in saved.get("group_subtasks", {}).items() if tasks}
    for task, results in saved["results"].items():
        if task in groups:
            continue  # the mean of tasks that are there
        kind, found = _kind(task, file), _metrics(results)
        for key in _chosen(task, found, file):
            metric = key.partition(",")[0]
            name = f"{task} {metric}" if metric.isdigit() else task
            values = _samples(file, task, key, found[key]) or (found[key],)
            yield Score(layer=layer, kind=kind, task=name, values=values)


def _kind(task: str, file: pathlib.Path) -> Kind:
    for kind, names in KIND_OF_TASKS.items():
        if any(fnmatchcase(task, name) for name in names):
            return kind
    raise ValueError(
        f"{file}: is {task} retrieval or common sense? Write its scores as JSON lines, which say the kind, or leave it "
        "out"
    )


def _metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by "metric,filter"; without errors, and without lengths that were not run."""
    return {
        key: float(value)
        for key, value in results.items()
        if "," in key and "_stderr" not in key and isinstance(value, int | float) and value >= 0
    }


def _chosen(task: str, found: Mapping[str, float], file: pathlib.Path) -> list[str]:
    names: dict[str, list[str]] = {}
    for key in found:
        names.setdefault(key.partition(",")[0], []).append(key)
    lengths = [names[name] for name in names if name.isdigit()]
    keys = lengths or [names[name] for name in METRICS if name in names][:1]
    keys = keys or ([*names.values()] if len(names) == 1 else [])
    if not keys or any(len(of_filters) > 1 for of_filters in keys):
        raise ValueError(
            f"{file}: {task} has the metrics {', '.join(found) or 'none'}, of which none is one of "
            f"{', '.join(METRICS)} with one filter; write its scores as JSON lines"
        )
    return [key for (key,) in keys]


def _samples(file: pathlib.Path, task: str, key: str, mean: float) -> tuple[float, ...] | None:
    """What each document got, in their order; None where they were not logged or their mean is another number."""
    metric, _, filtered = key.partition(",")
    samples = file.with_name(f"samples_{task}_{file.stem.removeprefix('results_')}.jsonl")
    if not samples.is_file():
        return None
    lines = (json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines())
    own = sorted((s for s in lines if s["filter"] == filtered), key=lambda s: s["doc_id"])
    values = [sample.get(metric) for sample in own]
    numbers = [float(v) for v in values if isinstance(v, int | float) and v >= 0]
    if not numbers or not math.isclose(sum(numbers) / len(numbers), mean, abs_tol=1e-6):
        return None
    return tuple(numbers)
