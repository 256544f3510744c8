"""Work in a subprocess: every failure there is one line here."""

import array
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import termios
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tasks.core.errors import UsageError, VerdictError
from tasks.export.subprocess_call import ProcessEnded, run_in_subprocess

ROOT = Path(__file__).parents[2]
# What the server preloads, until the file "interrupted" is there, and a program that is interrupted meanwhile.
SLOW_PRELOAD = """
import pathlib, time
pathlib.Path("preloading").touch()
while not pathlib.Path("interrupted").exists():
    time.sleep(0.05)
"""
INTERRUPTED = """
import signal, time
from tasks.export import subprocess_call
if __name__ == "__main__":
    subprocess_call.PRELOADED_MODULES = ["slow_preload"]
    subprocess_call.start_forkserver()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print(subprocess_call.run_in_subprocess("the mask", 60, signal.pthread_sigmask, signal.SIG_BLOCK, []))
        print(subprocess_call.run_in_subprocess("the handler", 60, signal.getsignal, signal.SIGINT))
        print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""


def answer(value: int, *, plus: int = 0) -> tuple[int, int]:
    return os.getpid(), value + plus


def refuse() -> None:
    raise UsageError("setting x is 3; expected 4")


def fail() -> None:
    raise ValueError("no such operator\nand a second line")


def shout() -> None:
    print("the exporter talks")
    sys.stdout.flush()


def answer_at_length() -> bytes:
    return bytes(10_000_000)


def wait_long(pid_file: str) -> None:
    Path(pid_file).write_text(str(os.getpid()))
    time.sleep(120)


def runs(process: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:  # it ended, perhaps while it was read
        return False


def test_the_result_comes_from_another_process() -> None:
    process, value = run_in_subprocess("the sum", 60, answer, 3, plus=4)
    assert process != os.getpid()
    assert value == 7


def test_a_verdict_error_is_raised_unchanged() -> None:
    with pytest.raises(UsageError, match=r"^setting x is 3; expected 4$"):
        run_in_subprocess("the work", 60, refuse)


def test_another_error_is_one_line_with_its_trace_as_a_note() -> None:
    with pytest.raises(VerdictError) as caught:
        run_in_subprocess("the work", 60, fail)
    assert str(caught.value) == "the work failed: ValueError: no such operator"
    assert "and a second line" in caught.value.__notes__[0]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_subprocess_ended_by_a_signal_is_an_error(name: str) -> None:
    with pytest.raises(VerdictError, match=f"the work was ended by {name}"):
        run_in_subprocess("the work", 60, signal.raise_signal, getattr(signal, name))


def test_a_subprocess_killed_while_it_sends_its_result_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    poll, waiting = Connection.poll, array.array("i", [0])

    def kill_within_the_message(line: Connection, seconds: float) -> bool:
        assert poll(line, seconds)
        while waiting[0] <= 4:  # bytes of the message's length, which is sent first
            fcntl.ioctl(line.fileno(), termios.FIONREAD, waiting)
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        return True

    monkeypatch.setattr(Connection, "poll", kill_within_the_message)
    with pytest.raises(ProcessEnded, match=r"^the work was ended by SIGKILL"):
        run_in_subprocess("the work", 60, answer_at_length)


@pytest.mark.parametrize("guard", ["if True:", 'if __name__ == "__main__":'])
def test_a_script_without_a_main_guard_is_one_line(guard: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    call = "print(run_in_subprocess('the work', 60, abs, -3))"
    script.write_text(f"from tasks.export.subprocess_call import run_in_subprocess\n{guard}\n    {call}\n")
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environ, capture_output=True, text=True, check=False)
    if guard == "if True:":
        assert done.returncode == 1
        assert (
            "the work did not start (see the traceback above); a script has to be a file, and call this under if"
            in (done.stderr)
        )
    else:
        assert (done.returncode, done.stdout) == (0, "3\n")


def test_a_subprocess_that_exits_without_a_result_is_an_error() -> None:
    with pytest.raises(VerdictError, match="the work ended with exit code 7 without an error message"):
        run_in_subprocess("the work", 60, os._exit, 7)


def test_a_subprocess_over_the_time_limit_is_killed(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(VerdictError, match=r"the work did not end in 0\.5 s and was stopped"):
        run_in_subprocess("the work", 0.5, wait_long, str(tmp_path / "pid"))
    assert time.monotonic() - started < 60
    assert multiprocessing.active_children() == []


def test_ctrl_c_while_the_server_imports_prints_nothing_and_leaves_it_usable(tmp_path: Path) -> None:
    (tmp_path / "slow_preload.py").write_text(SLOW_PRELOAD)
    (tmp_path / "program.py").write_text(INTERRUPTED)
    environ = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, env=environ, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 60
        while not (tmp_path / "preloading").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        (tmp_path / "interrupted").touch()
        assert process.communicate(timeout=60) == (f"set()\n{signal.SIG_IGN}\nset()\n", "")


def test_prints_of_the_subprocess_stay_off_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    run_in_subprocess("the work", 60, shout)
    assert "talks" not in capfd.readouterr().out


def test_the_subprocess_ends_with_its_parent(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = (
        "import sys; sys.path[:0] = ['tests/export', 'tests/support', '.']\n"
        "if __name__ == '__main__':\n"
        "    from tasks.export import subprocess_call\n"
        "    from test_subprocess_call import wait_long\n"
        "    subprocess_call.PRELOADED_MODULES = ['tasks.core.errors']\n"
        f"    subprocess_call.run_in_subprocess('the work', 60, wait_long, {str(pid_file)!r})\n"
    )
    file = tmp_path / "script.py"
    file.write_text(script)
    with subprocess.Popen([sys.executable, str(file)], cwd=ROOT) as process:
        deadline = time.monotonic() + 60
        while not (pid_file.is_file() and pid_file.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    child = int(pid_file.read_text())
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(child)
