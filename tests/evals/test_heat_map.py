"""The grid of scores by context length and depth."""

import re

import pytest

from hypenet_jax.evals.present.heat_map import heat_map
from hypenet_jax.evals.present.page import render_page
from hypenet_jax.evals.present.results import Results
from hypenet_jax.evals.report import Report, Row, failure, share


@pytest.fixture
def rows() -> list[Row]:
    places = [(length, depth) for length in (128, 4096) for depth in (0.25, 0.75)]
    scores = [0, 4, 8, 8]
    made = zip(places, scores, strict=True)
    cells = [
        share("needle_by_depth", "a <b>", hits, 8, length=length, depth=depth)
        for (length, depth), hits in made
    ]
    return cells[:-1]  # one was not measured


def test_every_cell_says_its_score_and_stronger_colour_is_more(rows):
    picture = heat_map(rows, "a <b>")
    cells = re.findall(r'fill-opacity="([\d.]+)"/><text[^>]*>([\d.]+)</text>', picture)
    assert [text for _, text in cells] == ["0.00", "1.00", "0.50"]
    strength = {text: float(opacity) for opacity, text in cells}
    assert strength["0.00"] < strength["0.50"] < strength["1.00"]
    for text in ("25%", "75%", ">128<", ">4K<", "8 questions", "a &lt;b&gt;"):
        assert text in picture


def test_the_picture_holds_all_of_it(rows):
    picture = heat_map(rows, "a")
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', picture).groups())
    for name, limit in (("x", width), ("y", height)):
        assert all(0 <= float(v) <= limit for v in re.findall(rf' {name}="([-\d.]+)"', picture))


def test_depths_tasks_and_failures_have_their_sections(rows):
    report = Report(tuple(rows)).add(
        share("ruler", "a <b>", 3, 4, length=128, task="niah_single_1"),
        Row("ruler_mean", "a <b>", 0.75, 1, 128),
        Row("perplexity_by_position", "a <b>", 12.5, 64, 128, 10.0, 14.0),
        failure("a <b>", "vt", "too <long>", 4096, 2),
    )
    page = render_page(Results("t", "l", ("a <b>",), (), report))
    for text in ("By depth", "Tasks", "niah_single_1", "mean", "Along the context", "Not measured"):
        assert text in page
    assert "too &lt;long&gt;" in page
    assert "2 samples" in page
