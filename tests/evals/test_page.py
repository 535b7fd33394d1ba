import dataclasses
import re

import pytest

from hypenet_jax.evals.present.charts import length_axis, linear_axis, log_axis
from hypenet_jax.evals.present.page import render_page, write_page
from hypenet_jax.evals.present.parts import (
    bytes_text,
    length_table,
    length_text,
    number_text,
    seconds_text,
    share_text,
)
from hypenet_jax.evals.present.results import Check, Curve, LayerError, LayerScore, Results
from hypenet_jax.evals.report import Report, Row, share

MODELS = ("teacher <RoPE>", "student & co")


@pytest.fixture
def results() -> Results:
    report = Report()
    for hits, model in enumerate(MODELS, start=3):
        for length in (128, 2048):
            report = report.add(
                share("needle", model, hits, 8, length=length),
                Row("perplexity", model, 40.0 + hits, 64, length, 35.0, 50.0),
                Row("prefill_seconds", model, length / 1e4 / hits, 3, length),
                Row("decode_seconds", model, length / 1e7 / hits, 3, length),
                Row("state_bytes", model, 1024.0 * length / hits, 1, length),
            )
    return Results(
        title="A <title> & more",
        lead="What was done.",
        models=MODELS,
        summary=(("needles", "<b>1.00</b>"),),
        report=report,
        chance=1 / 16,
        curves=(Curve("stage 2", range(1000), [1 / (1 + i) for i in range(1000)], "KL"),),
        alignment=(LayerError(0, 1.0, 0.2), LayerError(1, 0.5, 0.1)),
        selection=(LayerScore(0, 108.0, True), LayerScore(1, -2.0, False)),
        checks=(Check("finds needles", "0.5", "at least 0.9", False),),
        tokens={"stage 1": 1000, "stage 2": 2000},
    )


def test_the_page_is_one_document_that_fetches_nothing(results, tmp_path):
    write_page(tmp_path / "folder" / "page.html", results)
    page = (tmp_path / "folder" / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert not re.search(r"http|<script|src=|href=|url\(|@import|<link|<iframe", page)


def test_all_given_text_is_escaped(results):
    page = render_page(results)
    assert "A &lt;title&gt; &amp; more" in page
    assert "&lt;b&gt;1.00&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "<RoPE>" not in page


def test_every_model_check_stage_and_layer_is_on_the_page(results):
    page = render_page(results)
    for text in ("teacher &lt;RoPE&gt;", "student &amp; co", "finds needles", "✗ failed", "3,000"):
        assert text in page
    assert page.count("layer 0") >= 3
    assert page.count('role="img"') == page.count("aria-label=") == 8


def test_long_curves_are_thinned(results):
    points = re.findall(r'points="([^"]*)"', render_page(results))
    assert max(len(line.split()) for line in points) <= 240


def test_parts_without_numbers_are_left_out(results):
    page = render_page(Results("t", "l", MODELS, (), Report()))
    assert "<section>" not in page
    assert "nan" not in page


def test_every_picture_stays_inside_its_frame(results):
    page = render_page(results)
    for name, limit in (("x", 440), ("y", 280)):
        places = [float(v) for v in re.findall(rf' {name}\d?="([-\d.]+)"', page)]
        assert places
        assert all(0 <= place <= limit for place in places)


def test_numbers_are_written_with_their_units():
    assert [seconds_text(s) for s in (1.234, 0.0351, 0.00074, 8e-5)] == [
        "1.23 s", "35.1 ms", "0.74 ms", "80 µs",
    ]  # fmt: skip
    assert [bytes_text(b) for b in (12, 4096, 4.2e6, 3e9)] == [
        "12 B", "4 KiB", "4.01 MiB", "2.79 GiB",
    ]  # fmt: skip
    assert [seconds_text(s) for s in (1353.2, 0.99996)] == ["1,353 s", "1,000 ms"]
    assert [bytes_text(b) for b in (1010 * 2**30, 3e15)] == ["0.986 TiB", "2,728 TiB"]
    assert [number_text(n) for n in (0.01234, 47.52, 1370.4, 4.2e7)] == [
        "0.0123", "47.5", "1,370", "4.2e+07",
    ]  # fmt: skip
    lengths = (128, 2048, 3000, 2**20, 2**20 + 2**10)
    assert [length_text(n) for n in lengths] == ["128", "2K", "3000", "1M", "1025K"]


def test_lengths_below_a_chart_are_few_and_the_longest_is_among_them():
    for longest in (3, 10, 20):
        lengths = [2**i for i in range(longest)]
        ticks = length_axis(lengths, length_text).ticks
        assert len(ticks) == min(longest, 10)
        assert ticks[-1] == lengths[-1]
        assert set(ticks) <= set(lengths)
    assert length_axis([2, 16, 128, 512, 700], length_text).ticks == [2, 16, 128, 700]


@pytest.mark.parametrize("values", [[2.8e9, 2.9e9], [8e-5, 1.4e-4], [1e3, 1e9]])
def test_a_logarithmic_axis_has_two_ticks_or_more_but_not_many(values):
    for text, binary in ((bytes_text, True), (seconds_text, False)):
        axis = log_axis(values, text, binary=binary)
        texts = [text(tick) for tick in axis.ticks]
        assert 2 <= len(set(texts)) == len(texts) <= 8
        assert all(axis.low <= tick <= axis.high for tick in axis.ticks)


@pytest.mark.parametrize(("tasks", "first"), [(2, "4K"), (12, "task 0")])
def test_lines_of_a_table_are_lengths_where_these_are_many_and_names_where_those_are_more(
    tasks, first
):
    names = tuple(f"task {i}" for i in range(tasks))
    rows = [Row("ruler", "a", 0.5, 4, 2**i, task=name) for name in names for i in range(12, 21)]
    table = length_table(names, Report(tuple(rows)), share_text, name=lambda row: row.task or "")
    assert re.findall(r"<th scope='row'>([^<]*)", table)[0] == first
    assert table.count("<td>0.50</td>") == 9 * tasks


def test_an_interval_without_end_has_no_whisker(results):
    report = Report((Row("perplexity", MODELS[0], 40.0, 64, 128, 0.0, float("inf")),))
    page = render_page(dataclasses.replace(results, report=report))
    assert "perplexity" in page
    assert "whisker" not in page.split("</style>")[1]


@pytest.mark.parametrize("values", [[101.1, 101.2], [101.1], [-3.0, -3.0], [0.0], [1.0, 4e5]])
def test_ticks_of_a_chart_read_differently_and_hold_all_values(values):
    axis = linear_axis(values, "{:.3g}".format)
    texts = [axis.text(tick) for tick in axis.ticks]
    assert len(set(texts)) == len(texts) >= 3
    assert axis.low <= min(values) <= max(values) <= axis.high


def test_sliding_windows_and_the_least_times_of_chips_are_on_the_page(results):
    report = Report(
        (
            Row("perplexity_sliding", "student & co", 17.25, 8, 2048, label="stride 512"),
            Row("decode_seconds_roofline", "student & co", 2.5e-4, 1, 2048, label="v5e"),
        )
    )
    page = render_page(dataclasses.replace(results, report=results.report + report))
    for text in ("student &amp; co, stride 512", "17.2", "student &amp; co, v5e", "0.25 ms"):
        assert text in page
    alone = render_page(dataclasses.replace(results, report=report))
    assert "The least times of chips" in alone
