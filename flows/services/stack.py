"""The services on this machine: Prefect, MLflow, a worker and the inference service, run by honcho over infra/Procfile.

    python -m flows.services.stack up        make up      start all of them and wait until they answer
    python -m flows.services.stack down      make down    stop them
    python -m flows.services.stack logs      make logs    follow what they say

Everything listens on loopback. State lies with the stores, in VERDICT_HOME: SQLite and files, or PostgreSQL and an S3
store where their addresses are set (places.py). honcho ends all processes as soon as one of them ends.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from flows import environment
from flows.services.stack_config import MARKER, StackConfig, load_stack_config
from tasks.core.errors import UsageError, VerdictError
from tasks.core.log_format import wants_json

PROCFILE = Path(__file__).parents[2] / "infra" / "Procfile"
ACCOUNTS_SCRIPT = PROCFILE.parent / "images" / "accounts.py"
STACK_START_TIMEOUT_S = 240  # seconds; 40 to 70 were measured on two cores with new databases
STACK_STOP_TIMEOUT_S = 40  # seconds; honcho itself kills what has not ended after five
LOG_LINES_SHOWN = 15  # last lines of the log


def up() -> None:
    """Start the services where they are not up, wait until they answer, and say where they are.

    Raises:
        WrongUsage: if a port is taken, or what is set contradicts itself.
        VerdictError: if a service does not start.
    """
    places = load_stack_config(os.environ, environment.usable_home())
    folder = _folder(places.home)
    held = _take(folder)
    if held is None:
        print("up already")
        return _show(places)
    try:
        if left := _processes(places.home):
            raise VerdictError(f"{len(left)} processes of killed services are left; end them: make down")
        check_ports(places)
        process = _start(places, folder, held)
    finally:
        os.close(held)  # honcho holds the lock from here on: it is free when honcho has ended, however that was
    try:
        await_services(places, process)
    except BaseException:
        _stop([process.pid], folder)
        raise
    return _show(places)


def down() -> None:
    """Stop the services; no service is no error."""
    folder = _folder(environment.verdict_home())
    running = _processes(environment.verdict_home())
    if not running:
        print("nothing is up")
        return
    _stop(running, folder)
    print("stopped; the stores stay")


def logs() -> NoReturn:
    """Show what the services said and say, until stopped."""
    path = _folder(environment.verdict_home()) / "log"
    if not path.is_file():
        raise VerdictError(f"there is no log in {path.parent}; start the services: make up")
    os.execvp("tail", ["tail", "-n", "200", "-F", str(path)])


def check_ports(places: StackConfig) -> None:
    """Refuse ports that another program listens on.

    Raises:
        WrongUsage: for the first one.
    """
    for variable, port in places.ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise UsageError(f"port {port} is taken ({error.strerror}); name another: {variable}=PORT") from error


def await_services(places: StackConfig, process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Return when Prefect and MLflow answer; given the runner's process, when everything does, accounts made.

    Raises:
        VerdictError: if the runner ends, or one of them takes too long.
    """
    deadline = time.monotonic() + STACK_START_TIMEOUT_S
    wanted = dict(places.health_urls if process else places.wait_urls)
    made = process is None or not places.accounts
    while wanted:
        for name, url in list(wanted.items()):
            if _answers(url, places):
                del wanted[name]
        if not made and "mlflow" not in wanted:
            _make_accounts(places)
            made = True
        if process and process.poll() is not None:
            raise VerdictError(f"a service ended while the others started:\n{_last_lines(places.home)}")
        if time.monotonic() > deadline:
            raise VerdictError(f"{', '.join(wanted)} did not start within {STACK_START_TIMEOUT_S} s; see: make logs")
        time.sleep(0.3)


def _take(folder: Path) -> int | None:
    """Return a descriptor that holds the lock; None: the services hold it."""
    held = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    return held


def _start(places: StackConfig, folder: Path, held: int) -> "subprocess.Popen[bytes]":
    """Start honcho as a session of its own."""
    try:
        import honcho  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise UsageError("honcho is not installed; run: pip install 'verdict-mlops[services]'") from error
    runner = [sys.executable, "-m", "honcho", "--no-colour", "--procfile", str(PROCFILE), "start"]
    if wants_json():
        runner.append("--no-prefix")  # a service's name before each line would be in the way
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            runner,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=PROCFILE.parents[1],
            env=places.environment,
            pass_fds=[held],
            start_new_session=True,
        )
    (folder / "pid").write_text(str(process.pid))
    return process


def _stop(running: Sequence[int], folder: Path) -> None:
    """End the runner, which ends what it started; then runs that are left over, and what a killed runner left."""
    home = str(folder.parent)
    pid = folder / "pid"
    runner = int(pid.read_text()) if pid.is_file() else 0
    _signal([runner] if runner in running else running, signal.SIGTERM)
    deadline = time.monotonic() + STACK_STOP_TIMEOUT_S
    asked = False
    while running := _processes(home):
        if time.monotonic() > deadline:
            raise VerdictError(f"processes {', '.join(map(str, running))} do not end; kill them, then: make down")
        if runner not in running and not asked:
            # A worker leaves its runs behind: each is a session of its own. They go on from their checkpoints later.
            _signal(running, signal.SIGTERM)
            asked = True
        elif time.monotonic() > deadline - STACK_STOP_TIMEOUT_S / 2:
            _signal(running, signal.SIGKILL)
        time.sleep(0.2)
    pid.unlink(missing_ok=True)


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _processes(home: str) -> list[int]:
    """Return the processes of this home's services; each inherited the variable that names it."""
    if not Path("/proc/self/environ").exists():
        pid = Path(home) / "stack" / "pid"
        return [int(pid.read_text())] if pid.is_file() and _is_alive(int(pid.read_text())) else []
    found = []
    marker = f"{MARKER}={home}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or belongs to somebody else
            if marker in path.read_bytes().split(b"\0") and path.parent.name != str(os.getpid()):
                found.append(int(path.parent.name))
    return found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _answers(url: str, places: StackConfig) -> bool:
    """Tell whether a server answers, to whom it will be asked by."""
    try:
        with places.opener.open(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _make_accounts(places: StackConfig) -> None:
    done = subprocess.run([sys.executable, str(ACCOUNTS_SCRIPT)], env=places.accounts, capture_output=True, text=True)
    if done.returncode:
        raise VerdictError(f"MLflow's accounts were not made: {done.stderr.strip()[-300:]}")


def _show(places: StackConfig) -> None:
    for name, url in places.urls.items():
        print(f"{name:<10} {url}")
    print("use them:")
    for variable, value in places.exports.items():
        print(f"  export {variable}={value}")
    print("  verdict deploy    # schedules; then: verdict doctor")


def _folder(home: str) -> Path:
    folder = Path(home) / "stack"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _last_lines(home: str) -> str:
    lines = (_folder(home) / "log").read_text(errors="replace").splitlines()
    return "\n".join(lines[-LOG_LINES_SHOWN:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands; return the exit code."""
    environment.set_process_defaults()
    commands = {"up": up, "down": down, "logs": logs, "await": _await}
    [name] = arguments or sys.argv[1:] or [""]
    try:
        if name not in commands:
            raise UsageError(f"{name!r} is no command; expected up, down or logs")
        commands[name]()
    except VerdictError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _await() -> None:
    await_services(load_stack_config(os.environ, environment.usable_home()))


if __name__ == "__main__":
    sys.exit(main())
