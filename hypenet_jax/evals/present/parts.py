"""Parts of a page: sections, figures and tables of escaped text, and numbers as people say them."""

import html
import math
from collections.abc import Callable, Collection, Sequence

from hypenet_jax.evals.present.charts import Axis, Number, Series, legend, length_axis, line_chart
from hypenet_jax.evals.report import Report, Row

# Numbers that stand beside each other in half a page.
WIDEST = 8


def length_table(
    models: Sequence[str],
    rows: Report,
    text: Callable[[Number], str],
    second: Callable[[Row], str] | None = None,
    name: Callable[[Row], str] = lambda row: row.model,
) -> str:
    """A line per model and a column per context length, or the other way round where the lengths are many and the lines
    fewer: all is to be seen without scrolling.

    `second` says more about a number, below it; `name` tells what else than the model of its rows a line is named by.
    """
    lines: dict[str, list[str]] = {}
    for model in models:
        mine = {row.length: row for row in rows.rows if name(row) == model}
        if mine:
            lines[model] = [_cell(mine.get(length), text, second) for length in rows.lengths]
    lengths = [length_text(length) for length in rows.lengths]
    if len(lengths) * (2 if second else 1) > WIDEST and len(lengths) >= len(lines):
        lines, lengths = (
            {length: [*cells] for length, *cells in zip(lengths, *lines.values(), strict=True)},
            [html.escape(model) for model in lines],
        )
    head = "".join(f"<th scope='col'>{one}</th>" for one in ("context", *lengths))
    body = "".join(
        f"<tr><th scope='row'>{html.escape(one)}</th>{''.join(cells)}</tr>"
        for one, cells in lines.items()
    )
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def labelled_table(rows: Report, text: Callable[[Number], str]) -> str:
    """A line per model and label of its rows."""

    def name(row: Row) -> str:
        return f"{row.model}, {row.label}"

    return length_table(tuple(dict.fromkeys(map(name, rows.rows))), rows, text, name=name)


def _cell(
    row: Row | None, text: Callable[[Number], str], second: Callable[[Row], str] | None
) -> str:
    if row is None:
        return "<td>\u2013</td>"
    more = second(row) if second else ""
    small = f"<small>{html.escape(more)}</small>" if more else ""
    return f"<td>{html.escape(text(row.value))}{small}</td>"


def by_length(
    models: Sequence[str],
    rows: Report,
    y: Axis,
    title: str,
    label: str,
    reference: tuple[Number, str] | None,
    *,
    intervals: bool = True,
) -> str:
    """A line per model over the context lengths of its rows, with its legend."""
    series = []
    for slot, model in enumerate(models):
        mine = sorted((row for row in rows.rows if row.model == model), key=lambda row: row.key)
        if mine:
            lengths = [row.length for row in mine if row.length is not None]
            values = [row.value for row in mine]
            ends = [row.interval for row in mine if row.interval and math.isfinite(row.interval[1])]
            whole = intervals and len(ends) == len(mine)
            series.append(Series(model, slot, lengths, values, ends if whole else ()))
    x = length_axis(rows.lengths, length_text)
    labels = ("context length in tokens", label)
    chart = line_chart(series, x, y, title=title, labels=labels, reference=reference)
    return legend([(line.name, line.slot) for line in series]) + chart


def plain_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """An HTML table; the first cell of each line is its header."""
    top = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr><th scope='row'>{html.escape(first)}</th>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in lines
    )
    return (
        f"<div class='wide'><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def section(title: str, note: str, body: str) -> str:
    """A titled section of the page."""
    said = f"<p class='note'>{html.escape(note)}</p>" if note else ""
    return f"<section><h2>{html.escape(title)}</h2>{said}{body}</section>"


def beside(chart: str, table: str) -> str:
    """A chart and a table in two columns."""
    return f"<div class='columns'><div>{figure(chart)}</div><div>{table}</div></div>"


def figure(chart: str, title: str = "") -> str:
    """A chart with an optional caption."""
    caption = f"<figcaption>{html.escape(title)}</figcaption>" if title else ""
    return f"<figure>{caption}{chart}</figure>"


def number_text(value: Number) -> str:
    """Three digits, and before the point all: 0.0123, 47.5, 1,370; 4.2e+07 of a model that diverged."""
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:.3g}"


def interval_text(row: Row) -> str:
    """0.893 to 1; nothing where no interval was computed."""
    return "{:.3g} to {:.3g}".format(*row.interval) if row.interval else ""


def range_text(counts: Collection[int]) -> str:
    """32, or 32 to 256."""
    least, most = min(counts), max(counts)
    return f"{least}" if least == most else f"{least} to {most}"


def seconds_text(seconds: Number) -> str:
    """1.2 s, 35 ms, 0.74 ms, 80 µs."""
    if seconds >= 1:
        return f"{number_text(seconds)} s"
    return f"{number_text(seconds * 1e3)} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.3g} µs"


def bytes_text(count: Number) -> str:
    """512 KiB, 4.1 MiB, 2 GiB."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = next((i for i in range(len(units)) if count < 1000 * 1024**i), len(units) - 1)
    return f"{number_text(count / 1024**power)} {units[power]}"


def share_text(value: Number) -> str:
    """0.98."""
    return f"{value:.2f}"


def length_text(length: Number) -> str:
    """512, 2K, 128K, 1M: powers of two as people say them."""
    whole = int(length)
    for size, unit in ((2**20, "M"), (2**10, "K")):
        if whole >= size and whole % size == 0:
            return f"{whole // size}{unit}"
    return f"{whole}"
