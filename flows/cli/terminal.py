"""The console that commands print their results on, and what they print of text that comes from elsewhere."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import rich.markup
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from tasks.core.printable import escape_controls, line_breaks

DEFAULT_WIDTH = 80
MIN_WIDTH = 20


class ResultConsole(Console):
    """Prints results: does not colour figures, and writes control characters as \\x1b.

    On a terminal lines are broken between words; elsewhere they stay whole, for programs that read them.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(highlight=False, soft_wrap=True, stderr=stderr)
        if self.width < MIN_WIDTH:  # COLUMNS=0 means that it is not known; rich would print nothing at all
            self.width = MIN_WIDTH if self.width else DEFAULT_WIDTH

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, with the lines of a text wrapped."""
        if self.is_terminal:
            objects = tuple(self._wrap(each) if isinstance(each, str) else each for each in objects)
            options["soft_wrap"] = not any(isinstance(each, Table) for each in objects)  # a table has its own wrapping
        super().print(*objects, **options)

    def _wrap(self, markup: str) -> Text:
        lines = []
        for line in self.render_str(markup, highlight=False).split("\n", allow_blank=True):
            indent, breaks = line_breaks(line.plain, self.width)
            parts = line.divide(breaks)
            for part in parts:
                part.rstrip()
            lines.append(Text("\n" + " " * indent).join(parts))
        return Text("\n").join(lines)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render to segments without control characters but those of this console's own styles."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escape_controls(segment.text))


def escape(text: str) -> str:
    """Return a text that stands for itself in markup and on a terminal, in one line."""
    return rich.markup.escape(escape_controls(text, keep=""))


def link_file(path: str) -> str:
    """Return the path of a file as markup: a link where the terminal knows links."""
    return f"[link={Path(path).absolute().as_uri()}]{escape(path)}[/link]"
