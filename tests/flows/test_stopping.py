"""SIGINT, SIGTERM and SIGKILL: a command ends within five seconds, in one line, and leaves no process."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MESSAGE = "stopped; run the same command again\n"
DEAF = """
import signal, threading, time
from flows.cli import stopping
stopping.STOP_LIMIT_S = 0.2
stopping.end_on_signals()
signal.signal(signal.SIGINT, lambda *_: None)
signal.signal(signal.SIGTERM, lambda *_: None)
print("ready", flush=True)
while True:
    time.sleep(60)
"""
# The program `verdict status`, without a command: what each test adds runs in its place.
PROGRAM = """
import atexit, os, signal, sys, time, typer.main, weakref
from flows.cli import app, stopping
stopping.STOP_LIMIT_S = 0.5

def send(number):
    os.kill(os.getpid(), number)
    for _ in range(100):  # Python calls the handler here
        pass

class Command:
    commands = {}
    def main(self, **_):
        return work()

typer.main.get_command = lambda _: Command()
sys.argv = ["verdict", "status"]
"""
CHILDREN = (
    "import sys, time\n"
    "from flows.services.embedded_prefect import EmbeddedServer\n"
    "from tasks.export.subprocess_call import start_forkserver\n"
    "EmbeddedServer(sys.argv[1]); start_forkserver(); print('ready', flush=True); time.sleep(60)\n"
)
ORPHAN = "import os, sys; from tasks.core.child_process import die_with; die_with(int(sys.argv[1])); print('alive')"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")


def processes_of(home: Path) -> list[str]:
    """Return the command line of each process that a command of this home started."""
    marker, found = f"VERDICT_HOME={home}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().decode())
        except OSError:  # it ended meanwhile
            continue
    return found


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_does_not_react_ends_all_the_same(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DEAF], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=10) == ("", MESSAGE)
    assert process.returncode == 130


def run_program(work: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{PROGRAM}{work}\napp.main()"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_error_that_a_library_makes_of_a_signal_is_no_failure(number: signal.Signals) -> None:
    work = (
        f"def work():\n    try:\n        send({number:d})\n"
        "    except KeyboardInterrupt as error:\n        raise RuntimeError('connection lost') from error"
    )
    assert run_program(work) == (130, "", MESSAGE)


@pytest.mark.parametrize(
    "work",
    [
        "def work(): send(2)\nreport = stopping.report\nstopping.report = lambda: [send(2), send(15), report()][2]",
        "app.completion.prepare = lambda: send(15)",
        "class Thing: pass\ndef work():\n    thing = Thing()\n    held = weakref.ref(thing, lambda _: send(2))\n"
        "    del thing\n    time.sleep(60)",
    ],
    ids=["while it reports", "before it begins", "within a finaliser"],
)
def test_a_signal_is_one_line_whenever_it_comes(work: str) -> None:
    assert run_program(work) == (130, "", MESSAGE)


def test_later_signals_do_not_break_off_what_the_first_one_ends() -> None:
    work = (
        "def work():\n    try:\n        send(2)\n    finally:\n        send(15)\n        send(2)\n"
        "        print('ended in good order')"
    )
    assert run_program(work) == (130, "ended in good order\n", MESSAGE)


def test_a_signal_that_a_finaliser_swallowed_is_raised_by_the_next_one() -> None:
    work = (
        "class Thing: pass\ndef work():\n    thing = Thing()\n    held = weakref.ref(thing, lambda _: send(2))\n"
        "    del thing\n    try:\n        send(2)\n    finally:\n        print('raised')"
    )
    assert run_program(work) == (130, "raised\n", MESSAGE)


@pytest.mark.parametrize("when", ["app.gc.freeze = lambda: send(2)", "atexit.register(send, 2)"])
def test_a_signal_after_the_work_changes_nothing(when: str) -> None:
    assert run_program(f"def work(): print('done')\n{when}") == (0, "done\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_commands_are_imported_is_one_line(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(
        f"import os\nos.kill(os.getpid(), {number:d})\nfor _ in range(100): pass\nprint('imported')"
    )
    module, name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["verdict"].split(":")
    done = subprocess.run(
        [sys.executable, "-c", f"from {module} import {name}\n{name}()"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", MESSAGE)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_that_meets_the_execution_of_text_leaves_the_exit_code(name: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import os, signal, sys\nfrom flows.cli import stopping\nstopping.end_on_signals()\n"
        f"text = 'os.kill(os.getpid(), signal.{name})\\nfor _ in range(10**6): pass'\n"
        "try:\n    exec(text)\nexcept KeyboardInterrupt:\n    sys.exit(stopping.report())\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-m", "program"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", MESSAGE)


def test_an_error_that_a_thread_found_ends_the_command_with_its_line() -> None:
    code = DEAF.replace('print("ready", flush=True)', "stopping.fail('Prefect is away; start it')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=10)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: Prefect is away; start it\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_ends_with_its_server_in_one_line(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli.app", "retrain"],
        cwd=ROOT,
        env=os.environ | {"VERDICT_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        # More, where this process gets the CPU late.
        wait_until(lambda: len(processes_of(tmp_path)) >= 2, 60)
        os.killpg(process.pid, number)
        started = time.monotonic()
        out, err = process.communicate(timeout=30)
        assert time.monotonic() - started < 10
    assert (out, err) == ("", f"1/12 start: import libraries, start Prefect's server\n{MESSAGE[:-1]} to resume\n")
    assert process.returncode == 130
    wait_until(lambda: processes_of(tmp_path) == [], 30)


def test_servers_of_a_killed_process_end(tmp_path: Path) -> None:
    environment = os.environ | {"VERDICT_HOME": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", CHILDREN, str(tmp_path)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(processes_of(tmp_path)) >= 3
        process.kill()
    wait_until(lambda: processes_of(tmp_path) == [], 30)


def test_a_child_whose_parent_ended_before_it_began_exits() -> None:
    done = subprocess.run([sys.executable, "-c", ORPHAN, "1"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
