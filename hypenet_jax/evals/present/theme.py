"""How figures look, on the page in light and dark and for papers, and how they are written."""

import html
import io
import pathlib
import re
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Name: light, dark. No two light ones are equal: by them a figure's colours become the page's variables.
THEME = {
    "paper": ("#fcfcfb", "#15181b"),
    "card": ("#f3f4f5", "#1e2226"),
    "ink": ("#1c1f23", "#e8eaec"),
    "soft": ("#5b636d", "#a3abb5"),
    "line": ("#dfe2e6", "#343a41"),
    "pass": ("#20703a", "#6cc989"),
    "fail": ("#b3261e", "#ff8a80"),
    "s0": ("#66707c", "#9aa5b1"),
    "s1": ("#c8413b", "#ff7d73"),
    "s2": ("#0b6fa4", "#58b7ee"),
    "s3": ("#b67700", "#e8b04a"),
    "s4": ("#7a4fb5", "#bb9af0"),
    "s5": ("#2b7d4f", "#6fcb96"),
}
COLORS = {name: light for name, (light, _) in THEME.items()}
SERIES = [COLORS[f"s{slot}"] for slot in range(6)]
# What follows in the id of an artist is said when it is pointed at.
TIP = "tip:"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hypenet_jax",  # files are the same bytes each time
    "pdf.fonttype": 42,
    "font.size": 11.5,
    "text.color": COLORS["soft"],
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": COLORS["line"],
    "legend.frameon": False,
    "legend.labelcolor": COLORS["ink"],
    "legend.borderpad": 0.1,
    "legend.borderaxespad": 0.2,
    "legend.columnspacing": 1.4,
    **{name: 11.5 for name in ("axes.labelsize", "xtick.labelsize", "ytick.labelsize")},
    **{name: COLORS["soft"] for name in ("axes.labelcolor", "xtick.color", "ytick.color")},
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
    **{f"{axis}tick.{size}.size": 0 for axis in "xy" for size in ("major", "minor")},
}


def theme_css() -> str:
    """The colours as variables that are light or dark as the device is."""
    light, dark = ("".join(f"--{n}:{c[i]};" for n, c in THEME.items()) for i in (0, 1))
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"


def themed_svg(figure: Figure, description: str, *, alone: bool = False) -> str:
    """An SVG element whose colours are the variables of `theme_css`, and whose font is that of what is around it.

    Args:
      alone: it is a file of its own, such as a README's, and brings the variables and a font.
    """
    svg = _svg(figure, "none")
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.S
    )
    svg = re.sub(r' id="[\w.]+_\d+"| font-family: [^;"]*;?', "", svg)
    for name, light in COLORS.items():
        svg = svg.replace(light, f"var(--{name})")
    width, height = (round(inches * 72) for inches in figure.get_size_inches())
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(description)}"'
    look, style = f' style="max-width:{1.2 * width:.0f}px"', ""
    if alone:
        look = ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        font = "svg{background:var(--paper);font-family:system-ui,sans-serif}"
        style = f"<style>{theme_css()}{font}</style>"
    svg = re.sub(r"<svg[^>]*>", lambda _: f"{head}{look}>{style}", svg, count=1)
    return re.sub(r"\s*\n\s*", " ", svg).replace("> <", "><").strip()


def save_figure(figure: Figure, path: pathlib.Path) -> None:
    """PATH.svg, PATH.png and PATH.pdf in light colours, the same bytes each time."""
    path.with_suffix(".svg").write_text(_svg(figure, "white"), encoding="utf-8")
    with mpl.rc_context(STYLE):
        for kind, dated in ((".png", "Software"), (".pdf", "CreationDate")):
            figure.savefig(
                path.with_suffix(kind), dpi=200, facecolor="white", metadata={dated: None}
            )


def _svg(figure: Figure, background: str) -> str:
    text, undated = io.StringIO(), {"Date": None, "Creator": None}
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", facecolor=background, metadata=undated)
    return re.sub(rf'<g id="{TIP}([^"]*)">', r"<g><title>\1</title>", text.getvalue())
