"""Scores by context length and depth as a grid of cells, SVG text like the other charts."""

import html
from collections.abc import Sequence

from hypenet_jax.evals.present.charts import Number
from hypenet_jax.evals.present.parts import length_text
from hypenet_jax.evals.report import Row

CELL_WIDTH, CELL_HEIGHT, LEFT, TOP, BOTTOM = 62, 30, 58, 22, 40
NARROWEST = 230  # what stands beside the axes needs it


def heat_map(rows: Sequence[Row], title: str) -> str:
    """A cell per context length (to the right) and depth (downwards, towards the question); full colour is 1.

    A cell says its score, and when it is pointed at its count and interval. Cells that were not measured stay empty.
    """
    lengths = sorted({row.length for row in rows if row.length is not None})
    depths = sorted({row.depth for row in rows if row.depth is not None})
    parts = []
    for i, depth in enumerate(depths):
        place = f"{100 * depth:g}%"
        parts.append(_text(LEFT - 8, TOP + (i + 0.62) * CELL_HEIGHT, place, "end"))
        parts += [
            _cell(row, place, lengths.index(row.length), i)
            for row in rows
            if row.depth == depth and row.length is not None
        ]
    below = TOP + len(depths) * CELL_HEIGHT
    for j, length in enumerate(lengths):
        parts.append(_text(LEFT + (j + 0.5) * CELL_WIDTH, below + 16, length_text(length)))
    width, height = max(LEFT + len(lengths) * CELL_WIDTH + 4, NARROWEST), below + BOTTOM
    parts.append(_text((LEFT + width) / 2, height - 6, "context length in tokens", kind="name"))
    parts.append(_text(2, 13, "depth of the answer", "start", "name"))
    said = html.escape(f"{title}: score by context length and depth")
    box = f'viewBox="0 0 {width} {height}" style="max-width:{width}px"'
    return f'<svg {box} role="img" aria-label="{said}">{"".join(parts)}</svg>'


def _cell(row: Row, place: str, column: int, line: int) -> str:
    x, y = LEFT + column * CELL_WIDTH, TOP + line * CELL_HEIGHT
    share = min(max(row.value, 0.0), 1.0)
    box = f'x="{x + 1}" y="{y + 1}" width="{CELL_WIDTH - 2}" height="{CELL_HEIGHT - 2}" rx="3"'
    note = f"{row.value:.2f} at {row.length} tokens, depth {place}, {row.count} questions"
    if row.interval:
        note += " ({:.2f} to {:.2f})".format(*row.interval)
    text = _text(x + CELL_WIDTH / 2, y + 0.62 * CELL_HEIGHT, f"{row.value:.2f}", kind="cell")
    return (
        f'<g><rect class="s2 fill" {box} fill-opacity="{0.06 + 0.6 * share:.2f}"/>'
        f"{text}<title>{html.escape(note)}</title></g>"
    )


def _text(a: Number, b: Number, text: str, anchor: str = "middle", kind: str = "tick") -> str:
    place = f'x="{a:.1f}" y="{b:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{html.escape(text)}</text>'
