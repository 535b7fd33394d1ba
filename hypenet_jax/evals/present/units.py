"""Numbers as people say them."""

from collections.abc import Callable, Mapping
from typing import Literal

from hypenet_jax.evals.report import Row

Number = int | float
Unit = Literal["number", "share", "seconds", "bytes", "ratio", "count"]


def number_text(value: Number) -> str:
    """Three digits, and before the point all: 0.0123, 47.5, 1,370; 4.2e+07 of a model that diverged."""
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:.3g}"


def seconds_text(seconds: Number) -> str:
    """1.2 s, 35 ms, 0.74 ms, 80 µs."""
    if seconds >= 1:
        return f"{number_text(seconds)} s"
    return f"{number_text(seconds * 1e3)} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.3g} µs"


def bytes_text(count: Number) -> str:
    """512 KiB, 4.1 MiB, 2 GiB."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = next((i for i in range(len(units)) if count < 1000 * 1024**i), len(units) - 1)
    return f"{number_text(count / 1024**power)} {units[power]}"


def length_text(length: Number) -> str:
    """512, 2K, 128K, 1M: powers of two as people say them."""
    whole = int(length)
    for size, unit in ((2**20, "M"), (2**10, "K")):
        if whole >= size and whole % size == 0:
            return f"{whole // size}{unit}"
    return f"{whole}"


TEXTS: Mapping[Unit, Callable[[Number], str]] = {
    "number": number_text,
    "share": "{:.2f}".format,
    "seconds": seconds_text,
    "bytes": bytes_text,
    "ratio": "{:.1f}\u00d7".format,
    "count": "{:,.0f}".format,
}


def interval_text(row: Row, unit: Unit) -> str:
    """0.89 to 1.00; nothing where no interval was computed."""
    return " to ".join(map(TEXTS[unit], row.interval or ()))
