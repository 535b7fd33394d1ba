"""What is drawn into one pair of axes: a painter for each kind of presentation that has figures.

Each returns what a legend says of it.
"""

import collections
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator

from hypenet_jax.evals.present.presentation import (
    TEXTS,
    Presentation,
    Unit,
    count_text,
    length_text,
)
from hypenet_jax.evals.report import Row

Named: TypeAlias = Mapping[str, Any]
"""What a legend says, and the artist, or several side by side, that it says it of."""

STYLE = pathlib.Path(__file__).with_name("figures.mplstyle")
# The page's colours, light or dark as the device is. No two light ones are equal: by them those of figures are found.
CSS = STYLE.with_name("theme.css").read_text(encoding="utf-8")
COLORS: dict[str, str] = dict(re.findall(r"--(\w+):(#\w+)", CSS.partition("@media")[0]))
RAMP = [color for name, color in COLORS.items() if re.fullmatch(r"r\d", name)]  # from first to last
TIP = "tip:"  # what follows in the id of an artist is said when it is pointed at
MOST_LENGTHS = 8  # told below a figure
MOST_MARKERS = 16  # on a line
FAR_APART = 20.0  # largest error over smallest, from which the scale is logarithmic


def lines(axes: Axes, p: Presentation, rows: Sequence[Row], models: Sequence[str]) -> Named:
    """A line per model; whiskers where every number has a finite interval, but not on a logarithmic scale."""
    for model in models:
        line = sorted((row for row in rows if row.model == model), key=lambda row: row.key)
        x, y = [row.length or 0 for row in line], [row.value for row in line]
        # Also where there is nothing of it: each model has its look, whatever is drawn.
        (drawn,) = axes.plot(x, y, label=model if line else None)
        ends = [row.interval for row in line if row.interval and math.isfinite(row.interval[1])]
        if line and len(ends) == len(line) and logarithm(p.unit, rows) is None:
            lows, highs = zip(*ends, strict=True)
            axes.vlines(x, lows, highs, color=drawn.get_color(), alpha=0.5, linewidth=1.3)
    for row in rows:  # last, so that they lie above all else
        where = length_text(row.length or 0)
        _spot(axes, row.length or 0, row.value, f"{row.model}, {where}: {p.told(row)}")
    if p.reference is not None:
        height, name = p.reference
        axes.axhline(height, color=COLORS["soft"], linestyle=":", linewidth=1.2)
        axes.text(0.01, height, name, transform=axes.get_yaxis_transform(), va="bottom")
    length_axis(axes, [row.length or 0 for row in rows])
    value_axis(axes, p.unit, rows)
    return _named(axes)


