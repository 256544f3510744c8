"""The console that commands print their results on, and what they print of text that comes from elsewhere."""

from collections.abc import Iterable

import rich.markup
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from tasks.core.printable import escape_controls


class ResultConsole(Console):
    """Prints results: neither colours figures nor wraps lines, and writes control characters as \\x1b."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(highlight=False, soft_wrap=True, stderr=stderr)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render to segments without control characters but those of this console's own styles."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escape_controls(segment.text))


def escape(text: str) -> str:
    """Return a text that stands for itself in markup and on a terminal, in one line."""
    return rich.markup.escape(escape_controls(text, keep=""))
