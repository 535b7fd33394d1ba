"""Figures of rows by their presentations, drawn by matplotlib without a window, for the page and for papers."""

import dataclasses
import html
import io
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure, FigureBase
from matplotlib.legend_handler import HandlerTuple

from hypenet_jax.evals.present.painters import COLORS, CSS, PAINTERS, STYLE, TIP, Named
from hypenet_jax.evals.present.presentation import DRAWN, Kind, Presentation
from hypenet_jax.evals.report import Report, Row

# In points of 1/72 inch: a panel, a line of the legend, and a cell of a heat map and what is around all of them.
WIDTH, HEIGHT, LEGEND_LINE = 340, 205, 17
CELL_WIDTH, CELL_HEIGHT, AROUND = 40, 25, 58
BESIDE = 2  # panels in a line of a figure
# The fields of rows that are alike in a panel, where a presentation has several.
ALIKE: Mapping[Kind, tuple[str, ...]] = {
    "heat map": ("model", "task"),
    "bars": ("model",),
    "curves": ("task",),
}


@dataclasses.dataclass(frozen=True)
class Panel:
    """The rows of one pair of axes; the caption says which of a presentation's they are, and is its title where it has
    one panel."""

    presentation: Presentation
    caption: str
    rows: Sequence[Row]

    @property
    def title(self) -> str:
        """What the vertical axis is."""
        p = self.presentation
        return {"curves": self.rows[0].task, "heat map": "depth"}.get(p.kind) or p.label

    @property
    def whole_title(self) -> str:
        """What stands above it where others are beside it."""
        p = self.presentation
        return p.title if self.caption == p.title else f"{p.title}: {self.caption}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in points, without a legend."""
        if self.presentation.kind != "heat map":
            return WIDTH, HEIGHT
        lengths, depths = ({getattr(row, n) for row in self.rows} for n in ("length", "depth"))
        return AROUND + CELL_WIDTH * max(len(lengths), 3), AROUND + CELL_HEIGHT * len(depths)


def panels(p: Presentation, report: Report) -> list[Panel]:
    """The panels of a presentation; none for tables, lists and texts, and where no number is finite."""
    groups: dict[str, list[Row]] = {}
    for row in _drawable(p, report):
        alike = ("model", "task") if p.kind == "curves" and row.label else ALIKE.get(p.kind)
        names = [getattr(row, name) for name in alike] if alike else [p.title]
        groups.setdefault(", ".join(filter(None, names)) or p.title, []).append(row)
    return [Panel(p, caption, rows) for caption, rows in groups.items()]


def draw(p: Presentation, report: Report, models: Sequence[str]) -> dict[str, Figure]:
    """Captions and figures of the panels of a presentation."""
    return {panel.caption: figure_of([panel], models) for panel in panels(p, report)}


@mpl.rc_context(fname=STYLE)
def figure_of(beside: Sequence[Panel], models: Sequence[str]) -> Figure:
    """Panels side by side in lines of two; those of lines over lengths share a legend, of others each has its own."""
    figure, heights, legend = Figure(layout="constrained"), [], {}
    several, shared = len(beside) > 1, all(one.presentation.kind == "lines" for one in beside)
    lines = [beside[i : i + BESIDE] for i in range(0, len(beside), BESIDE)]
    parts = (
        figure.subfigures(len(lines), len(lines[0]), squeeze=False).flat if several else (figure,)
    )
    for part, panel in zip(parts, beside, strict=False):
        axes, (width, height) = part.add_subplot(), panel.size
        p = panel.presentation
        named = PAINTERS[p.kind](axes, p, panel.rows, models)
        axes.set_title(panel.whole_title if several else panel.title)
        legend |= named if shared else {}
        heights.append(height + (0 if shared else _add_legend(part, named, width)))
    width = max(sum(panel.size[0] for panel in line) for line in lines)
    height = len(lines) * max(heights) + _add_legend(figure, legend, width)
    figure.set_size_inches(width / 72, height / 72)
    figure.draw_without_rendering()  # lays it out, once for all formats
    figure.set_layout_engine("none")
    return figure


def _add_legend(figure: FigureBase, named: Named, width: int) -> int:
    """Draws it above all else, where there is something to name; returns its height."""
    if not named:
        return 0
    columns = int(width / (45 + 6 * max(map(len, named)))) or 1
    look: Any = {"loc": "outside upper left", "ncols": columns}
    if any(type(artist) is tuple for artist in named.values()):
        look |= {"handlelength": 6, "handler_map": {tuple: HandlerTuple(ndivide=None, pad=0)}}
    figure.legend(named.values(), named.keys(), **look)
    return LEGEND_LINE * -(-len(named) // columns)


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
    rows = [row for row in p.rows(report) if p.kind in DRAWN and math.isfinite(row.value)]
    if p.kind in ("lines", "heat map"):
        rows = [row for row in rows if row.length]
    return [row for row in rows if row.value > 0 or p.unit not in ("seconds", "bytes")]
