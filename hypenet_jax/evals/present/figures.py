"""Figures of rows by their presentations, drawn by matplotlib without a window, for the page and for papers."""

import collections
import html
import io
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator

from hypenet_jax.evals.present.presentation import TEXTS, Presentation, Unit, length_text
from hypenet_jax.evals.report import Report, Row

STYLE = pathlib.Path(__file__).with_name("figures.mplstyle")
# The page's colours, light or dark as the device is. No two light ones are equal: by them those of figures are found.
CSS = STYLE.with_name("theme.css").read_text(encoding="utf-8")
COLORS: dict[str, str] = dict(re.findall(r"--(\w+):(#\w+)", CSS.partition("@media")[0]))
TIP = "tip:"  # what follows in the id of an artist is said when it is pointed at
# In points of 1/72 inch: a panel, a line of the legend, and a cell of a heat map and what is around all of them.
WIDTH, HEIGHT, LEGEND_LINE = 340, 205, 17
CELL_WIDTH, CELL_HEIGHT, AROUND = 40, 25, 58
MOST_LENGTHS = 8  # told below a figure
LOGARITHMIC: Mapping[Unit, int] = {"seconds": 10, "bytes": 2}  # and the bases of these scales


def draw(p: Presentation, report: Report, models: Sequence[str]) -> dict[str, Figure]:
    """Captions and figures of a presentation; none for tables, lists and texts, and where no number is finite."""
    told = {"curves": ("model",), "heat map": ("model", "task")}.get(p.kind)
    groups: dict[str, list[Row]] = {}
    for row in _drawable(p, report):
        names = [getattr(row, name) for name in told] if told else [p.title]
        groups.setdefault(", ".join(filter(None, names)), []).append(row)
    grouped = {caption: Report(tuple(rows)) for caption, rows in groups.items()}
    return {caption: draw_beside([p], rows, models) for caption, rows in grouped.items()}


