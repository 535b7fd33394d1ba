"""Axes that say little and enough: context lengths, shares, numbers, and seconds and bytes on logarithmic scales."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, Locator, LogLocator, MaxNLocator

from hypenet_jax.evals.present.units import TEXTS, Unit, length_text

MOST_LENGTHS = 8  # told below a figure
LEAST_SPAN = 0.1  # of a linear axis, as a part of its numbers: its ticks are told in three digits
_STEPS = (1, 2, 2.5, 5, 10)


def length_axis(axes: Axes, lengths: Sequence[int]) -> None:
    """A log2 scale: the longest context is a tick, and down from it each that leaves room for its number."""
    low, high = min(lengths) / 1.1, max(lengths) * 1.1
    apart = (high / low) ** (1 / MOST_LENGTHS)
    ticks: list[int] = []
    for length in sorted(set(lengths), reverse=True):
        if not ticks or ticks[-1] / length >= apart:
            ticks.append(length)
    axes.set_xscale("log", base=2)
    axes.set_xlim(low, high)
    axes.set_xticks(ticks[::-1], map(length_text, ticks[::-1]))
    axes.minorticks_off()


def value_axis(axes: Axes, unit: Unit, values: Sequence[float]) -> None:
    """A scale that holds these values: 0 to 1 for shares, logarithmic for seconds and bytes."""
    low, high = min(values), max(values)
    if unit in ("seconds", "bytes"):
        base, low, high = 2 if unit == "bytes" else 10, low / 1.15, high * 1.15
        axes.set_yscale("log", base=base)
        locator = _log_locator(math.log(high / low, base), base)
    elif unit == "share" and low >= 0 and high <= 1:
        low, high, locator = -0.02, 1.03, FixedLocator([0, 0.25, 0.5, 0.75, 1])
    else:
        least = LEAST_SPAN * max(abs(low), abs(high)) or 1.0
        spare = max(least - (high - low), 0.08 * (high - low)) / 2
        low, high = low - spare * (low != 0), high + spare * (high != 0 or low == 0)
        locator = MaxNLocator(5, steps=_STEPS)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_major_formatter(lambda value, _: TEXTS[unit](value))
    axes.minorticks_off()


def _log_locator(span: float, base: int) -> Locator:
    """A few powers, but two or more: the ticks of a linear axis where powers lie too far apart.

    Args:
      span: of the axis, in powers of the base.
    """
    if span < (2.5 if base == 2 else 0.9):
        return MaxNLocator(4, steps=_STEPS)
    digits = (1.0,) if base == 2 or span > 3 else (1.0, 3.0) if span > 2 else (1.0, 2.0, 5.0)
    return LogLocator(base, subs=digits, numticks=7)
