"""Tables of rows by their presentations, for the page and for the document."""

import dataclasses
from collections.abc import Callable, Sequence

from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.present.units import (
    TEXTS,
    interval_text,
    length_text,
)
from hypenet_jax.evals.report import Report, Row

# Numbers that stand beside each other in half a page.
WIDEST = 8


@dataclasses.dataclass(frozen=True)
class Cell:
    """A number; how it compares with the first model's; its interval of 95 %."""

    text: str
    ratio: str = ""
    interval: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Lines of cells, whose first one names the line."""

    caption: str
    head: Sequence[str]
    lines: Sequence[Sequence[Cell]]

    def turned(self) -> "Table":
        """The other way round where the columns are many and the lines fewer: all is seen without scrolling."""
        room = WIDEST // (2 if any(cell.ratio for line in self.lines for cell in line) else 1)
        if len(self.head) - 1 <= room or len(self.head) <= len(self.lines):
            return self
        first, *lines = zip(map(Cell, self.head), *self.lines, strict=True)
        return Table(self.caption, [cell.text for cell in first], lines)


def tables(
    p: Presentation,
    report: Report,
    models: Sequence[str],
    length: Callable[[int], str] = length_text,
) -> list[Table]:
    """The tables of a presentation: one, of several tasks one per model; none for what is only drawn, and for texts.

    Args:
      length: how a context length is written.
    """
    rows = p.rows(report).rows
    if not rows or p.kind not in ("lines", "table", "list"):
        return []
    if p.kind == "list":
        return [_list(p, rows, report)]
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: [*models, row.model].index(row.model)):
        groups.setdefault(row.model if row.task else "", []).append(row)
    found = []
    for caption, group in groups.items():
        lengths = Report(tuple(group)).lengths
        lines: dict[str, dict[int | None, Cell]] = {}
        for row in group:
            name = row.task or ", ".join(filter(None, (row.model, row.label)))
            lines.setdefault(name, {})[row.length] = _cell(p, row, report, models[0])
        cells = [
            [Cell(name), *(line.get(n, Cell("\u2013")) for n in lengths)]
            for name, line in lines.items()
        ]
        found.append(Table(caption, ["context", *map(length, lengths)], cells))
    return found


def failures(report: Report) -> Table | None:
    """What could not be measured, and why."""
    rows = report.select("failed").rows
    texts = [(r.task, r.model, length_text(r.length or 0), str(r.count), r.label) for r in rows]
    lines = [[Cell(text or "") for text in line] for line in texts]
    return Table("", ("what", "model", "context", "samples", "why"), lines) if rows else None


def _cell(p: Presentation, row: Row, report: Report, first: str) -> Cell:
    """With how many times better than the first model it is: measured in turns where that was done."""
    text, ratio = TEXTS[p.unit], ""
    base = report.select(row.metric, first, row.length).rows
    if p.better and row.model != first and base and row.value:
        in_turns = report.select(p.ratio, row.model, row.length).rows if p.ratio else ()
        times = in_turns[0].value if in_turns else base[0].value / row.value
        ratio = f"{TEXTS['ratio'](times)} {p.better}"
    return Cell(text(row.value), ratio, interval_text(row, p.unit))


def _list(p: Presentation, rows: Sequence[Row], report: Report) -> Table:
    """A line per row. Fields that all rows share are the caption; others are columns."""
    rows = sorted(rows, key=lambda row: (row.task or "", row.metric))
    names = {
        "task": [row.task or "" for row in rows],
        "metric": [row.metric.rpartition("/")[2] for row in rows],
        "model": [row.model for row in rows],
        "label": [row.label or "" for row in rows],
        "context": [length_text(row.length) if row.length else "" for row in rows],
    }
    shared = [name for name, column in names.items() if len({*column}) == 1]
    told = [name for name in shared if name != "metric" or "*" in p.metric]
    caption = ", ".join(names[name][0] for name in told if names[name][0])
    columns = {name: column for name, column in names.items() if name not in shared}
    columns |= {} if columns else {"model": names["model"]}
    columns["value"] = [TEXTS[p.unit](row.value) for row in rows]
    columns["95\u00a0% interval"] = [interval_text(row, p.unit) for row in rows]
    if p.unit == "count":
        total = TEXTS[p.unit](sum(row.value for row in rows))
        for column, last in zip(columns.values(), ("all", total), strict=False):
            column.append(last)
    else:
        columns["count"] = [TEXTS["count"](row.count) for row in rows]
    best = report.select(p.best).rows if p.best else ()
    columns[""] = ["best" if best and best[0].label == row.label else "" for row in rows]
    columns = {name: column for name, column in columns.items() if any(column)}
    return Table(
        caption,
        list(columns),
        [list(map(Cell, line)) for line in zip(*columns.values(), strict=True)],
    )