@mpl.rc_context(fname=STYLE)
def draw_beside(
    presentations: Sequence[Presentation], report: Report, models: Sequence[str]
) -> Figure:
    """Metrics side by side below one legend; of several, each is named by its title."""
    figure, legend = Figure(layout="constrained"), {}
    width, height = WIDTH * len(presentations), HEIGHT
    for i, p in enumerate(presentations, start=1):
        axes, rows = figure.add_subplot(1, len(presentations), i), _drawable(p, report)
        _PAINTERS[p.kind](axes, p, rows, models)
        label = p.label if len(presentations) == 1 else p.title
        axes.set_title({"curves": rows[0].task, "heat map": "depth"}.get(p.kind) or label)
        handles, names = axes.get_legend_handles_labels()
        legend |= dict(zip(names, handles, strict=True))
        if p.kind == "heat map":
            width = AROUND + CELL_WIDTH * max(len({row.length for row in rows}), 3)
            height = AROUND + CELL_HEIGHT * len({row.depth for row in rows})
    if legend:
        columns = int(width / (45 + 6 * max(map(len, legend)))) or 1
        height += LEGEND_LINE * -(-len(legend) // columns)
        place = {"loc": "outside upper left", "ncols": columns}
        figure.legend(legend.values(), legend.keys(), **place)
    figure.set_size_inches(width / 72, height / 72)
    figure.draw_without_rendering()  # lays it out, once for all formats
    figure.set_layout_engine("none")
    return figure


@mpl.rc_context(fname=STYLE)
def save_figure(figure: Figure, path: pathlib.Path) -> None:
    """PATH.svg, PATH.png and PATH.pdf in light colours, the same bytes each time."""
    path.with_suffix(".svg").write_text(_svg(figure), encoding="utf-8")
    for kind, dated in ((".png", "Software"), (".pdf", "CreationDate")):
        figure.savefig(path.with_suffix(kind), metadata={dated: None})


@mpl.rc_context(fname=STYLE)
def themed_svg(figure: Figure, description: str, *, alone: bool = False) -> str:
    """An SVG element whose colours are the variables of the page, and whose font is that of what is around it.

    Args:
      alone: it is a file of its own, such as a README's, and brings the variables and a font.
    """
    svg = _svg(figure)
    for name, light in COLORS.items():
        svg = svg.replace(light, f"var(--{name})")
    unwanted = r' id="[\w.]+_\d+"| font-family: [^;"]*;?|<metadata>.*?</metadata>|<style.*?</style>'
    unwanted += "" if alone else r'| xmlns(:xlink)?="[^"]*"'
    svg = re.sub(unwanted, "", svg[svg.index("<svg") :], flags=re.S)
    font = f"<style>{CSS}svg{{font-family:system-ui,sans-serif}}</style>" if alone else ""
    head = f'<svg role="img" aria-label="{html.escape(description)}"'
    return svg.replace("<svg", head, 1).replace("<defs", f"{font}<defs", 1).strip()


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(rf'<g id="{TIP}([^"]*)">', r"<g><title>\1</title>", text.getvalue())


def _drawable(p: Presentation, report: Report) -> list[Row]:
    """The rows that have a place in a figure."""
    rows = [row for row in p.rows(report) if p.kind in _PAINTERS and math.isfinite(row.value)]
    if p.kind in ("lines", "heat map"):
        rows = [row for row in rows if row.length]
    return [row for row in rows if row.value > 0 or p.unit not in LOGARITHMIC]


def _lines(axes: Axes, p: Presentation, rows: Sequence[Row], models: Sequence[str]) -> None:
    """A line per model; whiskers where every number has a finite interval, but not on a logarithmic scale."""
    for model in models:
        line = sorted((row for row in rows if row.model == model), key=lambda row: row.key)
        x, y = [row.length or 0 for row in line], [row.value for row in line]
        # Also where there is nothing of it: each model has its look, whatever is drawn.
        (drawn,) = axes.plot(x, y, label=model if line else None)
        ends = [row.interval for row in line if row.interval and math.isfinite(row.interval[1])]
        if line and len(ends) == len(line) and p.unit not in LOGARITHMIC:
            lows, highs = zip(*ends, strict=True)
            axes.vlines(x, lows, highs, color=drawn.get_color(), alpha=0.5, linewidth=1.3)
    for row in rows:  # last, so that they lie above all else
        tip = f"{TIP}{row.model}, {length_text(row.length or 0)}: {p.told(row)}"
        spot: Any = {"color": COLORS["ink"], "markersize": 13, "alpha": 0, "gid": tip}
        axes.plot(row.length or 0, row.value, "o", **spot)
    if p.reference is not None:
        height, name = p.reference
        axes.axhline(height, color=COLORS["soft"], linestyle=":", linewidth=1.2)
        axes.text(0.01, height, name, transform=axes.get_yaxis_transform(), va="bottom")
    length_axis(axes, [row.length or 0 for row in rows])
    value_axis(axes, p.unit)


def _bars(axes: Axes, p: Presentation, rows: Sequence[Row], models: Sequence[str]) -> None:
    """Groups of bars side by side, one per label; the task with fewer bars has the stronger colour."""
    counts = collections.Counter(row.task or "" for row in rows)
    series = [task for task, _ in counts.most_common()]
    labels = list(dict.fromkeys(row.label or "" for row in rows))
    for i, label in enumerate(labels):
        group = [row for row in rows if (row.label or "") == label]
        group.sort(key=lambda row: series.index(row.task or ""))
        for j, row in enumerate(group):
            wide, slot = 0.8 / len(group), series.index(row.task or "")
            tip = f"{TIP}{', '.join(filter(None, (label, row.task)))}: {p.told(row)}"
            look: Any = {"color": f"C{(0, 2, 1, 3, 4, 5)[slot % 6]}", "label": row.task}
            axes.bar(i + (j + 0.5) * wide - 0.4, row.value, wide * 0.92, gid=tip, **look)
    kinds = {label.rpartition(" ")[0] for label in labels}
    kind = kinds.pop() if len(kinds) == 1 else ""
    ticks = range(0, len(labels), -(-len(labels) // 18))
    axes.set_xticks(ticks, [labels[i].removeprefix(kind).strip() for i in ticks])
    axes.set_xlabel(kind)
    value_axis(axes, p.unit)


def _curve(axes: Axes, p: Presentation, rows: Sequence[Row], models: Sequence[str]) -> None:
    steps, losses = [row.step or 0 for row in rows], [row.value for row in rows]
    axes.plot(steps, losses, "-", color="C2", marker="")
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    value_axis(axes, p.unit)


def _cells(axes: Axes, p: Presentation, rows: Sequence[Row], models: Sequence[str]) -> None:
    """A cell per context length (to the right) and depth (downwards, towards the question); full colour is 1."""
    lengths = sorted({row.length or 0 for row in rows})
    depths = sorted({row.depth or 0.0 for row in rows})
    for row in rows:
        x, y = lengths.index(row.length or 0), depths.index(row.depth or 0.0)
        place = f"{length_text(row.length or 0)} tokens, depth {row.depth or 0.0:.1%}"
        tip = f"{TIP}{p.told(row)} at {place}, {row.count} questions"
        look: Any = {"color": "C2", "alpha": 0.06 + 0.6 * min(max(row.value, 0.0), 1.0)}
        axes.bar(x, 0.94, 0.96, y - 0.47, gid=tip, **look)
        axes.text(x, y, p.text(row.value), ha="center", va="center_baseline")
    axes.grid(False)
    axes.set(xlim=(-0.5, max(len(lengths), 3) - 0.5), ylim=(len(depths) - 0.5, -0.5))
    axes.set_xticks(range(len(lengths)), map(length_text, lengths))
    axes.set_yticks(range(len(depths)), [f"{100 * d:g}%" for d in depths])
    axes.set_xlabel("context length in tokens")


_PAINTERS: Mapping[str, Callable[[Axes, Presentation, Sequence[Row], Sequence[str]], None]] = {
    "lines": _lines,
    "bars": _bars,
    "curves": _curve,
    "heat map": _cells,
}


def length_axis(axes: Axes, lengths: Sequence[int]) -> None:
    """A log2 scale: the longest context is a tick, and down from it each that leaves room for its number."""
    apart = (1.2 * max(lengths) / min(lengths)) ** (1 / MOST_LENGTHS)
    ticks: list[int] = []
    for length in sorted(set(lengths), reverse=True):
        if not ticks or ticks[-1] / length >= apart:
            ticks.append(length)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks[::-1], map(length_text, ticks[::-1]))
    axes.minorticks_off()
    axes.set_xlabel("context length in tokens")


def value_axis(axes: Axes, unit: Unit) -> None:
    """0 to 1 for shares, logarithmic for seconds and bytes; a few ticks, two or more, in the unit."""
    locator = MaxNLocator(4)
    if unit == "share":
        axes.set_ylim(-0.02, 1.03)
        locator = FixedLocator([0, 0.25, 0.5, 0.75, 1])
    elif unit in LOGARITHMIC:
        axes.set_yscale("log", base=LOGARITHMIC[unit])
        low, high = axes.get_ylim()
        for digits in ((1, 2, 5), (1, 3), (1,)):
            powers = LogLocator(LOGARITHMIC[unit], subs=digits, numticks=7)
            if sum(low <= tick <= high for tick in powers.tick_values(low, high)) > 2:
                locator = powers  # the fewest that are enough; powers alone may lie too far apart
    axes.yaxis.set_major_locator(locator)
    text = "{x:,.6g}" if unit == "number" else lambda value, _: TEXTS[unit](value)
    axes.yaxis.set_major_formatter(text)
    axes.minorticks_off()