def bars(axes: Axes, p: Presentation, rows: Sequence[Row], models: Sequence[str]) -> Named:
    """Groups of bars side by side, one per label; the task with fewer bars has the stronger colour.

    A bar starts at 0, which no logarithmic scale has: there a group is dots above each other.
    """
    counts = collections.Counter(row.task or "" for row in rows)
    series = [task for task, _ in counts.most_common()]
    labels, base = list(dict.fromkeys(row.label or "" for row in rows)), logarithm(p.unit, rows)
    for i, label in enumerate(labels):
        group = [row for row in rows if (row.label or "") == label]
        group.sort(key=lambda row: series.index(row.task or ""))
        if base is not None:
            ends = [row.value for row in group]
            axes.vlines(i, min(ends), max(ends), color=COLORS["line"], linewidth=2, zorder=1)
        for j, row in enumerate(group):
            wide, slot = 0.8 / len(group), series.index(row.task or "")
            tip = f"{TIP}{', '.join(filter(None, (label, row.task)))}: {p.told(row)}"
            look: Any = {"color": f"C{(0, 2, 1, 3, 4, 5)[slot % 6]}", "label": row.task, "gid": tip}
            if base is None:
                axes.bar(i + (j + 0.5) * wide - 0.4, row.value, wide * 0.92, **look)
            else:
                axes.plot(i, row.value, linestyle="", marker="os^DvP"[slot % 6], **look)
    kind, names = _kind_and_names(labels)
    ticks = range(0, len(labels), -(-len(labels) // 18))
    axes.set_xticks(ticks, [names[i] for i in ticks])
    axes.set_xlabel(kind)
    value_axis(axes, p.unit, rows)
    return _named(axes)


def curves(axes: Axes, p: Presentation, rows: Sequence[Row], models: Sequence[str]) -> Named:
    """A line per stage, or per label in the colour of its place; points are marked where they are few."""
    labels, named = list(dict.fromkeys(row.label for row in rows)), rows[0].label is not None
    line_of: dict[str, list[Row]] = {}
    for row in rows:
        line_of.setdefault(row.label or row.model, []).append(row)
    few = max(map(len, line_of.values())) <= MOST_MARKERS
    for i, (name, line) in enumerate(line_of.items()):
        look: Any = {"label": name} if len(line_of) > 1 else {"color": "C2"}
        if named:
            look = {"color": _ramp(i, len(labels)), "linewidth": 1.2, "linestyle": "-"}
        line.sort(key=lambda row: row.key)
        x, y = [row.tokens or 0 for row in line], [row.value for row in line]
        axes.plot(x, y, gid=TIP + name, **{"marker": "o" if few else "", "markersize": 3, **look})
        for row in line if few else ():
            where = f"after {count_text(row.tokens or 0)} tokens"
            _spot(axes, row.tokens or 0, row.value, f"{name}, {where}: {p.told(row)}")
    longest = max(row.tokens or 0 for row in rows)
    axes.set_xlim(-0.03 * longest, 1.03 * longest)
    axes.set_xlabel("tokens read by the stage")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: count_text(value))
    value_axis(axes, p.unit, rows)
    if not named:
        return _named(axes)
    last = _kind_and_names([label or "" for label in labels])[1][-1]
    return {f"{labels[0]} to {last}": tuple(Rectangle((0, 0), 1, 1, color=color) for color in RAMP)}


def cells(axes: Axes, p: Presentation, rows: Sequence[Row], models: Sequence[str]) -> Named:
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
    return {}


PAINTERS: Mapping[str, Callable[[Axes, Presentation, Sequence[Row], Sequence[str]], Named]] = {
    "lines": lines,
    "bars": bars,
    "curves": curves,
    "heat map": cells,
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


def value_axis(axes: Axes, unit: Unit, rows: Sequence[Row]) -> None:
    """0 to 1 for shares, logarithmic where `logarithm` says so; a few ticks, two or more, in the unit."""
    locator, base = MaxNLocator(4), logarithm(unit, rows)
    if unit == "share":
        axes.set_ylim(-0.02, 1.03)
        locator = FixedLocator([0, 0.25, 0.5, 0.75, 1])
    elif base is not None:
        axes.set_yscale("log", base=base)
        low, high = axes.get_ylim()
        for digits in ((1, 2, 5), (1, 3), (1,)):
            powers = LogLocator(base, subs=digits, numticks=7)
            if sum(low <= tick <= high for tick in powers.tick_values(low, high)) > 2:
                locator = powers  # the fewest that are enough; powers alone may lie too far apart
    axes.yaxis.set_major_locator(locator)
    plain = unit in ("number", "error")
    text = "{x:,.6g}" if plain else lambda value, _: TEXTS[unit](value)
    axes.yaxis.set_major_formatter(text)
    axes.minorticks_off()


def logarithm(unit: Unit, rows: Sequence[Row]) -> int | None:
    """The base of the scale of these values; None where it is linear."""
    values = [row.value for row in rows]
    if unit == "error" and not max(values) > FAR_APART * min(values) > 0:
        return None
    return {"seconds": 10, "bytes": 2, "error": 10}.get(unit)


def _named(axes: Axes) -> Named:
    handles, names = axes.get_legend_handles_labels()
    return dict(zip(names, handles, strict=True))


def _spot(axes: Axes, x: int, y: float, tip: str) -> None:
    """Where pointing says something; it is not seen."""
    look: Any = {"color": COLORS["ink"], "markersize": 13, "alpha": 0, "gid": TIP + tip}
    axes.plot(x, y, "o", **look)


def _kind_and_names(labels: Sequence[str]) -> tuple[str, list[str]]:
    """("layer", ["0", "1"]) of "layer 0" and "layer 1"; no kind where they are of several."""
    kinds = {label.rpartition(" ")[0] for label in labels}
    kind = kinds.pop() if len(kinds) == 1 else ""
    return kind, [label.removeprefix(kind).strip() for label in labels]


def _ramp(place: int, count: int) -> str:
    return RAMP[round(place / max(count - 1, 1) * (len(RAMP) - 1))]
