"""What an evaluation leaves for people: a page that loads nothing, figures and numbers beside it, and a document."""

import csv
import dataclasses
import functools
import itertools
import os
import pathlib
import platform
import re
from typing import Any

import jax
import jinja2
import markupsafe

from hypenet_jax.evals.present.figures import draw, draw_beside
from hypenet_jax.evals.present.presentation import Document, Presentation
from hypenet_jax.evals.present.tables import Cell, Table, failures, tables
from hypenet_jax.evals.present.theme import save_figure, theme_css, themed_svg
from hypenet_jax.evals.present.units import length_text
from hypenet_jax.evals.report import Report, Row
from hypenet_jax.evals.results import Results

# Metrics side by side in the figure of a document.
FIGURE = ("needle", "decode_seconds")


def write_results(folder: pathlib.Path, results: Results, document: Document | None = None) -> None:
    """Writes index.html, numbers.csv and figures/*.svg, .png and .pdf to a folder, and the document to its own path."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(render_page(results), encoding="utf-8")
    with (folder / "numbers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        writer.writeheader()
        writer.writerows(map(dataclasses.asdict, results.report.rows))
    for p in results.presentations:
        for caption, figure in draw(p, results.report, results.models).items():
            name = p.metric if caption == p.title else f"{p.metric} {caption}"
            save_figure(figure, folder / "figures" / re.sub(r"\W+", "-", name.lower()))
    if document is not None:
        write_document(results, document)


def render_page(results: Results) -> str:
    """One HTML document without scripts and without anything to fetch. All given text is escaped."""
    shown = [p for p in results.presentations if p.rows(results.report).rows]
    sections = itertools.groupby(shown, lambda p: p.section or p.title)

    def svg(p: Presentation) -> dict[str, str]:
        figures = draw(p, results.report, results.models).items()
        return {
            caption: markupsafe.Markup(themed_svg(figure, f"{p.title}: {p.label} {caption}"))
            for caption, figure in figures
        }

    return _render(
        "page.html",
        results=results,
        css=markupsafe.Markup(theme_css()),
        sections=[(title, list(group)) for title, group in sections],
        figures=svg,
        tables=lambda p: [table.turned() for table in tables(p, results.report, results.models)],
    )


def write_document(results: Results, document: Document) -> None:
    """Writes a Markdown file of the tables, and its figure, with the folders they need. No number is written here."""

    def length(tokens: int) -> str:
        return f"{length_text(tokens)} ({tokens / document.trained_length:g}x)"

    path = pathlib.Path(document.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _render(
        "document.md",
        results=results,
        document=document,
        machine=_machine(),
        grid=_markdown,
        tables=lambda p: tables(p, results.report, results.models, length),
    )
    path.write_text(text, encoding="utf-8")
    drawn = [p for p in results.presentations if p.metric in FIGURE and p.rows(results.report).rows]
    if document.figure is not None and drawn:
        picture = pathlib.Path(document.figure)
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure = draw_beside(drawn, results.report, results.models)
        words = " and ".join(p.title.lower() for p in drawn) + " by context length"
        picture.write_text(themed_svg(figure, words, alone=True) + "\n", encoding="utf-8")


def _render(template: str, *, results: Results, **values: Any) -> str:
    """A template of this folder; values are escaped in HTML."""
    return (
        _environment()
        .get_template(template)
        .render(
            results=results,
            note=lambda p: p.note.replace("{counts}", _counts(p.rows(results.report))),
            failures=failures(results.report),
            failed=sum(row.count for row in results.report.select("failed").rows),
            **values,
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=jinja2.select_autoescape(("html",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = _plain
    return environment


def _counts(report: Report) -> str:
    """32, or 32 to 256."""
    least, most = (of(row.count for row in report.rows) for of in (min, max))
    return f"{least}" if least == most else f"{least} to {most}"


def _markdown(table: Table, intervals: bool) -> str:
    """A table of Markdown; a number is followed by its ratio or, if they are to be told, its interval."""

    def text(cell: Cell) -> str:
        more = cell.ratio or (cell.interval if intervals else "")
        return f"{cell.text} ({more})" if more else cell.text

    lines = [table.head, ["---"] * len(table.head), *(map(text, line) for line in table.lines)]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _plain(text: str) -> str:
    """Text that ends no cell of a Markdown table and opens no element."""
    return text.replace("|", "/").replace("<", "&lt;")


def _machine() -> str:
    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    return (
        f"Measured on {len(devices)} device(s) of kind {', '.join(kinds)}, {os.cpu_count()} CPU cores, "
        f"{platform.machine()}, Python {platform.python_version()}, JAX {jax.__version__}. "
        "Written by the run that measured it; do not edit."
    )
