"""What an evaluation leaves for people: a page that loads nothing, figures and numbers beside it, and a document."""

import csv
import dataclasses
import itertools
import os
import pathlib
import platform
import re

import jax
import jinja2

from hypenet_jax.evals.config import Document
from hypenet_jax.evals.present.figures import draw, figure_of, panels, save_figure, themed_svg
from hypenet_jax.evals.present.presentation import length_text
from hypenet_jax.evals.present.tables import failures, side_by_side, tables, texts
from hypenet_jax.evals.report import Row
from hypenet_jax.evals.results import Results


def _verbatim(text: str) -> str:
    """What reads in a cell of a Markdown table as this text does: nothing in it is markup, a link or a line's end."""
    marks = re.sub(r"[\\`*_{}\[\]<>|#~$&!:@]", lambda mark: f"&#{ord(mark[0])};", text)
    marks = re.sub(r"(?<=www)\.", "&#46;", marks.expandtabs(4))
    marks = re.sub(r" {2,}", lambda spaces: "&nbsp;" * len(spaces[0]), marks)
    return "<br>".join(marks.splitlines())


# Text from outside is escaped in HTML, and by filters in Markdown.
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=jinja2.select_autoescape(("html",)),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters["verbatim"] = _verbatim
_TEMPLATES.filters["plain"] = lambda text: text.replace("|", "/").replace("<", "&lt;")
_TEMPLATES.globals.update(
    draw=draw,
    themed_svg=themed_svg,
    tables=tables,
    failures=failures,
    texts=texts,
    side_by_side=side_by_side,
)
_TEMPLATES.globals.update(jax=jax, os=os, platform=platform)


def write_results(folder: pathlib.Path, results: Results) -> None:
    """Writes index.html, numbers.csv and figures/*.svg, .png and .pdf to a folder, and the document to its own path."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(render_page(results), encoding="utf-8")
    names = [field.name for field in dataclasses.fields(Row)]
    with (folder / "numbers.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *map(dataclasses.astuple, results.report.rows)])
    for p in results.presentations:
        for caption, figure in draw(p, results.report, results.models).items():
            name = p.metric if caption == p.title else f"{p.metric} {caption}"
            save_figure(figure, folder / "figures" / re.sub(r"\W+", "-", name.lower()))
    if results.config.document is not None:
        write_document(results, results.config.document)


def render_page(results: Results) -> str:
    """One HTML document without scripts and without anything to fetch. All given text is escaped."""
    groups = itertools.groupby(results.presentations, lambda p: p.section or p.title)
    sections = [(title, list(group)) for title, group in groups]
    return _TEMPLATES.get_template("page.html").render(results=results, sections=sections)


def write_document(results: Results, document: Document) -> None:
    """Writes a Markdown file and its figures, with the folders they need. No number is written here."""
    links = _write_figures(results, document)

    def length(tokens: int) -> str:
        return f"{length_text(tokens)} ({tokens / document.trained_length:g}x)"

    text = _TEMPLATES.get_template("document.md").render(
        results=results, document=document, links=links, length=length
    )
    _write(document.path, text)


def _write_figures(results: Results, document: Document) -> dict[str, list[tuple[str, str]]]:
    """Writes the figures of a document; returns what each shows and its path from there, by the metric above it."""
    presentations = {p.metric: p for p in results.presentations}
    links: dict[str, list[tuple[str, str]]] = {metric: [] for metric in presentations}
    for one in document.figures:
        drawn = [presentations[metric] for metric in one.metrics if metric in presentations]
        if beside := [panel for p in drawn for panel in panels(p, results.report)]:
            words = ", ".join(dict.fromkeys(panel.presentation.title for panel in beside))
            figure = figure_of(beside, results.models)
            _write(one.path, themed_svg(figure, words, alone=True) + "\n")
            link = os.path.relpath(one.path, pathlib.Path(document.path).parent)
            links[beside[0].presentation.metric].append((words, link))
    return links


def _write(path: str, text: str) -> None:
    file = pathlib.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
