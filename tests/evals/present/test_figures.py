"""Axes and figures: what they hold, and how numbers are written on them."""

import re

import pytest
from matplotlib.figure import Figure

from hypenet_jax.evals.present.figures import draw, themed_svg
from hypenet_jax.evals.present.painters import RAMP, length_axis, value_axis
from hypenet_jax.evals.present.presentation import (
    Presentation,
    bytes_text,
    length_text,
    number_text,
    seconds_text,
)
from hypenet_jax.evals.report import Report, Row, share

DEPTHS = Presentation(metric="by_depth", title="Depth", unit="share", kind="heat map")


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


def test_lengths_below_a_figure_are_few_and_the_longest_is_among_them():
    for longest in (3, 8, 20):
        lengths = [2**i for i in range(longest)]
        axes = Figure().add_subplot()
        length_axis(axes, lengths)
        ticks = list(axes.get_xticks())
        assert len(ticks) in (min(longest, 8), 7)
        assert ticks[-1] == lengths[-1]
        assert set(ticks) <= set(lengths)
    length_axis(axes, [2, 16, 128, 512, 700])
    assert list(axes.get_xticks()) == [2, 16, 128, 700]


@pytest.mark.parametrize("unit", ["bytes", "seconds"])
@pytest.mark.parametrize("values", [[2.8e9, 2.9e9], [8e-5, 1.4e-4], [1e3, 1e9], [0.03, 8.0], [5.0]])
def test_a_logarithmic_axis_has_two_ticks_or_more_but_not_many(unit, values):
    texts = ticks_of(unit, values)
    assert 2 <= len(set(texts)) == len(texts) <= 8


@pytest.mark.parametrize("values", [[101.1, 101.2], [101.1], [-3.0, -3.0], [0.0], [1.0, 4e5]])
def test_ticks_of_a_linear_axis_read_differently_and_hold_all_values(values):
    texts = ticks_of("number", values)
    assert len(set(texts)) == len(texts) >= 3


def ticks_of(unit, values) -> list[str]:
    axes = Figure().add_subplot()
    axes.plot(values, values, "o")
    value_axis(axes, unit, [Row("x", "a", value, 1) for value in values])
    low, high = axes.get_ylim()
    assert low <= min(values) <= max(values) <= high
    return [
        axes.yaxis.get_major_formatter()(tick) for tick in axes.get_yticks() if low <= tick <= high
    ]


@pytest.fixture
def cells() -> Report:
    places = [(length, depth) for length in (128, 4096) for depth in (0.25, 0.75)]
    rows = [
        share("by_depth", "a", hits, 8, length=length, depth=depth)
        for (length, depth), hits in zip(places, (0, 4, 8, 8), strict=True)
    ]
    return Report(tuple(rows[:-1]))  # one was not measured


def test_every_cell_says_its_score_and_stronger_colour_is_more(cells):
    (figure,) = draw(DEPTHS, cells, ["a"]).values()
    (axes,) = figure.axes
    texts = [text.get_text() for text in axes.texts]
    assert texts[:3] == ["0.00", "0.50", "1.00"]
    strength = [patch.get_alpha() for patch in axes.patches]
    assert strength == sorted(strength)
    svg = themed_svg(figure, "scores <b>")
    for text in ("25%", "75%", ">128<", ">4K<", "8 questions", "scores &lt;b&gt;"):
        assert text in svg


def test_whiskers_are_drawn_where_every_interval_has_an_end():
    p = Presentation(metric="perplexity", title="Perplexity", label="perplexity")
    for high, whiskers in ((50.0, 1), (float("inf"), 0)):
        report = Report((Row("perplexity", "a", 40.0, 64, 128, 30.0, high),))
        (figure,) = draw(p, report, ["a"]).values()
        assert len(figure.axes[0].collections) == whiskers


LOSS = Presentation(metric="loss", title="Loss", kind="curves", unit="error")
ERROR = Presentation(metric="error", title="Error", kind="bars", unit="error", label="error")


def curve(stage: str, *values: float, **fields) -> list[Row]:
    return [Row("loss", stage, x, 1, tokens=i * 30_000, **fields) for i, x in enumerate(values)]


def test_curves_of_one_loss_share_a_figure_in_which_stages_have_names():
    losses = {"align": "error", "distill": "KL", "half": "KL"}
    rows = [row for stage, task in losses.items() for row in curve(stage, 2.0, 1.0, task=task)]
    figures = draw(LOSS, Report(tuple(rows)), ["a"])
    assert {title: figure.axes[0].get_title("left") for title, figure in figures.items()} == {
        "error": "error",
        "KL": "KL",
    }
    assert not figures["error"].legends
    (legend,) = figures["KL"].legends
    assert [text.get_text() for text in legend.get_texts()] == ["distill", "half"]
    svg = themed_svg(figures["KL"], "x")
    for text in ("<title>half, after 30k tokens: 1</title>", ">10k<", "tokens read by the stage"):
        assert text in svg


def test_curves_of_layers_have_a_figure_per_stage_and_a_key_to_their_colours():
    layers = [f"layer {i}" for i in range(30)]
    rows = [row for s in "ab" for layer in layers for row in curve(s, 9.0, 1.0, label=layer)]
    figures = draw(LOSS, Report(tuple(rows)), ["a"])
    assert list(figures) == ["a", "b"]
    axes = figures["a"].axes[0]
    colors = [line.get_color() for line in axes.lines if len(line.get_xdata()) == 2]
    assert len(colors) == 30
    assert list(dict.fromkeys(colors)) == RAMP
    (key,) = figures["a"].legends
    assert [text.get_text() for text in key.get_texts()] == ["layer 0 to 29"]
    assert len(key.legend_handles) == 1
    box, size = figures["a"].get_tightbbox(), figures["a"].get_size_inches()
    assert box.x1 <= size[0]
    assert box.y1 <= size[1]


def test_errors_far_apart_are_dots_on_a_logarithmic_scale_and_others_are_bars_from_zero():
    for largest, scale, bars in ((0.4, "linear", 4), (670.0, "log", 0)):
        values = {"before": (0.3, largest), "after": (0.05, 0.1)}
        rows = [
            Row("error", "align", x, 1, label=f"layer {i}", task=task)
            for task, errors in values.items()
            for i, x in enumerate(errors)
        ]
        (figure,) = draw(ERROR, Report(tuple(rows)), ["a"]).values()
        assert figure.axes[0].get_yscale() == scale
        assert len(figure.axes[0].patches) == bars
        assert "<title>layer 1, after: 0.1</title>" in themed_svg(figure, "x")
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["before", "after"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_not_drawn(value):
    p = Presentation(metric="perplexity", title="Perplexity", label="perplexity")
    rows = (Row("perplexity", "a", value, 64, 128), Row("perplexity", "a", 40.0, 64, 256))
    assert draw(p, Report(rows[:1]), ["a"]) == {}
    (figure,) = draw(p, Report(rows), ["a"]).values()
    assert not re.search(r"nan|inf(?!o)", themed_svg(figure, "x"))


def test_everything_lies_inside_the_figure(results):
    for p in results.presentations:
        for caption, figure in draw(p, results.report, results.models).items():
            box = figure.get_tightbbox()
            width, height = figure.get_size_inches()
            assert min(box.x0, box.y0) >= -0.02, (p.title, caption)
            assert box.x1 <= width + 0.1, (p.title, caption)
            assert box.y1 <= height + 0.02, (p.title, caption)
