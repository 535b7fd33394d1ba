"""Section of the page: time and memory by context length, measured here, and the least times of chips."""

from collections.abc import Callable

from hypenet_jax.evals.present.charts import log_axis
from hypenet_jax.evals.present.parts import (
    by_length,
    bytes_text,
    figure,
    labelled_table,
    length_table,
    seconds_text,
    section,
)
from hypenet_jax.evals.present.results import Results
from hypenet_jax.evals.report import Report, Row


def speed(results: Results) -> str:
    """The section on time and memory by context length."""
    shown = (
        ("prefill_seconds", "Reading the context", "time", seconds_text, "faster"),
        ("decode_seconds", "Writing one more token", "time per token", seconds_text, "faster"),
        ("state_bytes", "Memory of the context", "state per sequence", bytes_text, "smaller"),
        (
            "prefill_peak_bytes",
            "Peak memory of reading the context",
            "bytes",
            bytes_text,
            "smaller",
        ),
        ("decode_peak_bytes", "Peak memory of writing a token", "bytes", bytes_text, "smaller"),
    )
    parts = []
    for metric, title, label, text, better in shown:
        rows = results.report.select(metric)
        if rows.rows:
            binary = text is bytes_text
            y = log_axis([row.value for row in rows.rows], text, binary=binary)
            chart = by_length(results.models, rows, y, title, label, None, intervals=False)
            ratio = _ratios(results, rows, better)
            parts.append(figure(chart, title) + length_table(results.models, rows, text, ratio))
    least = _floors(results)
    if not parts:
        return section("Speed and memory", "", least) if least else ""
    note = "One sequence; medians of runs in turns. Both scales are logarithmic: equal steps are equal factors."
    columns = "".join(f"<div>{part}</div>" for part in parts)
    return section("Speed and memory", note, f"<div class='columns'>{columns}</div>{least}")


def _ratios(results: Results, rows: Report, better: str) -> Callable[[Row], str]:
    """How a model compares with the first one: the ratio measured in turns where there is one."""
    base = {row.length: row.value for row in rows.select(model=results.models[0]).rows}
    metric = rows.rows[0].metric.replace("_seconds", "_speedup")
    in_turns = {(row.model, row.length): row.value for row in results.report.select(metric).rows}

    def text(row: Row) -> str:
        if row.model == results.models[0] or row.length not in base:
            return ""
        ratio = base[row.length] / row.value
        if metric != row.metric:
            ratio = in_turns.get((row.model, row.length), ratio)
        return f"{ratio:.1f}\u00d7 {better}"

    return text


def _floors(results: Results) -> str:
    """The least times of the chips that were asked for: a line per model and chip."""
    parts = []
    for metric, title in (("prefill", "Reading the context"), ("decode", "Writing one more token")):
        rows = results.report.select(f"{metric}_seconds_roofline")
        if rows.rows:
            parts.append(f"<div>{figure(labelled_table(rows, seconds_text), title)}</div>")
    if not parts:
        return ""
    note = (
        "Computed, not measured: bytes that must move over a chip's bandwidth, or operations over its peak, whichever "
        "takes longer."
    )
    columns = f"<div class='columns'>{''.join(parts)}</div>"
    return f"<h3>The least times of chips</h3><p class='note'>{note}</p>{columns}"
