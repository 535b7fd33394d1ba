"""Sections of the page: scores by depth, tasks by context length, and what could not be measured."""

import html

from hypenet_jax.evals.heat_map import heat_map
from hypenet_jax.evals.page_parts import figure, length_table, plain_table, section, share_text
from hypenet_jax.evals.report import Report
from hypenet_jax.evals.results import Results


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
    """A table per model: a line per task, a column per context length."""
    rows = results.report.select("ruler")
    parts = []
    for model in results.models:
        mine = rows.select(model=model)
        names = tuple(dict.fromkeys(row.task for row in mine.rows if row.task))
        if names:
            table = length_table(names, mine, share_text, name=lambda row: row.task or "")
            parts.append(f"<div><h3>{html.escape(model)}</h3>{table}</div>")
    if not parts:
        return ""
    counts = sorted({row.count for row in rows.rows})
    note = (
        "Share of the right answers that the model writes, in the manner of RULER. "
        f"{counts[0]} to {counts[-1]} questions per number, the same for models of one tokenizer."
    )
    return section("Tasks", note, "".join(parts))


def failures(report: Report) -> str:
    """What could not be measured, and why."""
    rows = report.select("failed").rows
    if not rows:
        return ""
    lines = [
        (row.task or "", row.model, str(row.length or ""), str(row.count), row.label or "")
        for row in rows
    ]
    head = ("what", "model", "context", "samples", "why")
    note = f"{sum(row.count for row in rows)} samples; they count nowhere else on this page."
    return section("Not measured", note, f"<div class='checks'>{plain_table(head, lines)}</div>")
