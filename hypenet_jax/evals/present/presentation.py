"""How the rows of one metric are shown. Each measurement says it beside its code; page, figures and document follow."""

import bisect
import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from typing import Literal

from hypenet_jax.evals.report import Report, Row

Kind = Literal["lines", "table", "list", "bars", "heat map", "curves", "texts", "answers"]
DRAWN: tuple[Kind, ...] = ("lines", "bars", "heat map", "curves")
"""Kinds that have figures."""
Number = int | float
Unit = Literal["number", "share", "seconds", "bytes", "count", "error"]


def number_text(value: Number) -> str:
    """Three digits, and before the point all: 0.0123, 47.5, 1,370; 4.2e+07 of a model that diverged."""
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:.3g}"


def seconds_text(seconds: Number) -> str:
    """1.2 s, 35 ms, 0.74 ms, 80 µs."""
    size, unit = ((1e6, "µs"), (1e3, "ms"), (1, "s"))[bisect.bisect((1e-4, 1), seconds)]
    return f"{number_text(seconds * size)} {unit}"


def bytes_text(count: Number) -> str:
    """512 KiB, 4.1 MiB, 2 GiB."""
    power = bisect.bisect([1000 * 1024**i for i in range(4)], count)
    return f"{number_text(count / 1024**power)} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def count_text(count: Number) -> str:
    """512, 50k, 1.2M, 2.3B: for axes."""
    power = bisect.bisect((1e3, 1e6, 1e9), count)
    return f"{count / 1000**power:.3g}{('', 'k', 'M', 'B')[power]}"


def length_text(length: int) -> str:
    """512, 2K, 128K, 1M: powers of two as people say them."""
    for size, unit in ((2**20, "M"), (2**10, "K")):
        if length >= size and length % size == 0:
            return f"{length // size}{unit}"
    return f"{length}"


TEXTS: Mapping[Unit, Callable[[Number], str]] = {
    "number": number_text,
    "share": "{:.2f}".format,
    "seconds": seconds_text,
    "bytes": bytes_text,
    "count": "{:,.0f}".format,
    "error": number_text,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Presentation:
    """How the rows of one metric are shown; a metric without rows is left out.

    What each kind reads of a row, besides its value, interval and count:
      "lines": a line per model over `length`, and the numbers as a table; logarithmic for seconds and bytes.
      "table": numbers by `length`, a line per model and label; with tasks a table per model, a line per task.
      "list": a line per row, whose columns are the fields that differ; a list of counts ends with their sum.
      "bars": a bar per `label`, coloured by `task`, which names the series ("first step", "last step"); a figure per
        model, which is here and below the name of a stage.
      "heat map": a cell per `length` and `depth`, a figure per model and task.
      "curves": a line per model over `tokens`, a figure per `task`, which names the loss; where rows have labels, such
        as layers, a line per label in the colour of its place, a figure per model.
      "texts": `task` is a prompt, `label` what the model wrote after it; "answers": what it answered.

    Attributes:
      metric: of the rows; "harness/*" are all that start so.
      title: heading of its section, or of its figure in a section of several.
      note: a sentence or two below it; "{counts}" becomes the least and the most `count` of the rows.
      unit: how a number is written; "error" is one above 0, on a logarithmic scale where the largest is far from the
        smallest.
      label: name of the axis of the values.
      section: heading that presentations one after another share; None: the title alone.
      reference: value and name of a dotted line, such as the accuracy of guessing.
      better: "faster" or "smaller": each number also says how many times better than the first model's it is.
      ratio: metric of that ratio where it was measured in turns; None: it is computed from the numbers.
      best: metric of the one row of a list that is marked as the best.
    """

    metric: str
    title: str
    note: str = ""
    unit: Unit = "number"
    kind: Kind = "lines"
    label: str = ""
    section: str | None = None
    reference: tuple[float, str] | None = None
    better: Literal["faster", "smaller"] | None = None
    ratio: str | None = None
    best: str | None = None

    def rows(self, report: Report) -> tuple[Row, ...]:
        """Those of its rows that a report has."""
        return tuple(r for r in report.rows if fnmatch.fnmatchcase(r.metric, self.metric))

    def note_of(self, report: Report) -> str:
        """The note, with the counts of its rows."""
        counts = [row.count for row in self.rows(report)]
        ends = dict.fromkeys((min(counts), max(counts)))
        return self.note.replace("{counts}", " to ".join(map(str, ends)))

    def text(self, value: Number) -> str:
        """A number in its unit."""
        return TEXTS[self.unit](value)

    def interval(self, row: Row) -> str:
        """0.89 to 1.00; nothing where no interval was computed."""
        return " to ".join(map(self.text, row.interval or ()))

    def told(self, row: Row) -> str:
        """The number, and its interval where there is one: 0.95 (0.89 to 1.00)."""
        ends = self.interval(row)
        return self.text(row.value) + (f" ({ends})" if ends else "")
