"""What the terminal shows of a running job: exact screens of 80 columns, lines without a terminal, a notebook."""

import io
import logging
import re
import sys
import types
from typing import Any

import pytest
from rich.console import Console

from tasks.core import progress
from tasks.core.progress import Display, Step, begin_step, progress_bar, show_figures

STEPS = (
    Step("start", "import libraries, start a server"),
    Step("read data", "parse the rows and write snapshots"),
    Step("fine-tune", "train; validate after each epoch"),
    Step("register", "register the version, carry the verdict out", ("promote",)),
)


def make_console(width: int = 80, height: int = 25) -> Console:
    return Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False
    )


def picture(display: Display, console: Console) -> list[str]:
    """Return the lines that a display shows now, on a screen of the same size."""
    other = make_console(console.width, console.height)
    other.print(display, end="")
    return [line.rstrip() for line in other.file.getvalue().splitlines()]  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock that tests move."""
    now = types.SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_the_steps_are_shown_as_done_running_and_to_come(clock: Any) -> None:
    console = make_console()
    with Display(console, STEPS) as display:
        assert picture(display, console)[0] == "1 start                    import libraries, start a server"
        begin_step("start")
        clock.seconds = 9.6
        begin_step("read data")
        begin_step("find champion")  # part of the step that runs
        clock.seconds = 10.2
        begin_step("promote")
        clock.seconds = 70.0
        assert picture(display, console) == [
            "1 start     done      10 s import libraries, start a server",
            "2 read data done       1 s parse the rows and write snapshots",
            "3 fine-tune skipped        train; validate after each epoch",
            "4 register  running   60 s register the version, carry the verdict out",
        ]
        begin_step("fine-tune")  # repeated because the champion changed meanwhile
        assert picture(display, console)[3].startswith("4 register  running")
    begin_step("read data")  # no display is shown


def test_the_training_bar_has_figures_and_fits_a_narrow_terminal(clock: Any) -> None:
    for width in (80, 40):
        console = make_console(width)
        with Display(console, STEPS) as display:
            begin_step("fine-tune")
            with progress_bar("fine-tuning", 250, done=100) as advance:
                show_figures("epoch 1 of 2: loss 0.6755, accuracy 0.552, validation MCC 0.489")
                for _ in range(25):
                    advance()
                shown = picture(display, console)
            assert not any("125/250" in line for line in picture(display, console))
        assert all(len(line) <= width for line in shown)
        assert shown[4] == ""
        assert shown[5].startswith("epoch 1 of 2: loss 0.6755, accuracy")
        assert "125/250" in shown[6] or width < 80
        assert shown[6].startswith("fine-tuning")


def test_figures_are_drawn_at_once_and_not_at_the_next_refresh() -> None:
    console = make_console()
    with Display(console, STEPS) as display:
        display.begin("fine-tune")
        display.show_figures("validation MCC 0.489")
        assert "validation MCC 0.489" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_low_terminal_shows_the_steps_around_the_running_one() -> None:
    console = make_console(height=7)
    with Display(console, STEPS) as display:
        begin_step("register")
        assert [line.split()[0] for line in picture(display, console)] == ["2", "3", "4"]


def test_logs_and_prints_stand_above_the_display_and_success_removes_it(capsys: pytest.CaptureFixture[str]) -> None:
    console = make_console()
    with Display(console, STEPS):
        begin_step("read data")
        print("a warning", file=sys.stderr)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    # The line replaces the display, which is drawn again below it.
    assert re.search(r"\x1b\[2K(\x1b\[1A\x1b\[2K){3}a warning\n1 start", written.replace("\r", ""))
    assert written.endswith("\x1b[1A\x1b[2K" * 4)
    assert "\x1b[?25h" in written.partition("1 start")[0] + written.partition("read data")[2]  # the cursor is visible


@pytest.mark.parametrize(("error", "state"), [(ValueError, "failed"), (KeyboardInterrupt, "stopped")])
def test_an_error_leaves_the_steps_on_the_terminal(error: type[BaseException], state: str) -> None:
    console = make_console()

    def run() -> None:
        with Display(console, STEPS):
            begin_step("read data")
            raise error

    with pytest.raises(error):
        run()
    last = console.file.getvalue().splitlines()[-5:-1]  # type: ignore[attr-defined]
    assert [" ".join(line.split()[:4]) for line in last][1] == f"2 read data {state}"


def test_without_a_terminal_each_step_is_a_line_and_there_is_no_bar(caplog: pytest.LogCaptureFixture) -> None:
    console = Console(file=io.StringIO())
    with caplog.at_level(logging.INFO, logger="tasks.steps"), Display(console, STEPS):
        begin_step("start")
        begin_step("fine-tune")
        with progress_bar("fine-tuning", 3) as advance:
            advance()
    assert [record.getMessage() for record in caplog.records] == [
        "1/4 start: import libraries, start a server",
        "3/4 fine-tune: train; validate after each epoch",
    ]
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_json_logs_have_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERDICT_LOG", "json")
    console = make_console()
    with Display(console, STEPS):
        begin_step("read data")
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_a_notebook_redraws_the_output_of_its_cell(monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    drawn: list[Any] = []

    def show(display: Any, *, display_id: bool) -> Any:
        assert display_id
        drawn.append(display)
        return types.SimpleNamespace(update=drawn.append)

    shown = types.SimpleNamespace(display=show)
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    console = Console(file=io.StringIO(), force_jupyter=True)
    with Display(console, STEPS):
        begin_step("fine-tune")
        with progress_bar("fine-tuning", 10) as advance:
            advance()  # too soon to draw again
            clock.seconds = 1.0
            advance()
        assert len(drawn) == 3
        page = drawn[-1]._repr_mimebundle_([], [])["text/html"]
        assert "fine-tune" in page
    assert str(drawn[-1]) == ""
