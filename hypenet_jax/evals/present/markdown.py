"""The measured tables of a suite as a Markdown document, and which claims they bear out. No number is written here."""

import os
import pathlib
import platform
from collections.abc import Callable, Sequence

import jax

from hypenet_jax.evals import Report, Row
from hypenet_jax.evals.present.charts import Number
from hypenet_jax.evals.present.parts import (
    bytes_text,
    interval_text,
    length_text,
    seconds_text,
    share_text,
)
from hypenet_jax.evals.present.presentation import Document
from hypenet_jax.evals.results import Results

SECTIONS: tuple[tuple[str, str, str, Callable[[Number], str]], ...] = (
    (
        "needle",
        "Needle accuracy by context length",
        "Share of questions answered right, with intervals of 95 % (Wilson). The answer must be the likeliest of all "
        "tokens.",
        share_text,
    ),
    (
        "perplexity",
        "Perplexity by context length",
        "Of the same final tokens with more and more context before them; lower is better, numbers compare along a "
        "row.",
        lambda value: f"{value:.1f}",
    ),
    (
        "decode_seconds",
        "Time per token by context length",
        "One sequence, greedy; the caches are filled with random numbers instead of a text that was read, which takes "
        "the same time. Medians of runs in turns, and how many times faster than the first model.",
        seconds_text,
    ),
    (
        "prefill_seconds",
        "Time to read the context",
        "One sequence; medians of runs in turns, and how many times faster than the first model.",
        seconds_text,
    ),
    (
        "state_bytes",
        "Memory of the context",
        "What one sequence's state takes: caches of softmax layers and memories of recurrent ones.",
        bytes_text,
    ),
    (
        "decode_peak_bytes",
        "Peak memory of writing a token",
        "Weights, state and all that is computed on the way.",
        bytes_text,
    ),
)


def write_document(results: Results, document: Document) -> None:
    """Writes `document.path`, with the folders it needs."""
    report, checks = results.report, results.checks
    parts = [f"# {document.title}", document.about, _machine()]
    models = results.models
    for metric, heading, note, text in SECTIONS:
        rows = report.select(metric)
        if rows.rows:
            parts += [f"## {heading}", note, _length_table(document, models, rows, report, text)]
    parts += _sweep(report)
    if checks:
        held = sum(one.passed for one in checks)
        parts += ["## What reproduces", f"{held} of {len(checks)} statements hold here."]
        lines = [
            (c.name, c.value, c.bound.replace("<", "&lt;"), "yes" if c.passed else "**no**")
            for c in checks
        ]
        parts.append(_table(("statement", "measured", "holds if", "holds"), lines))
    failed = report.select("failed").rows
    if failed:
        lines = [(r.task or "", r.model, str(r.length or ""), r.label or "") for r in failed]
        parts += ["## Not measured", _table(("what", "model", "context", "why"), lines)]
    path = pathlib.Path(document.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _machine() -> str:
    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    return (
        f"Measured on {len(devices)} device(s) of kind {', '.join(kinds)}, {os.cpu_count()} CPU cores, "
        f"{platform.machine()}, Python {platform.python_version()}, JAX {jax.__version__}. "
        "Written by the run that measured it; do not edit."
    )


def _length_table(
    document: Document,
    models: Sequence[str],
    rows: Report,
    report: Report,
    text: Callable[[Number], str],
) -> str:
    """A line per model, a column per length; small print below a number: its interval, or its speed-up."""
    lines = []
    for model in models:
        mine = {row.length: row for row in rows.rows if row.model == model}
        if mine:
            cells = [_cell(mine.get(length), report, text) for length in rows.lengths]
            lines.append([model, *cells])
    return _table(["context", *(_length(document, length) for length in rows.lengths)], lines)


def _cell(row: Row | None, report: Report, text: Callable[[Number], str]) -> str:
    if row is None:
        return ""
    shown = text(row.value)
    if row.metric == "needle" and row.interval:
        return f"{shown} ({' to '.join(map(text, row.interval))})"
    faster = report.select(row.metric.replace("_seconds", "_speedup"), row.model, row.length).rows
    return f"{shown} ({faster[0].value:.1f}x)" if faster and faster[0] != row else shown


def _sweep(report: Report) -> list[str]:
    rows = report.select("scale_sweep").rows
    if not rows:
        return []
    metric, length = rows[0].task, rows[0].length
    lines = [(row.label or "", f"{row.value:.4g}", interval_text(row)) for row in rows]
    note = f"{metric} of {rows[0].model} at {length} tokens."
    return ["## The constant of the logit scale", note, _table(("a", metric or "", "95 %"), lines)]


def _length(document: Document, length: int) -> str:
    times = length / document.trained_length
    return f"{length_text(length)} ({times:g}x)"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
