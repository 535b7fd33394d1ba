"""Line and bar charts as SVG text: no library, no script, colours from the page's style so that
dark mode works.
"""

import dataclasses
import html
import math
from collections.abc import Callable, Sequence

WIDTH, HEIGHT = 440, 280
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 32, 46
MOST_TICKS = 6  # of a logarithmic axis
LEAST_SPAN = 0.1  # of a linear axis, as a part of its numbers: its ticks are told in three digits
MOST_LENGTHS = 10  # told below a chart
DASHES = ("", "7 4", "", "9 4 2 4", "2 4", "12 4")

Number = int | float
Text = Callable[[Number], str]


@dataclasses.dataclass(frozen=True)
class Series:
    """One line: points in ascending x, and an interval per point where there is one.

    Attributes:
      slot: which of the page's colours and dashes it has, the same for one model in all charts.
    """

    name: str
    slot: int
    x: Sequence[Number]
    y: Sequence[Number]
    intervals: Sequence[tuple[Number, Number]] = ()


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar: its height, its colour, and what it says when it is pointed at."""

    value: Number
    slot: int
    note: str


@dataclasses.dataclass(frozen=True)
class Axis:
    """Numbers to a stretch of the picture.

    Attributes:
      log: equal factors take equal room.
      ticks: where lines and numbers stand.
      text: how a number is written.
    """

    low: Number
    high: Number
    log: bool
    ticks: Sequence[Number]
    text: Text

    def at(self, value: Number, start: Number, stop: Number) -> float:
        """Where a number lies between start and stop."""
        low, high, value = (self._flat(v) for v in (self.low, self.high, value))
        return start + (value - low) / (high - low) * (stop - start)

    def _flat(self, value: Number) -> float:
        return math.log2(value) if self.log else value


def linear_axis(values: Sequence[Number], text: Text, *, zero: bool = False) -> Axis:
    """An axis that ends at round numbers just outside the values; `zero` puts 0 on it."""
    low, high = min(values), max(values)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    least = LEAST_SPAN * max(abs(low), abs(high)) or 1.0
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    step = _round_step((high - low) / 4)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Axis(
        low, high, False, [low + i * step for i in range(round((high - low) / step) + 1)], text
    )


def log_axis(values: Sequence[Number], text: Text, *, binary: bool = False) -> Axis:
    """A logarithmic axis with ticks 1, 2, 5, 10 ..., or at powers of two; fewer of them where those are too many, and
    those of a linear axis where they are too few.
    """
    low, high = min(values) / 1.15, max(values) * 1.15
    base = 2 if binary else 10
    exponents = range(math.floor(math.log(low, base)), math.ceil(math.log(high, base)) + 1)
    one = (1,)
    decimal = (((1, 2, 5), 1), ((1, 3), 1), (one, 1), (one, 2))
    steps = ((one, 1), (one, 2), (one, 4)) if binary else decimal
    finest_first = []
    for digits, every in steps:
        found = [d * float(base) ** e for e in exponents if e % every == 0 for d in digits]
        finest_first.append([tick for tick in found if low <= tick <= high])
    few = [ticks for ticks in finest_first if len(ticks) <= MOST_TICKS]
    ticks = few[0] if few else finest_first[-1]
    if len(ticks) < 2:
        ticks = [tick for tick in linear_axis(values, text).ticks if low <= tick <= high]
    return Axis(low, high, True, ticks, text)


def length_axis(lengths: Sequence[int], text: Text) -> Axis:
    """Context lengths on a log2 scale: the longest is a tick, and down from it each that leaves room for its number."""
    low, high = min(lengths) / 1.1, max(lengths) * 1.1
    apart = (high / low) ** (1 / MOST_LENGTHS)
    ticks: list[int] = []
    for length in sorted(set(lengths), reverse=True):
        if not ticks or ticks[-1] / length >= apart:
            ticks.append(length)
    return Axis(low, high, True, ticks[::-1], text)


def line_chart(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    title: str,
    labels: tuple[str, str],
    reference: tuple[Number, str] | None = None,
    points: bool = True,
) -> str:
    """Lines with points, whiskers for intervals, and a dotted line at the reference value with its
    name.
    """
    parts = [_frame(y, labels), _x_ticks(x)]
    if reference is not None:
        value, name = reference
        height = _number(_y(y, value))
        parts.append(
            f'<line class="ref" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}"/>'
        )
        parts.append(_label(LEFT + 4, _y(y, value) - 5, name, "start"))
    for line in series:
        parts.append(_line(line, x, y, points))
    names = ", ".join(line.name for line in series)
    return _svg("".join(parts), f"{title}: {labels[1]} by {labels[0]} for {names}")


def bar_chart(
    groups: Sequence[tuple[str, Sequence[Bar]]], *, title: str, labels: tuple[str, str], text: Text
) -> str:
    """Groups of bars side by side, each group with its name below."""
    y = linear_axis([bar.value for _, bars in groups for bar in bars], text, zero=True)
    room = (WIDTH - LEFT - RIGHT) / len(groups)
    parts, skip = [_frame(y, labels)], -(-len(groups) // 18)
    for i, (name, bars) in enumerate(groups):
        wide = min(28.0, room * 0.8 / len(bars))
        start = LEFT + room * (i + 0.5) - wide * len(bars) / 2
        parts += [_bar(bar, y, start + j * wide, wide) for j, bar in enumerate(bars)]
        if i % skip == 0:
            parts.append(_label(LEFT + room * (i + 0.5), HEIGHT - BOTTOM + 16, name, "middle"))
    return _svg("".join(parts), f"{title}: {labels[1]} by {labels[0]}")


def legend(entries: Sequence[tuple[str, int]], *, lines: bool = True) -> str:
    """Names with their colours (and dashes), as an HTML list."""
    items = []
    for name, slot in entries:
        mark = (
            f'<line class="s{slot % 6} line" x1="0" x2="26" y1="6" y2="6" {_dash(slot)}/>'
            + _marker(slot, 13, 6)
            if lines
            else f'<rect class="s{slot % 6} fill" x="6" width="12" height="12" rx="2"/>'
        )
        picture = f'<svg viewBox="0 0 26 12" width="26" height="12" aria-hidden="true">{mark}</svg>'
        items.append(f"<li>{picture}{html.escape(name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _line(line: Series, x: Axis, y: Axis, points: bool) -> str:
    known = [i for i, value in enumerate(line.y) if math.isfinite(value)]
    places = {i: (x.at(line.x[i], LEFT, WIDTH - RIGHT), _y(y, line.y[i])) for i in known}
    path = " ".join(f"{_number(a)},{_number(b)}" for a, b in places.values())
    slot, dash = line.slot, _dash(line.slot) if points else ""
    parts = [f'<polyline class="s{slot % 6} line" points="{path}" {dash}/>']
    for i, (a, b) in places.items() if points else ():
        note = f"{line.name}, {x.text(line.x[i])}: {y.text(line.y[i])}"
        if line.intervals:
            low, high = line.intervals[i]
            ends = _number(_y(y, low)), _number(_y(y, high))
            at = f'x1="{_number(a)}" x2="{_number(a)}"'
            parts.append(f'<line class="s{slot % 6} whisker" {at} y1="{ends[0]}" y2="{ends[1]}"/>')
            note += f" ({y.text(low)} to {y.text(high)})"
        parts.append(f"<g>{_marker(slot, a, b)}<title>{html.escape(note)}</title></g>")
    return "".join(parts)


def _bar(bar: Bar, y: Axis, left: Number, wide: Number) -> str:
    ends = sorted((_y(y, bar.value), _y(y, 0.0)))
    box = f'x="{_number(left + 0.5)}" width="{_number(max(wide - 1, 1))}"'
    tall = f'y="{_number(ends[0])}" height="{_number(max(ends[1] - ends[0], 0.75))}"'
    note = f"<title>{html.escape(bar.note)}</title>"
    return f'<rect class="s{bar.slot % 6} fill" {box} {tall} rx="1.5">{note}</rect>'


def _marker(slot: int, a: Number, b: Number) -> str:
    shapes = (
        f'<circle cx="{_number(a)}" cy="{_number(b)}" r="3.6"',
        f'<rect x="{_number(a - 3.4)}" y="{_number(b - 3.4)}" width="6.8" height="6.8"',
        f'<path d="M{_number(a)} {_number(b - 4.6)}l4.4 7.8h-8.8z"',
        f'<path d="M{_number(a)} {_number(b - 4.8)}l4.8 4.8l-4.8 4.8l-4.8 -4.8z"',
    )
    return f'{shapes[slot % len(shapes)]} class="s{slot % 6} fill"/>'


def _frame(y: Axis, labels: tuple[str, str]) -> str:
    parts = []
    for tick in y.ticks:
        height = _number(_y(y, tick))
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}"/>'
        )
        parts.append(_label(LEFT - 7, _y(y, tick) + 4, y.text(tick), "end"))
    parts.append(_label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, labels[0], "middle", "name"))
    return "".join(parts) + _label(2, 13, labels[1], "start", "name")


def _x_ticks(x: Axis) -> str:
    return "".join(
        _label(x.at(tick, LEFT, WIDTH - RIGHT), HEIGHT - BOTTOM + 17, x.text(tick), "middle")
        for tick in x.ticks
    )


def _label(a: Number, b: Number, text: str, anchor: str, kind: str = "tick") -> str:
    place = f'x="{_number(a)}" y="{_number(b)}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{html.escape(text)}</text>'


def _svg(inside: str, description: str) -> str:
    said = html.escape(description)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{inside}</svg>'


def _y(axis: Axis, value: Number) -> float:
    return axis.at(min(max(value, axis.low), axis.high), HEIGHT - BOTTOM, TOP)


def _dash(slot: int) -> str:
    return f'stroke-dasharray="{DASHES[slot % 6]}"' if DASHES[slot % 6] else ""


def _number(value: Number) -> str:
    return f"{value:.1f}"


def _round_step(step: Number) -> float:
    size = 10.0 ** math.floor(math.log10(step))
    return next(size * digit for digit in (1, 2, 2.5, 5, 10) if size * digit >= step * (1 - 1e-9))
