"""Tables of rows by their presentations, for the page and for the document."""

import dataclasses
from collections.abc import Callable, Sequence

from hypenet_jax.evals.present.presentation import Presentation, length_text
from hypenet_jax.evals.report import Report, Row

WIDEST = 6  # columns beside each other in half a page; one less where cells say how they compare


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
        """The other way round where it is wider than long and than half a page: all is seen without scrolling."""
        compared = any(cell.ratio for line in self.lines for cell in line)
        if len(self.head) <= max(WIDEST - compared, len(self.lines) + 1):
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
    rows = p.rows(report)
    if rows and p.kind == "list":
        return [_list(p, rows, report)]
    groups: dict[str, dict[str, dict[int, Cell]]] = {}
    for row in sorted(rows, key=lambda row: [*models, row.model].index(row.model)):
        if row.length and p.kind in ("lines", "table"):
            name = row.task or ", ".join(filter(None, (row.model, row.label)))
            lines = groups.setdefault(row.model if row.task else "", {})
            lines.setdefault(name, {0: Cell(name)})[row.length] = _cell(p, row, report, models[0])
    found = []
    for caption, lines in groups.items():
        lengths = sorted({n for line in lines.values() for n in line})  # 0: the name of the line
        cells = [[line.get(n, Cell("\u2013")) for n in lengths] for line in lines.values()]
        found.append(Table(caption, ["context", *map(length, lengths[1:])], cells))
    return found


def texts(p: Presentation, report: Report) -> list[Row]:
    """What models wrote, for each prompt one after another."""
    rows = p.rows(report) if p.kind in ("texts", "answers") else ()
    prompts = list(dict.fromkeys(row.task for row in rows))
    return sorted(rows, key=lambda row: prompts.index(row.task))


def side_by_side(p: Presentation, report: Report) -> Table | None:
    """What each model wrote after each prompt, a column per model."""
    rows = texts(p, report)
    models = list(dict.fromkeys(row.model for row in rows))
    written = {(row.task, row.model): Cell(row.label or "") for row in rows}
    lines = [
        [Cell(prompt or ""), *(written.get((prompt, model), Cell("\u2013")) for model in models)]
        for prompt in dict.fromkeys(row.task for row in rows)
    ]
    return Table("", ("prompt", *models), lines) if rows else None


def failures(report: Report) -> Table | None:
    """What could not be measured, and why."""
    rows = report.select("failed").rows
    texts = [(r.task, r.model, length_text(r.length or 0), str(r.count), r.label) for r in rows]
    lines = [[Cell(text or "") for text in line] for line in texts]
    return Table("", ("what", "model", "context", "samples", "why"), lines) if rows else None


def _cell(p: Presentation, row: Row, report: Report, first: str) -> Cell:
    """With how many times better than the first model it is: measured in turns where that was done."""
    ratio = ""
    base = report.select(row.metric, first, row.length).rows
    if p.better and row.model != first and base and row.value:
        in_turns = report.select(p.ratio, row.model, row.length).rows if p.ratio else ()
        times = in_turns[0].value if in_turns else base[0].value / row.value
        ratio = f"{times:.1f}\u00d7 {p.better}"
    return Cell(p.text(row.value), ratio, p.interval(row))


def _list(p: Presentation, rows: Sequence[Row], report: Report) -> Table:
    """A line per row. Fields that all rows share are the caption; others are columns."""
    best = {row.label for row in report.select(p.best).rows} if p.best else ()
    lines = [
        {
            "task": row.task or "",
            "metric": row.metric.rpartition("/")[2],
            "model": row.model,
            "label": row.label or "",
            "context": length_text(row.length) if row.length else "",
            "value": p.text(row.value),
            "95\u00a0% interval": p.interval(row),
            "count": f"{row.count:,}" if p.unit != "count" else "",
            "": "best" if row.label in best else "",
        }
        for row in sorted(rows, key=lambda row: (row.task or "", row.metric))
    ]
    names = ("task", "metric", "model", "label", "context")
    shared = [name for name in names if len({line[name] for line in lines}) == 1]
    told = [lines[0][name] for name in shared if name != "metric" or "*" in p.metric]
    columns = [name for name in lines[0] if name not in shared]
    head = [name for name in columns if any(line[name] for line in lines)]
    if len(shared) == len(names):
        head.insert(0, "model")
    if p.unit == "count":
        lines.append({head[0]: "all", "value": p.text(sum(row.value for row in rows))})
    cells = [[Cell(line.get(name, "")) for name in head] for line in lines]
    return Table(", ".join(filter(None, told)), head, cells)
