"""Sections of the page: scores by depth, tasks by context length, and what could not be measured."""

import dataclasses
import html

from hypenet_jax.evals.present.heat_map import heat_map
from hypenet_jax.evals.present.parts import (
    figure,
    interval_text,
    length_table,
    length_text,
    plain_table,
    range_text,
    section,
    share_text,
)
from hypenet_jax.evals.present.results import Results
from hypenet_jax.evals.report import Report


def depths(results: Results) -> str:
    """A heat map per model (and task) of all scores by depth."""
    figures = []
    for metric in ("needle_by_depth", "ruler_by_depth"):
        rows = results.report.select(metric)
        for model in results.models:
            mine = rows.select(model=model)
            for task in dict.fromkeys(row.task for row in mine.rows):
                title = model if task is None else f"{model}, {task}"
                one = [row for row in mine.rows if row.task == task]
                figures.append(f"<div>{figure(heat_map(one, title), title)}</div>")
    if not figures:
        return ""
    note = "Score by context length and by where in it the answer lies; the deepest is nearest to the question."
    return section("By depth", note, f"<div class='columns'>{''.join(figures)}</div>")


def tasks(results: Results) -> str:
    """A table per model: its score by task and context length."""
    means = (
        dataclasses.replace(row, task="mean") for row in results.report.select("ruler_mean").rows
    )
    rows, parts = results.report.select("ruler").add(*means), []
    for model in results.models:
        mine = rows.select(model=model)
        names = tuple(dict.fromkeys(row.task for row in mine.rows if row.task))
        if names:
            table = length_table(names, mine, share_text, name=lambda row: row.task or "")
            parts.append(f"<div><h3>{html.escape(model)}</h3>{table}</div>")
    if not parts:
        return ""
    counts = range_text([row.count for row in results.report.select("ruler").rows])
    note = (
        "Share of the right answers that the model writes, in the manner of RULER. "
        f"{counts} questions per number, the same for models of one tokenizer."
    )
    return section("Tasks", note, "".join(parts))


def scales(report: Report) -> str:
    """What each logit scale brings, and which is the best."""
    rows, best = report.select("scale_sweep").rows, report.select("scale_best").rows
    if not rows:
        return ""
    lines = [
        (
            row.label or "",
            f"{row.value:.4g}",
            interval_text(row),
            "best" if best and best[0].label == row.label else "",
        )
        for row in rows
    ]
    note = f"{rows[0].task} of {rows[0].model} at {rows[0].length} tokens, by attn_logits_scaling."
    head = ("scale", rows[0].task or "", "95 %", "")
    return section("The logit scale", note, plain_table(head, lines))


def harness(report: Report) -> str:
    """Tasks of lm-evaluation-harness, which are those without a context length: a line per metric and model."""
    rows = [
        row for row in report.rows if row.task and row.length is None and row.metric != "failed"
    ]
    if not rows:
        return ""
    lines = [
        (
            row.task or "",
            row.metric,
            row.model,
            f"{row.value:.4g}",
            interval_text(row),
            str(row.count),
        )
        for row in sorted(rows, key=lambda row: (row.task or "", row.metric))
    ]
    head = ("task", "metric", "model", "value", "95 % interval", "documents")
    note = "Prompts and metrics are those of the harness."
    return section("Tasks of lm-evaluation-harness", note, plain_table(head, lines))


def failures(report: Report) -> str:
    """What could not be measured, and why."""
    rows = report.select("failed").rows
    if not rows:
        return ""
    lines = [
        (
            row.task or "",
            row.model,
            "" if row.length is None else length_text(row.length),
            str(row.count),
            row.label or "",
        )
        for row in rows
    ]
    head = ("what", "model", "context", "samples", "why")
    note = f"{sum(row.count for row in rows)} samples; they count nowhere else on this page."
    return section("Not measured", note, f"<div class='reasons'>{plain_table(head, lines)}</div>")
