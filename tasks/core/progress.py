"""Shows a running job on the terminal: its steps, a progress bar and the latest figures, as one live display.

While a display is shown, what is printed or logged appears above it. In a notebook it is redrawn in the cell's output.
Without a terminal, or where the log is JSON, each step is one line of the log, and there is no bar.
"""

import contextlib
import importlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NamedTuple, Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.jupyter import JupyterMixin
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tasks.core.log_format import wants_json

REFRESHES_PER_SECOND = 1  # of the seconds of the running step; each takes up to 10 ms
NOTEBOOK_REFRESH_S = 0.5  # least seconds between two drawings of a bar that moves
BAR_LINES = 3  # lines below the steps: an empty one, the figures and the bar

log = logging.getLogger("tasks.steps")

_shown: ContextVar["Display | None"] = ContextVar("shown", default=None)


class Step(NamedTuple):
    """A step of a job, as it is shown."""

    name: str
    does: str
    """What it does, in at most 45 characters: a line has 80."""
    parts: tuple[str, ...] = ()
    """Further names that stand for it in `begin_step`."""


class Display(JupyterMixin):
    """Shows the steps of a job during a block; an error in it leaves them on the terminal, success removes them."""

    def __init__(self, console: Console, steps: Sequence[Step] = ()) -> None:
        self._console, self._steps = console, steps
        self._numbers: dict[str, int] = {}
        for number, step in enumerate(steps):
            for name in (step.name, *step.parts):
                self._numbers.setdefault(name, number)
        self._current = -1
        self._seconds: dict[int, float] = {}
        self._since = time.monotonic()
        self._end = ""  # of the current step, where it is not done
        self._bar: Any = None
        self._figures = ""
        self._screen = _make_screen(self, console)

    def __enter__(self) -> Self:
        """Show the display; `begin_step` and `progress_bar` find it."""
        self._token = _shown.set(self)
        if self._screen:
            self._screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the steps as they are after an error; remove them otherwise."""
        _shown.reset(self._token)
        self._stop_clock()
        self._bar = None
        self._end = "" if error is None else "failed" if isinstance(error, Exception) else "stopped"
        if self._screen:
            self._screen.stop(remove=error is None or not self._steps)

    def begin(self, name: str) -> None:
        """Show that a step begins, and that those before are done; a repeated or unknown one belongs to the current."""
        number = self._numbers.get(name, self._current)
        if number <= self._current:
            return
        self._stop_clock()
        self._current, self._figures = number, ""
        if self._screen:
            self._screen.refresh()
        else:
            step = self._steps[number]
            log.info("%d/%d %s: %s", number + 1, len(self._steps), step.name, step.does)

    def show_figures(self, text: str) -> None:
        """Show figures beside the bar."""
        self._figures = text
        if self._screen:
            self._screen.refresh()

    @contextlib.contextmanager
    def bar(self, title: str, total: int, done: int) -> Iterator[Callable[[], None]]:
        """Show a progress bar during the block; yield the function that advances it by one."""
        if not self._screen:
            yield lambda: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TextColumn("left"))
        progress = self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console, auto_refresh=False)
        task = progress.add_task(title, total=total, completed=done)
        screen = self._screen

        def advance() -> None:
            progress.advance(task)
            screen.moved()

        try:
            yield advance
        finally:
            self._bar, self._figures = None, ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Return the lines as they are now."""
        rows = list(range(len(self._steps)))
        height = max(3, self._console.height - BAR_LINES - 1)
        first = max(0, min(self._current - height // 2, len(rows) - height))
        table = Table.grid(padding=(0, 1))
        for justify, least in (("right", 1), ("left", 1), ("left", 7), ("right", 6), ("left", 1)):
            table.add_column(justify=justify, min_width=least, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]
        for number in rows[first : first + height]:
            step, (state, style) = self._steps[number], self._state(number)
            seconds = self._seconds.get(number, 0.0) + (time.monotonic() - self._since) * (state == "running")
            taken = f"{seconds:.0f} s" if state not in ("", "skipped") else ""
            table.add_row(str(number + 1), step.name, state, taken, step.does, style=style)
        if rows:
            yield table
        if self._bar or self._figures:
            yield Text(self._figures and f"\n{self._figures}", overflow="ellipsis", no_wrap=True)
        if self._bar:
            yield self._bar

    def _state(self, number: int) -> tuple[str, str]:
        """Return a step's state and its style."""
        if number == self._current:
            return (self._end, "bold red") if self._end else ("running", "bold")
        if number in self._seconds:
            return "done", "green"
        return ("skipped", "dim") if number < self._current else ("", "dim")

    def _stop_clock(self) -> None:
        now = time.monotonic()
        if self._current >= 0:
            self._seconds[self._current] = self._seconds.get(self._current, 0.0) + now - self._since
        self._since = now


class _Terminal:
    """Redraws a display in place, once a second."""

    def __init__(self, display: Display, console: Console) -> None:
        # Standard output may be the result, piped into another program.
        redirects = sys.stdout.isatty()
        self._live = Live(display, console=console, refresh_per_second=REFRESHES_PER_SECOND, redirect_stdout=redirects)

    def start(self) -> None:
        self._live.start(refresh=True)
        self._live.console.show_cursor(True)  # a killed process could not bring it back

    def stop(self, *, remove: bool) -> None:
        self._live.transient = remove
        self._live.stop()

    def refresh(self) -> None:
        self._live.refresh()

    def moved(self) -> None:
        """Do nothing: the bar is redrawn with everything else."""


class _Notebook:
    """Redraws a display in the output of a notebook's cell, whenever it changes."""

    def __init__(self, display: Display) -> None:
        self._display, self._drawn = display, 0.0

    def start(self) -> None:
        self._handle = importlib.import_module("IPython.display").display(self._display, display_id=True)

    def stop(self, *, remove: bool) -> None:
        self._handle.update(Text("") if remove else self._display)

    def refresh(self) -> None:
        self._handle.update(self._display)
        self._drawn = time.monotonic()

    def moved(self) -> None:
        if time.monotonic() - self._drawn > NOTEBOOK_REFRESH_S:
            self.refresh()


def _make_screen(display: Display, console: Console) -> _Terminal | _Notebook | None:
    """Return what draws a display on a console; None where only lines can be printed."""
    if wants_json():
        return None
    if console.is_jupyter:
        return _Notebook(display)
    return _Terminal(display, console) if console.is_interactive else None


def begin_step(name: str) -> None:
    """Tell the display that is shown, if any, that a step begins."""
    if display := _shown.get():
        display.begin(name)


def show_figures(text: str) -> None:
    """Show figures beside the progress bar, if a display is shown."""
    if display := _shown.get():
        display.show_figures(text)


@contextlib.contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """Show a progress bar during the block, in the display that is shown or alone; yield what advances it by one."""
    shown = _shown.get()
    place = contextlib.nullcontext(shown) if shown else Display(Console(stderr=True))
    with place as display, display.bar(title, total, done) as advance:
        yield advance
