"""Parts of a page: sections, figures and tables of escaped text, and numbers as people say them."""

import html
from collections.abc import Callable, Sequence

from hypenet_jax.evals.charts import Number
from hypenet_jax.evals.report import Report, Row


def length_table(
    models: Sequence[str],
    rows: Report,
    text: Callable[[Number], str],
    second: Callable[[Row], str] | None = None,
    name: Callable[[Row], str] = lambda row: row.model,
) -> str:
    """A line per model, a column per context length; `second` says more about a number, below it.

    `name` tells what else than the model of its rows a line is named by.
    """
    lines = []
    for model in models:
        mine = {row.length: row for row in rows.rows if name(row) == model}
        if not mine:
            continue
        cells = []
        for length in rows.lengths:
            cell = html.escape(text(mine[length].value)) if length in mine else "\u2013"
            more = second(mine[length]) if second and length in mine else ""
            cells.append(f"<td>{cell}{f'<small>{html.escape(more)}</small>' if more else ''}</td>")
        lines.append(f"<tr><th scope='row'>{html.escape(model)}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th scope='col'>{length_text(length)}</th>" for length in rows.lengths)
    return (
        "<div class='wide'><table><thead><tr><th scope='col'>context</th>"
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def plain_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
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
    said = f"<p class='note'>{html.escape(note)}</p>" if note else ""
    return f"<section><h2>{html.escape(title)}</h2>{said}{body}</section>"


def beside(chart: str, table: str) -> str:
    return f"<div class='columns'><div>{figure(chart)}</div><div>{table}</div></div>"


def figure(chart: str, title: str = "") -> str:
    caption = f"<figcaption>{html.escape(title)}</figcaption>" if title else ""
    return f"<figure>{caption}{chart}</figure>"


def seconds_text(seconds: Number) -> str:
    """1.2 s, 35 ms, 0.74 ms, 80 µs."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.3g} µs"


def bytes_text(count: Number) -> str:
    """512 KiB, 4.1 MiB, 2 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000 or unit == "GiB":
            return f"{count:.3g} {unit}"
        count /= 1024
    raise AssertionError


def share_text(value: Number) -> str:
    """0.98."""
    return f"{value:.2f}"


def length_text(length: Number) -> str:
    """512, 2K, 128K: powers of two as people say them."""
    whole = int(length)
    return f"{whole // 1024}K" if whole >= 1024 and whole % 1024 == 0 else f"{whole}"
