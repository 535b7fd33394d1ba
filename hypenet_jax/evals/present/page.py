"""One HTML page that shows what was measured: numbers first, then charts, then how a conversion was done. Nothing is
loaded from outside.
"""

import dataclasses
import html
import math
import os
from collections.abc import Sequence
from pathlib import Path

from hypenet_jax.evals.present.charts import (
    Bar,
    Number,
    Series,
    bar_chart,
    legend,
    line_chart,
    linear_axis,
)
from hypenet_jax.evals.present.parts import (
    beside,
    by_length,
    figure,
    labelled_table,
    length_table,
    number_text,
    plain_table,
    range_text,
    section,
    share_text,
)
from hypenet_jax.evals.present.results import Curve, LayerScore, Results
from hypenet_jax.evals.present.speed import speed
from hypenet_jax.evals.present.style import STYLE
from hypenet_jax.evals.present.tasks import depths, failures, harness, scales, tasks

# A loss curve is drawn with at most this many points, each the mean of its neighbours.
CURVE_POINTS = 240


def write_page(path: str | os.PathLike[str], results: Results) -> None:
    """Writes `render_page(results)` to a file, UTF-8, with the folders it needs."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_page(results), encoding="utf-8")


def render_page(results: Results) -> str:
    """The page as text: one HTML document without scripts and without anything to fetch. All given
    text is escaped.
    """
    parts = [_headline(results), _retrieval(results), depths(results), tasks(results)]
    parts += [harness(results.report), _perplexity(results), _positions(results), _sliding(results)]
    parts += [scales(results.report), speed(results), _conversion(results), _checks(results)]
    parts += [failures(results.report)]
    title = html.escape(results.title)
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{title}</title><style>{STYLE}</style>'
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _headline(results: Results) -> str:
    tiles = "".join(
        f"<div><dt>{html.escape(label)}</dt><dd>{html.escape(value)}</dd></div>"
        for label, value in results.summary
    )
    heading = (
        f"<h1>{html.escape(results.title)}</h1><p class='lead'>{html.escape(results.lead)}</p>"
    )
    return f"<header>{heading}<dl class='tiles'>{tiles}</dl></header>"


def _retrieval(results: Results) -> str:
    rows = results.report.select("needle")
    if not rows.rows:
        return ""
    y = linear_axis((0.0, 1.0), share_text)
    chance = None if results.chance is None else (results.chance, "chance")
    chart = by_length(results.models, rows, y, "Needle accuracy", "accuracy", chance)
    counts = range_text([row.count for row in rows.rows])
    note = (
        "Share of questions at the end of a text that are answered with what was planted in it. "
        f"{counts} texts per point, the same for every model; whiskers are 95\u00a0% intervals."
    )
    return section(
        "Finding a needle", note, beside(chart, length_table(results.models, rows, share_text))
    )


def _perplexity(results: Results) -> str:
    note = (
        "Perplexity of the same final tokens of held-out text, with more or less context before them. Lower is better; "
        "the targets are the same at every length and for every model."
    )
    return _perplexities(results, "perplexity", "Using a longer context", note)


def _positions(results: Results) -> str:
    note = (
        "Perplexity of the tokens whose position lies below the number and at or above half of it, in windows of "
        "one length: how much the model makes of what it has read so far."
    )
    return _perplexities(results, "perplexity_by_position", "Along the context", note)


def _perplexities(results: Results, metric: str, heading: str, note: str) -> str:
    rows = results.report.select(metric)
    finite = [row.value for row in rows.rows if math.isfinite(row.value)]
    if not finite:
        return ""
    y = linear_axis(finite, number_text)
    chart = by_length(results.models, rows, y, heading, "perplexity", None)
    whiskers = (
        "Whiskers are 95\u00a0% intervals over windows of text, cut off at the edge of the chart."
    )
    table = length_table(results.models, rows, number_text)
    return section(heading, f"{note} {whiskers}", beside(chart, table))


def _sliding(results: Results) -> str:
    rows = results.report.select("perplexity_sliding")
    if not rows.rows:
        return ""
    note = (
        "Perplexity of every token but the first ones, in windows of one length that move on by the stride: each "
        "token is predicted once, from at least the length less the stride."
    )
    return section("Sliding over the text", note, labelled_table(rows, number_text))


def _conversion(results: Results) -> str:
    parts = [_curve(curve) for curve in results.curves]
    if results.alignment:
        groups = [
            (str(e.layer), (Bar(e.first, 0, f"layer {e.layer}, first step: {e.first:.3f}"),
                            Bar(e.last, 2, f"layer {e.layer}, last step: {e.last:.3f}")))
            for e in results.alignment
        ]  # fmt: skip
        title = "Imitating each layer"
        chart = bar_chart(groups, title=title, labels=("layer", "relative error"), text=number_text)
        key = legend((("first step", 0), ("last step", 2)), lines=False)
        parts.append(figure(key + chart, title))
    if results.selection:
        groups = [(str(s.layer), (_importance_bar(s),)) for s in results.selection]
        title = "Which layers keep softmax attention"
        chart = bar_chart(groups, title=title, labels=("layer", "importance"), text=number_text)
        key = legend(
            (("keeps softmax attention", 1), ("becomes lightning attention", 0)), lines=False
        )
        parts.append(figure(key + chart, title))
    body = (
        f"<div class='columns'>{''.join(f'<div>{part}</div>' for part in parts)}</div>"
        if parts
        else ""
    )
    if results.tokens:
        lines = [(name, f"{count:,}") for name, count in results.tokens.items()]
        lines.append(("all", f"{sum(results.tokens.values()):,}"))
        body += plain_table(("stage", "training tokens"), lines)
    return section("How it was converted", "", body) if body else ""


def _importance_bar(score: LayerScore) -> Bar:
    kept = "keeps softmax attention" if score.kept else "becomes lightning attention"
    return Bar(
        score.importance,
        1 if score.kept else 0,
        f"layer {score.layer}, {score.importance:.3g}: {kept}",
    )


def _curve(curve: Curve) -> str:
    size = -(-len(curve.steps) // CURVE_POINTS)
    starts = range(0, len(curve.steps), size)
    steps = [_mean(curve.steps[i : i + size]) for i in starts]
    losses = [_mean(curve.losses[i : i + size]) for i in starts]
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        return ""
    x, y = (
        linear_axis(steps, lambda step: f"{step:,.0f}", zero=True),
        linear_axis(finite, number_text),
    )
    x = dataclasses.replace(
        x, high=max(steps), ticks=[tick for tick in x.ticks if tick <= max(steps)]
    )
    line = Series(curve.stage, 2, steps, losses)
    labels = ("step", curve.loss_name)
    return figure(
        line_chart([line], x, y, title=curve.stage, labels=labels, points=False), curve.stage
    )


def _checks(results: Results) -> str:
    if not results.checks:
        return ""
    failed = sum(not check.passed for check in results.checks)
    note = (
        f"{len(results.checks)} checks, {failed} failed."
        if failed
        else f"All {len(results.checks)} checks passed."
    )
    lines = []
    for check in results.checks:
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in (check.value, check.bound))
        mark = (
            "<td class='pass'>✓ passed</td>" if check.passed else "<td class='fail'>✗ failed</td>"
        )
        lines.append(f"<tr><th scope='row'>{html.escape(check.name)}</th>{cells}{mark}</tr>")
    head = "".join(f"<th scope='col'>{name}</th>" for name in ("check", "value", "must be", ""))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return section("Checks", note, f"<div class='wide checks'>{table}</div>")


def _mean(values: Sequence[Number]) -> float:
    return sum(values) / len(values)
