"""Runs Prefect, MLflow, a worker and the inference service on this machine: honcho over infra/Procfile.

    python -m flows.services.stack up        make up      start all of them and wait until they answer
    python -m flows.services.stack down      make down    stop them
    python -m flows.services.stack logs      make logs    follow their log

Everything listens on loopback. State is kept in VERDICT_HOME as SQLite and files, or in PostgreSQL and an S3 store if
their addresses are set (stack_config.py). honcho stops all processes as soon as one of them ends.
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
from tasks.registry.local_database import relocate

PROCFILE = Path(__file__).parents[2] / "infra" / "Procfile"
ACCOUNTS_SCRIPT = PROCFILE.parent / "images" / "accounts.py"
STACK_START_TIMEOUT_S = 240  # measured: 40 to 70 s on two cores with new databases
STACK_STOP_TIMEOUT_S = 40  # honcho itself kills after 5 s
LOG_LINES_SHOWN = 15  # of the end of the log, when a service fails to start


def up() -> None:
    """Start the services unless they are up, wait until they answer, and print their addresses.

    Raises:
        UsageError: if a port is taken, or the environment is contradictory.
        VerdictError: if a service does not start.
    """
    config = load_stack_config(os.environ, environment.usable_home())
    relocate(Path(config.home, "mlflow.db"), Path(config.home, "artifacts"))
    folder = _folder(config.home)
    lock = _try_lock(folder)
    if lock is None:
        print("up already")
        return _show(config)
    try:
        if left := _processes(config.home):
            raise VerdictError(f"{len(left)} processes of killed services are left; end them: make down")
        check_ports(config)
        process = _start(config, folder, lock)
    finally:
        os.close(lock)  # honcho inherited it and holds it until it ends, however it ends
    try:
        await_services(config, process)
    except BaseException:
        _stop([process.pid], folder)
        raise
    return _show(config)


def down() -> None:
    """Stop the services, if they are up."""
    folder = _folder(environment.verdict_home())
    running = _processes(environment.verdict_home())
    if not running:
        print("nothing is up")
        return
    _stop(running, folder)
    print("stopped; the stores stay")


def logs() -> NoReturn:
    """Follow the services' log until interrupted."""
    path = _folder(environment.verdict_home()) / "log"
    if not path.is_file():
        raise VerdictError(f"there is no log in {path.parent}; start the services: make up")
    os.execvp("tail", ["tail", "-n", "200", "-F", str(path)])


def check_ports(config: StackConfig) -> None:
    """Check that no other program listens on our ports.

    Raises:
        UsageError: for the first one that is taken.
    """
    for variable, port in config.ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise UsageError(f"port {port} is taken ({error.strerror}); name another: {variable}=PORT") from error


def await_services(config: StackConfig, process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Wait until Prefect and MLflow answer; given honcho's process, until all services do and accounts exist.

    Raises:
        VerdictError: if honcho exits, or a service does not answer in time.
    """
    deadline = time.monotonic() + STACK_START_TIMEOUT_S
    waiting = dict(config.health_urls if process else config.wait_urls)
    accounts_exist = process is None or not config.accounts
    while waiting:
        for name, url in list(waiting.items()):
            if _answers(url, config):
                del waiting[name]
        if not accounts_exist and "mlflow" not in waiting:
            _make_accounts(config)
            accounts_exist = True
        if process and process.poll() is not None:
            raise VerdictError(f"a service ended while the others started:\n{_last_lines(config.home)}")
        if time.monotonic() > deadline:
            raise VerdictError(f"{', '.join(waiting)} did not start within {STACK_START_TIMEOUT_S} s; see: make logs")
        time.sleep(0.3)


def _try_lock(folder: Path) -> int | None:
    """Return a file descriptor that holds the lock; None if running services hold it."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _start(config: StackConfig, folder: Path, lock: int) -> "subprocess.Popen[bytes]":
    """Start honcho in a new session."""
    try:
        import honcho  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise UsageError("honcho is not installed; run: pip install 'verdict-mlops[services]'") from error
    runner = [sys.executable, "-m", "honcho", "--no-colour", "--procfile", str(PROCFILE), "start"]
    if wants_json():
        runner.append("--no-prefix")  # a prefix would break the JSON lines
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            runner,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=PROCFILE.parents[1],
            env=config.environment,
            pass_fds=[lock],
            start_new_session=True,
        )
    (folder / "pid").write_text(str(process.pid))
    return process


def _stop(running: Sequence[int], folder: Path) -> None:
    """Stop honcho, which stops its processes; then flow runs that are left, and what a killed honcho left behind."""
    home = str(folder.parent)
    pid = folder / "pid"
    honcho = int(pid.read_text()) if pid.is_file() else 0
    _signal([honcho] if honcho in running else running, signal.SIGTERM)
    deadline = time.monotonic() + STACK_STOP_TIMEOUT_S
    terminated = False
    while running := _processes(home):
        if time.monotonic() > deadline:
            raise VerdictError(f"processes {', '.join(map(str, running))} do not stop; kill them, then: make down")
        if honcho not in running and not terminated:
            # A worker's flow runs outlive it, each in its own session. They resume from their checkpoints later.
            _signal(running, signal.SIGTERM)
            terminated = True
        elif time.monotonic() > deadline - STACK_STOP_TIMEOUT_S / 2:
            _signal(running, signal.SIGKILL)
        time.sleep(0.2)
    pid.unlink(missing_ok=True)


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _processes(home: str) -> list[int]:
    """Return the process ids of this home's services; each inherited the variable MARKER."""
    if not Path("/proc/self/environ").exists():
        pid = Path(home) / "stack" / "pid"
        return [int(pid.read_text())] if pid.is_file() and _is_alive(int(pid.read_text())) else []
    found = []
    marker = f"{MARKER}={home}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it exited meanwhile, or belongs to another user
            if marker in path.read_bytes().split(b"\0") and path.parent.name != str(os.getpid()):
                found.append(int(path.parent.name))
    return found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _answers(url: str, config: StackConfig) -> bool:
    """Return whether a server answers with the worker's credentials."""
    try:
        with config.opener.open(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _make_accounts(config: StackConfig) -> None:
    done = subprocess.run([sys.executable, str(ACCOUNTS_SCRIPT)], env=config.accounts, capture_output=True, text=True)
    if done.returncode:
        raise VerdictError(f"MLflow's accounts were not created: {done.stderr.strip()[-300:]}")


def _show(config: StackConfig) -> None:
    for name, url in config.urls.items():
        print(f"{name:<10} {url}")
    print("use them:")
    for variable, value in config.exports.items():
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
    """Run a command; return the exit code."""
    environment.set_process_defaults()
    commands = {"up": up, "down": down, "logs": logs, "await": _await}
    [name] = arguments or sys.argv[1:] or [""]
    try:
        if name not in commands:
            raise UsageError(f"{name!r} is not a command; expected up, down or logs")
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
