"""Figures of rows by their presentations, drawn by matplotlib without a window: lines, bars, heat maps, curves."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.present.scales import length_axis, value_axis
from hypenet_jax.evals.present.theme import COLORS, SERIES, STYLE, TIP
from hypenet_jax.evals.present.units import TEXTS, interval_text, length_text
from hypenet_jax.evals.report import Report, Row

# In points of 1/72 inch.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 370, 240, 56, 12, 24, 38
LEGEND_LINE, CELL_WIDTH, CELL_HEIGHT = 17, 43, 26
MARKERS = ("o", "s", "^", "D")
DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), "-", (0, (5, 1.5, 1, 1.5)), (0, (1, 1.5)), (0, (7, 2)))


def draw(presentation: Presentation, report: Report, models: Sequence[str]) -> dict[str, Figure]:
    """Captions and figures of a presentation; none for tables, lists and texts, and where no number is finite."""
    if presentation.kind not in _PAINTERS:
        return {}
    groups: dict[str, list[Row]] = {}
    for row in presentation.rows(report).rows:
        measured = row.length or presentation.kind in ("bars", "curves")
        if math.isfinite(row.value) and measured:
            caption = {"curves": (row.model,), "heat map": (row.model, row.task)}
            names = caption.get(presentation.kind, (presentation.title,))
            groups.setdefault(", ".join(filter(None, names)), []).append(row)
    with mpl.rc_context(STYLE):
        return {
            caption: _figure([presentation], [rows], models) for caption, rows in groups.items()
        }


def draw_beside(
    presentations: Sequence[Presentation], report: Report, models: Sequence[str]
) -> Figure:
    """Metrics side by side below one legend, each named by its title."""
    rows = [presentation.rows(report).rows for presentation in presentations]
    with mpl.rc_context(STYLE):
        return _figure(presentations, rows, models)


def _figure(
    presentations: Sequence[Presentation], rows: Sequence[Sequence[Row]], models: Sequence[str]
) -> Figure:
    width, tall = WIDTH, HEIGHT - TOP - BOTTOM
    if presentations[0].kind == "heat map":
        lengths, depths = ({getattr(row, name) for row in rows[0]} for name in ("length", "depth"))
        width = LEFT + RIGHT + CELL_WIDTH * max(len(lengths), 3)
        tall = CELL_HEIGHT * len(depths)
    figure = Figure()
    panels = [figure.add_subplot(1, len(rows), i + 1) for i in range(len(rows))]
    legend: dict[str, Any] = {}
    for axes, presentation, each in zip(panels, presentations, rows, strict=True):
        _PAINTERS[presentation.kind](axes, presentation, each, models)
        label = presentation.label if len(rows) == 1 else presentation.title
        label = {"curves": each[0].task, "heat map": "depth"}.get(presentation.kind, label)
        axes.annotate(
            label or "", (0, 1), (-LEFT + 2, 9), "axes fraction", textcoords="offset points"
        )
        handles, names = axes.get_legend_handles_labels()
        legend |= dict(zip(names, handles, strict=True))
    longest = 45 + 6.4 * max(map(len, legend), default=1)
    lines = -(-len(legend) // max(1, int(len(rows) * width / longest)))
    above = TOP + LEGEND_LINE * lines
    whole, height = len(rows) * width, above + tall + BOTTOM
    figure.set_size_inches(whole / 72, height / 72)
    for i, axes in enumerate(panels):
        inner = (width - LEFT - RIGHT) / whole
        axes.set_position(((i * width + LEFT) / whole, BOTTOM / height, inner, tall / height))
    if legend:
        place = {"loc": "upper left", "bbox_to_anchor": (0, 1), "ncols": -(-len(legend) // lines)}
        figure.legend(legend.values(), legend.keys(), **place)
    return figure


def _lines(axes: Axes, p: Presentation, rows: Sequence[Row], models: Sequence[str]) -> None:
    """A line per model; whiskers where every number has a finite interval, but not on a logarithmic scale."""
    log = p.unit in ("seconds", "bytes")
    rows = [row for row in rows if row.length and math.isfinite(row.value)]
    rows = sorted((row for row in rows if not log or row.value > 0), key=lambda row: row.key)
    for slot, model in enumerate(models):
        line = [row for row in rows if row.model == model]
        x, y = [row.length or 0 for row in line], [row.value for row in line]
        look = {"color": _color(slot), "linestyle": DASHES[slot % 6], "marker": MARKERS[slot % 4]}
        ends = [row.interval for row in line if row.interval and math.isfinite(row.interval[1])]
        if line:
            axes.plot(x, y, label=model, **look)
        if line and not log and len(ends) == len(line):
            lows, highs = zip(*ends, strict=True)
            axes.vlines(x, lows, highs, color=_color(slot), alpha=0.5, linewidth=1.4)
    for row in rows:  # last, so that they lie above all else
        tip = f"{row.model}, {length_text(row.length or 0)}: {_told(p, row)}"
        spot: Any = {"color": COLORS["ink"], "markersize": 14, "alpha": 0, "gid": TIP + tip}
        axes.plot(row.length or 0, row.value, "o", **spot)
    if p.reference is not None:
        height, name = p.reference
        axes.axhline(height, color=COLORS["soft"], linestyle=":", linewidth=1.2)
        axes.text(0.01, height, name, transform=axes.get_yaxis_transform(), va="bottom")
    axes.set_xlabel("context length in tokens")
    length_axis(axes, [row.length or 0 for row in rows])
    value_axis(axes, p.unit, [row.value for row in rows])


def _bars(axes: Axes, p: Presentation, rows: Sequence[Row], models: Sequence[str]) -> None:
    """Groups of bars side by side, one per label; the task with fewer bars has the stronger colour."""
    tasks = [row.task or "" for row in rows]
    series = sorted(dict.fromkeys(tasks), key=lambda task: -tasks.count(task))
    labels = list(dict.fromkeys(row.label or "" for row in rows))
    for i, label in enumerate(labels):
        group = [
            row for task in series for row in rows if (row.label, row.task or "") == (label, task)
        ]
        wide = 0.8 / len(group)
        for j, row in enumerate(group):
            place, slot = i + (j - (len(group) - 1) / 2) * wide, series.index(row.task or "")
            tip = f"{', '.join(filter(None, (label, row.task)))}: {_told(p, row)}"
            name = row.task if tasks.index(row.task or "") == rows.index(row) else None
            color = _color((0, 2, 1, 3, 4, 5)[slot % 6])
            axes.bar(place, row.value, wide * 0.92, color=color, label=name, gid=TIP + tip)
    kinds = {label.rpartition(" ")[0] for label in labels}
    kind = kinds.pop() if len(kinds) == 1 else ""
    ticks = range(0, len(labels), -(-len(labels) // 18))
    axes.set_xticks(ticks, [labels[i].removeprefix(kind).strip() for i in ticks])
    axes.set_xlabel(kind)
    value_axis(axes, p.unit, [0.0, *(row.value for row in rows)])


def _curve(axes: Axes, p: Presentation, rows: Sequence[Row], models: Sequence[str]) -> None:
    losses = [row.value for row in rows]
    axes.plot([row.step or 0 for row in rows], losses, color=_color(2))
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    value_axis(axes, p.unit, losses)


def _cells(axes: Axes, p: Presentation, rows: Sequence[Row], models: Sequence[str]) -> None:
    """A cell per context length (to the right) and depth (downwards, towards the question); full colour is 1."""
    lengths = sorted({row.length or 0 for row in rows})
    depths = sorted({row.depth or 0.0 for row in rows})
    for row in rows:
        x, y = lengths.index(row.length or 0), depths.index(row.depth or 0.0)
        place = f"{length_text(row.length or 0)} tokens, depth {row.depth or 0.0:.1%}"
        tip = f"{_told(p, row)} at {place}, {row.count} questions"
        look = {"color": _color(2), "alpha": 0.06 + 0.6 * min(max(row.value, 0.0), 1.0)}
        axes.add_patch(
            Rectangle((x + 0.02, y + 0.03), 0.96, 0.94, linewidth=0, gid=TIP + tip, **look)
        )
        text = TEXTS[p.unit](row.value)
        axes.text(x + 0.5, y + 0.53, text, color=COLORS["ink"], ha="center", va="center")
    axes.grid(False)
    axes.set_xlim(0, max(len(lengths), 3))
    axes.set_ylim(len(depths), 0)
    axes.set_xticks([i + 0.5 for i in range(len(lengths))], map(length_text, lengths))
    axes.set_yticks([i + 0.5 for i in range(len(depths))], [f"{100 * d:g}%" for d in depths])
    axes.set_xlabel("context length in tokens")


_PAINTERS: Mapping[str, Callable[[Axes, Presentation, Sequence[Row], Sequence[str]], None]] = {
    "lines": _lines,
    "bars": _bars,
    "curves": _curve,
    "heat map": _cells,
}


def _told(p: Presentation, row: Row) -> str:
    """The number, and its interval where there is one."""
    ends = interval_text(row, p.unit)
    return TEXTS[p.unit](row.value) + (f" ({ends})" if ends else "")


def _color(slot: int) -> str:
    return SERIES[slot % len(SERIES)]
