"""Work in a process of its own: whatever happens there, one line says so here."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.core.errors import UsageError, VerdictError
from tasks.export.subprocess_call import run_in_subprocess

ROOT = Path(__file__).parents[2]


def answer(value: int, *, plus: int = 0) -> tuple[int, int]:
    return os.getpid(), value + plus


def refuse() -> None:
    raise UsageError("setting x is 3; expected 4")


def fail() -> None:
    raise ValueError("no such operator\nand a second line")


def shout() -> None:
    print("the exporter talks")
    sys.stdout.flush()


def wait_long(told: str) -> None:
    Path(told).write_text(str(os.getpid()))
    time.sleep(120)


def test_the_result_comes_from_another_process() -> None:
    process, value = run_in_subprocess("the sum", 60, answer, 3, plus=4)
    assert process != os.getpid()
    assert value == 7


def test_a_refusal_stays_what_it_is() -> None:
    with pytest.raises(UsageError, match=r"^setting x is 3; expected 4$"):
        run_in_subprocess("the work", 60, refuse)


def test_another_error_is_one_line_with_its_trace_as_a_note() -> None:
    with pytest.raises(VerdictError) as caught:
        run_in_subprocess("the work", 60, fail)
    assert str(caught.value) == "the work failed: ValueError: no such operator"
    assert "and a second line" in caught.value.__notes__[0]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_process_that_a_signal_ends_is_told(name: str) -> None:
    with pytest.raises(VerdictError, match=f"the work was ended by {name}"):
        run_in_subprocess("the work", 60, signal.raise_signal, getattr(signal, name))


def test_a_process_that_leaves_without_an_answer_is_told() -> None:
    with pytest.raises(VerdictError, match="the work ended with exit code 7 before it could say why"):
        run_in_subprocess("the work", 60, os._exit, 7)


def test_a_process_over_the_limit_is_ended(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(VerdictError, match=r"the work did not end in 0\.5 s and was stopped"):
        run_in_subprocess("the work", 0.5, wait_long, str(tmp_path / "pid"))
    assert time.monotonic() - started < 60
    assert multiprocessing.active_children() == []


def test_what_is_printed_there_stays_off_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    run_in_subprocess("the work", 60, shout)
    assert "talks" not in capfd.readouterr().out


def test_the_process_ends_with_the_one_that_waits(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    script = (
        "import sys; sys.path[:0] = ['tests/support', '.']\n"
        "if __name__ == '__main__':\n"
        "    import tasks.export.subprocess_call, test_apart\n"
        "    tasks.export.subprocess_call.PRELOADED = ['tasks.core.errors']\n"
        f"    tasks.export.subprocess_call.run_apart('the work', 60, test_apart.wait_long, {str(told)!r})\n"
    )
    file = tmp_path / "script.py"
    file.write_text(script)
    with subprocess.Popen([sys.executable, str(file)], cwd=ROOT) as process:
        deadline = time.monotonic() + 60
        while not (told.is_file() and told.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    child = Path("/proc", told.read_text())
    while child.exists() and "State:\tZ" not in (child / "status").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or "State:\tZ" in (child / "status").read_text()
