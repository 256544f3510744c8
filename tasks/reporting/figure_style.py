"""Style and files of all figures: PNG for MLflow's pages, SVG with CSS colours for the report.

The colours have variables in the report's stylesheet, so that an inline SVG follows the page's dark mode.
"""

from __future__ import annotations

import html
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, ACCENT, PALE = "#334155", "#2563eb", "#7f8ea3"
THEME = {INK: "var(--ink)", ACCENT: "var(--accent)", PALE: "var(--faint)"}
WIDTH, HEIGHT = 5.0, 3.2  # inches; scaled to a phone's width, text has nine points
STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 9,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    # A frame would need the page's background colour.
    "legend.frameon": False,
}
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # equal figures give equal files
styled = rc_context(STYLE)  # a decorator: matplotlib reads text properties when text is created, not when saved


def new_figure(height: float = HEIGHT) -> Figure:
    """Return an empty figure, `height` inches high."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def new_axes(title: str, x: str, y: str, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """Return an empty figure with axes."""
    figure = new_figure(height)
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def save_picture(figure: Figure, name: str, folder: Path) -> str:
    """Write NAME.png and NAME.svg; return the path of the PNG. Equal figures give equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=150, metadata={"Software": None})
    figure.set_layout_engine("none")  # both are laid out once, which saves a fifth of the time
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):  # keep text as text, fix ids
        figure.savefig(path.with_suffix(".svg"), format="svg", transparent=True, metadata=NO_METADATA)
    return str(path)


def draw_inline(figure: Figure, name: str, description: str) -> str:
    """Return a figure as an inline SVG element with the page's colours.

    Args:
        figure: to draw.
        name: of the figure, different from others in the page.
        description: alternative text.
    """
    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata=NO_METADATA)
    return _follow_page(stream.getvalue(), name, description)


def inline_svg(path: Path, description: str) -> str:
    """Return a saved figure as an inline SVG element with the page's colours.

    Args:
        path: of the SVG.
        description: alternative text.
    """
    return _follow_page(path.read_text(encoding="utf-8"), path.stem, description)


def _follow_page(svg: str, name: str, description: str) -> str:
    # A stylesheet in an inline SVG applies to the whole page; the page's own has the same rules for figures.
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)  # not needed in HTML
    # Ids must be unique in a page with several figures.
    svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for colour, variable in THEME.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)
