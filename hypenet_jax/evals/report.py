"""What every measurement returns: rows of numbers that can be stored, joined, searched and read in a terminal."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
from jaxtyping import Float

# Parts of the context by which scores are told apart; the deepest is nearest to the question.
DEPTHS = 4
# Two-sided 95 % of a normal distribution.
Z = 1.959963984540054


@dataclasses.dataclass(frozen=True)
class Row:
    """One number, what it is of, and how sure it is.

    Attributes:
      metric: what was measured, such as "needle"; the unit is part of the name where there is one ("decode_seconds").
      model: name of the model it was measured on.
      value: the number.
      count: how many examples, tokens or runs it is made of.
      length: context length in tokens; None where there is none to speak of.
      low, high: interval around the value; None where none was computed.
      label: what else tells rows apart, such as a layer.
      task: which task of several, or which series of one metric.
      depth: where in the context the answer lay, from 0 at its start to 1 at its end; None: wherever it lay.
      tokens: that a stage had read when it left this number; None: it is not of one moment.
    """

    metric: str
    model: str
    value: float
    count: int
    length: int | None = None
    low: float | None = None
    high: float | None = None
    label: str | None = None
    task: str | None = None
    depth: float | None = None
    tokens: int | None = None

    @property
    def key(self) -> tuple[str | int | float, ...]:
        """What names this row; rows sort by it."""
        numbers = (-1 if n is None else n for n in (self.length, self.depth, self.tokens))
        return (self.metric, self.task or "", self.model, self.label or "", *numbers)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Low and high; None where none was computed."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Report:
    """Rows of any metrics and models, in the order they were measured."""

    rows: tuple[Row, ...] = ()

    def add(self, *rows: Row) -> "Report":
        """This report and these rows."""
        return Report((*self.rows, *rows))

    def __add__(self, other: "Report") -> "Report":
        return Report((*self.rows, *other.rows))

    def select(
        self,
        metric: str | None = None,
        model: str | None = None,
        length: int | None = None,
        **fields: Any,
    ) -> "Report":
        """The rows that agree with every argument given; `fields` are further ones of `Row`."""
        given = {"metric": metric, "model": model, "length": length, **fields}
        wanted = [(name, value) for name, value in given.items() if value is not None]
        agree = (r for r in self.rows if all(getattr(r, name) == value for name, value in wanted))
        return Report(tuple(agree))

    def value(self, metric: str, model: str, length: int | None = None, **fields: Any) -> float:
        """The number of the one row that agrees, as `select` reads its arguments.

        Raises:
          KeyError: no row agrees, or more than one.
        """
        found = self.select(metric, model, length, **fields).rows
        if len(found) != 1:
            given = {"metric": metric, "model": model, "length": length, **fields}
            asked = ", ".join(f"{name} {value!r}" for name, value in given.items())
            keys = [row.key for row in found or self.rows]
            raise KeyError(f"{len(found)} rows have {asked}; there are {keys}")
        return found[0].value

    @property
    def models(self) -> tuple[str, ...]:
        """Names of models in the order of their first row."""
        return tuple(dict.fromkeys(row.model for row in self.rows))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Context lengths, ascending."""
        return tuple(sorted({row.length for row in self.rows if row.length is not None}))

    def to_json_lines(self) -> str:
        """One JSON object per row, rows and keys sorted, numbers as short as reads back to the same bits."""
        rows = sorted(self.rows, key=lambda row: row.key)
        return "".join(json.dumps(_plain(row), sort_keys=True) + "\n" for row in rows)

    def table(self) -> str:
        """Aligned text for a terminal: one block per metric, a line per model (and label), a column per length; rows of
        a single depth or moment are left out."""
        whole = [row for row in self.rows if row.depth is None and row.tokens is None]
        metrics = dict.fromkeys(row.metric for row in whole)
        return "\n".join(_block(metric, self.select(metric)) for metric in metrics)


def report_from_json_lines(text: str) -> Report:
    """Undoes `Report.to_json_lines`."""
    return Report(tuple(_row(json.loads(line)) for line in text.splitlines() if line.strip()))


def share(metric: str, model: str, hits: int | float, count: int, **rest: Any) -> Row:
    """The row of hits / count with its Wilson interval of 95 %; `rest` are further fields of the row.

    A hit may be a fraction, such as the share of a question's answers that were found: such scores vary less
    than hits and misses of the same mean, so their interval is rather too wide than too narrow.
    """
    low, high = wilson(hits, count)
    return Row(metric, model, hits / count, count, low=low, high=high, **rest)


def failure(model: str, what: str, why: object, length: int | None = None, count: int = 1) -> Row:
    """The row "failed" of `count` samples of the task `what` that could not be scored, and why."""
    return Row(
        "failed", model, float(count), count, length, label=" ".join(str(why).split()), task=what
    )


def scored(
    metric: str,
    model: str,
    found: Float[np.ndarray, " R"],
    *,
    length: int,
    task: str | None = None,
    by_depth: bool = True,
) -> Report:
    """Rows of the scores, 0 to 1, of questions whose depths are spread evenly: all together, and `metric`_by_depth.

    Question i of n lies at depth (i + 1/2) / n, and counts for the part of the context that this is in. NaN is a
    question that failed; it does not count.
    """
    part_of = (np.arange(len(found)) + 0.5) / len(found) * DEPTHS // 1
    parts = {(i + 0.5) / DEPTHS: found[part_of == i] for i in range(DEPTHS if by_depth else 0)}
    rows = []
    for depth, part in {None: found, **parts}.items():
        known = part[~np.isnan(part)]
        if len(known):
            name, hits = metric if depth is None else f"{metric}_by_depth", float(known.sum())
            row = share(name, model, hits, len(known), length=length, task=task, depth=depth)
            rows.append(row)
    return Report(tuple(rows))


def wilson(hits: int | float, count: int) -> tuple[float, float]:
    """Interval of 95 % around a share; unlike hits / count +- error it stays inside [0, 1] and is not empty at 0 or 1.

    Source: E. B. Wilson, 1927.
    """
    mean, z2 = hits / count, Z * Z
    centre = (mean + z2 / (2 * count)) / (1 + z2 / count)
    spread = Z * math.sqrt(mean * (1 - mean) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return max(0.0, min(mean, centre - spread)), min(1.0, max(mean, centre + spread))


def _plain(row: Row) -> dict[str, Any]:
    """JSON has no word for infinities and NaN: they are written as text."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in dataclasses.asdict(row).items()
        if value is not None
    }


def _row(fields: dict[str, Any]) -> Row:
    numbers = {"value", "low", "high", "depth"} & fields.keys()
    return Row(**{**fields, **{name: float(fields[name]) for name in numbers}})


def _block(metric: str, report: Report) -> str:
    columns = sorted({row.length for row in report.rows}, key=lambda n: (n is None, n))
    lines: dict[str, dict[int | None, str]] = {}
    for row in report.rows:
        name = ", ".join(filter(None, (row.model, row.task, row.label)))
        lines.setdefault(name, {})[row.length] = f"{row.value:.4g}"
    table = [[metric, *("" if n is None else str(n) for n in columns)]]
    table += [[name, *(line.get(n, "") for n in columns)] for name, line in lines.items()]
    first, *others = (max(map(len, column)) for column in zip(*table, strict=True))
    aligned = ([name.ljust(first), *map(str.rjust, cells, others)] for name, *cells in table)
    return "".join("  ".join(line).rstrip() + "\n" for line in aligned)
