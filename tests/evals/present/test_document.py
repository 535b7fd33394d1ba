"""The Markdown document, its figure, and the tables that the page shares with it."""

import dataclasses
import html
import re

import pytest

from hypenet_jax.evals.config import DocumentFigure
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.present.tables import tables
from hypenet_jax.evals.report import Report, Row, share


def test_the_document_has_the_tables_checks_and_failures(written):
    text = (written / "docs" / "results.md").read_text(encoding="utf-8")
    for line in (
        "# Results",
        "| context | 128 (1x) | 2K (16x) |",
        "| teacher &lt;RoPE> | 0.38 (0.14 to 0.69) | 0.38 (0.14 to 0.69) |",
        "| student & co | 3.2 µs (1.3\u00d7 faster) | 51.2 µs (7.0\u00d7 faster) |",
        "| all | 3,000 |",
        "0 of 2 statements hold here.",
        "| finds &lt;needles> | 1000 | at most 500 | **no** |",
        "| vt | student & co | 4K | 2 | too &lt;long> |",
    ):
        assert line in text.splitlines()
    assert "\n\n\n" not in text


def test_figures_stand_below_the_heading_of_their_first_metric_that_was_measured(written):
    docs = written / "docs"
    text = (docs / "results.md").read_text(encoding="utf-8")
    assert re.findall(r"^(#+ .*|!.*)$", text, re.M) == [
        *("# Results", "## Needles", "![Needles, Decode](figures/figure.svg)", "## Tasks"),
        *("## Harness", "## Decode", "## Conversion", "### Loss", "![Loss, Error](training.svg)"),
        *("### Tokens", "## Samples", "## Answers", "## What reproduces", "## Not measured"),
    ]
    svg = (docs / "training.svg").read_text(encoding="utf-8")
    assert re.findall(">(Loss: KL|Error: align)<", svg) == ["Loss: KL", "Error: align"]
    assert not (docs / "absent.svg").exists()


def test_figures_of_what_no_measurement_draws_are_refused(results):
    for metric in ("sample", "ruler", "nedle"):
        figure = DocumentFigure(path="docs/x.svg", metrics=("needle", metric))
        document = dataclasses.replace(results.config.document, figures=(figure,))
        with pytest.raises(
            ValueError, match=rf"draws \['{metric}'\], of the figure docs/x.svg; there"
        ):
            dataclasses.replace(results.config, document=document)


def test_what_models_wrote_stands_side_by_side_and_none_of_it_is_markup(written):
    text = (written / "docs" / "results.md").read_text(encoding="utf-8")
    assert "| prompt | teacher &lt;RoPE> | student & co |" in text.splitlines()
    (line,) = [line for line in text.splitlines() if line.startswith("| def ")]
    asked, *answers = (html.unescape(cell.strip()) for cell in line.strip("|").split("|"))
    assert asked == "def `f`?"
    assert answers == ["if *x* | y:<br>\xa0\xa0\xa0\xa0>>> 1"] * 2
    assert not re.search(r"[`*>]", line.replace("<br>", ""))


def test_the_first_figure_of_the_document_is_needle_accuracy_beside_time_per_token(written):
    svg = (written / "docs" / "figures" / "figure.svg").read_text(encoding="utf-8")
    assert svg.startswith("<svg")
    assert 'xmlns="http://www.w3.org/2000/svg"' in svg
    assert "prefers-color-scheme:dark" in svg
    assert re.findall(">(Needles|Decode)<", svg) == ["Needles", "Decode"]


@pytest.mark.parametrize(("tasks_", "first"), [(2, "4K"), (12, "task 0")])
def test_lines_are_lengths_where_these_are_many_and_names_where_those_are_more(tasks_, first):
    p = Presentation(metric="ruler", title="Tasks", unit="share", kind="table")
    names = [f"task {i}" for i in range(tasks_)]
    rows = [Row("ruler", "a", 0.5, 4, 2**i, task=name) for name in names for i in range(12, 21)]
    (table,) = tables(p, Report(tuple(rows)), ["a"])
    turned = table.turned()
    assert turned.lines[0][0].text == first
    assert sum(cell.text == "0.50" for line in turned.lines for cell in line) == 9 * tasks_


def test_the_best_of_a_list_is_marked_and_what_all_rows_share_is_its_caption():
    p = Presentation(metric="sweep", title="Scale", kind="list", best="scale_best")
    rows = [
        share("sweep", "a", i, 4, length=8192, task="needle", label=f"hype {i}") for i in (1, 3)
    ]
    best = share("scale_best", "a", 3, 4, length=8192, task="needle", label="hype 3")
    (table,) = tables(p, Report((*rows, best)), ["a"])
    assert table.caption == "needle, a, 8K"
    assert [[cell.text for cell in line] for line in table.lines] == [
        ["hype 1", "0.25", "0.0456 to 0.699", "4", ""],
        ["hype 3", "0.75", "0.301 to 0.954", "4", "best"],
    ]


def test_models_and_labels_name_the_lines_of_a_table():
    p = Presentation(metric="sliding", title="Sliding", kind="table")
    rows = (Row("sliding", "b & co", 17.25, 8, 2048, label="stride 512"),)
    (table,) = tables(p, Report(rows), ["a", "b & co"])
    assert table.lines[0][0].text == "b & co, stride 512"
    assert table.lines[0][1].text == "17.2"
