"""The canvas of every picture, and how a picture is kept: PNG for MLflow's pages, SVG that takes a page's colours.

Pictures are drawn without a display. Their few colours have names in the pages' stylesheet (base.css.j2), so that an
SVG inside a page is dark where the page is.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, ACCENT, PALE = "#334155", "#2563eb", "#7f8ea3"
THEME = {INK: "var(--ink)", ACCENT: "var(--accent)", PALE: "var(--faint)"}
WIDTH, HEIGHT = 5.0, 3.2  # inches; at the width of a phone the letters still have nine points
STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 9,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    # A legend lies on top of curves in any colour of page; a frame would need the page's own.
    "legend.frameon": False,
}
styled = rc_context(STYLE)  # what a picture's letters look like is read while it is drawn, not when it is saved


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
    """Write NAME.png and NAME.svg and return the path of the former; equal pictures give equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=150, metadata={"Software": None})
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):  # letters stay letters, ids are no random ones
        figure.savefig(path.with_suffix(".svg"), format="svg", transparent=True, metadata=nothing)
    return str(path)


def inline_svg(path: Path, description: str) -> str:
    """Return a saved picture as an element of a page, in the page's colours.

    Args:
        path: of the SVG.
        description: what the picture shows, for those who do not see it.
    """
    svg = path.read_text(encoding="utf-8")
    # A stylesheet in a picture would be the whole page's; the page's own holds the same for its pictures.
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)  # a page knows them
    # A page holds several pictures, and each calls its parts alike.
    svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{path.stem}-", svg)
    for colour, name in THEME.items():
        svg = svg.replace(colour, name)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)
