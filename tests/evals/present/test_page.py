"""The page and the files beside it."""

import csv
import dataclasses
import re

import pytest

from hypenet_jax.evals.present.write import render_page
from hypenet_jax.evals.report import Report
from hypenet_jax.evals.results import Results


@pytest.fixture(scope="module")
def page(results) -> str:
    return render_page(results)


def test_the_page_is_one_document_that_fetches_nothing(page):
    assert page.startswith("<!doctype html>")
    assert not re.search(
        r"http|<script|src=|[^:]href=|href=\"[^#]|url\([^#]|@import|<link|<iframe", page
    )


def test_all_given_text_is_escaped(page):
    assert "A &lt;title&gt; &amp; more" in page
    assert "&lt;b&gt;1.00&lt;/b&gt;" in page
    assert not re.search("<title> &|<b>1|<RoPE>|<1>|<i>|<long>|<needles>", page)


def test_every_measurement_has_its_section_and_what_was_not_measured_has_none(page):
    titles = re.findall(r"<h[23]>([^<]*)", page)
    assert titles == [
        *("Needles", "Depth", "Tasks", "Harness", "Decode"),
        *("Conversion", "Loss", "Error", "Tokens", "Samples", "Answers", "Checks", "Not measured"),
    ]


def test_every_model_check_task_stage_and_failure_is_on_the_page(page):
    for text in (
        *("teacher &lt;RoPE&gt;", "student &amp; co", "niah &lt;1&gt;", "arc", "8 texts"),
        *("7.0\u00d7 faster", "3,000", "KL", "&lt;i&gt;and&lt;/i&gt; so on", "2 samples"),
        *("too &lt;long&gt;", "finds &lt;needles&gt;", "✗ failed", "○ missed, for information"),
        "1 that must hold do not",
    ):
        assert text in page
    assert page.count('role="img"') == page.count("aria-label=") == 6


def test_numbers_are_told_when_they_are_pointed_at(page):
    tips = re.findall("<title>([^<]*)</title>", page)
    assert "student &amp; co, 2K: 0.50 (0.22 to 0.78)" in tips
    assert "layer 0, last step: 0.1" in tips
    assert "0.38 (0.14 to 0.69) at 128 tokens, depth 25.0%, 8 questions" in tips


def test_figures_follow_light_and_dark_and_look_the_same_each_time(results, page):
    figures = "".join(re.findall("<svg.*?</svg>", page, re.S))
    assert "var(--s0)" in figures
    assert not re.search("#[0-9a-f]{6}", figures)
    assert page == render_page(results)


def test_an_empty_report_is_a_page_without_sections(results):
    page = render_page(Results(dataclasses.replace(results.config, checks=()), Report()))
    assert "<section>" not in page
    assert "nan" not in page


def test_figures_and_numbers_lie_beside_the_page(results, written):
    folder = written / "page"
    names = {path.name for path in (folder / "figures").iterdir()}
    assert {"needle.svg", "needle.png", "needle.pdf", "loss-kl.svg"} <= names
    assert len(names) == 3 * 6
    assert (folder / "index.html").read_text(encoding="utf-8") == render_page(results)
    with (folder / "numbers.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results.report.rows)
    assert rows[0]["metric"] == "needle"
    assert float(rows[0]["value"]) == results.report.rows[0].value
