"""Runs Prefect, MLflow, a worker and the inference service on this machine: Supervisor over infra/Procfile.

    python -m flows.services.stack up        make up      start all of them and wait until they answer
    python -m flows.services.stack down      make down    stop them
    python -m flows.services.stack logs      make logs    follow their logs

Everything listens on loopback. State is kept in VERDICT_HOME as SQLite and files, or in PostgreSQL and an S3 store if
their addresses are set (stack_config.py). A service that ends is started again (supervision.py).
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from filelock import FileLock

from flows import environment
from flows.services import supervision
from flows.services.service import PROCFILE, STACK_START_TIMEOUT_S, answers, read_commands
from flows.services.stack_config import StackConfig, load_stack_config, write_auth_config
from flows.services.stack_processes import end_processes, find_processes
from tasks.core.errors import UsageError, VerdictError
from tasks.registry.local_database import relocate

ACCOUNTS_SCRIPT = PROCFILE.parent / "images" / "accounts.py"
STACK_STOP_TIMEOUT_S = 90  # Supervisor stops one service after the other, most within 2 s
LOG_LINES_SHOWN = 15  # of the end of the log, when a service fails to start


def up() -> None:
    """Start the services that do not run, wait until all answer, and print their addresses.

    Raises:
        UsageError: if a port is taken, or the environment is contradictory.
        VerdictError: if a service does not start (the others stay up), or the services are stopping.
    """
    config = load_stack_config(os.environ, environment.usable_home())
    folder = _folder(config.home)
    process = None
    with FileLock(folder / "lock"):  # a second `make up` waits for the first
        states = supervision.read_states(folder)
        _refuse_stopping(states)
        if states is None:
            process = _start(config, folder)
            print(f"starting {', '.join(config.health_urls)}; their logs: make logs", flush=True)
        else:
            print("up already", flush=True)
            for name in supervision.start_again(folder):
                print(f"starting {name} again", flush=True)
        try:
            await_services(config, process)
        except KeyboardInterrupt:
            if process:
                _stop(config.home)
            raise
    _show(config)


def down() -> None:
    """Stop the services, if they are up."""
    home = environment.verdict_home()
    if not find_processes(home):
        print("nothing is up")
        return
    _stop(home)
    print("stopped; the stores stay")


def logs() -> NoReturn:
    """Follow the services' logs until interrupted."""
    folder = _folder(environment.verdict_home())
    paths = sorted(map(str, folder.glob("*.log")))
    if not paths:
        raise VerdictError(f"there is no log in {folder}; start the services: make up")
    os.execvp("tail", ["tail", "-n", "50", "-F", *paths])


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
    """Wait until all services answer, and print a line for each that does; create MLflow's accounts on the way.

    Args:
        config: of the services.
        process: Supervisor's, if it was just started.

    Raises:
        VerdictError: if Supervisor exits or gave a service up, or one does not answer in time.
    """
    started = time.monotonic()
    waiting = dict(config.health_urls)
    while waiting:
        for name, url in list(waiting.items()):
            if answers(url, config):
                if name == "mlflow" and config.accounts:
                    _make_accounts(config)
                del waiting[name]
                seconds = time.monotonic() - started
                print(f"{name:<10} ready in {seconds:>3.0f} s   {config.urls.get(name, url)}", flush=True)
        _check_progress(config, waiting, process)
        if time.monotonic() > started + STACK_START_TIMEOUT_S:
            silent = ", ".join(waiting)
            raise VerdictError(
                f"{silent} did not answer within {STACK_START_TIMEOUT_S} s and may still be starting: "
                "make up waits again, make logs shows what they do, make down stops them"
            )
        time.sleep(0.3)


def _check_progress(config: StackConfig, waiting: dict[str, str], process: "subprocess.Popen[bytes] | None") -> None:
    """Raise VerdictError if Supervisor exited or is stopping, or gave one of these services up."""
    folder = _folder(config.home)
    if process and process.poll() is not None:
        raise VerdictError(f"Supervisor ended:\n{_last_lines(folder / 'supervisor.log')}")
    states = supervision.read_states(folder) or {}
    _refuse_stopping(states)
    for name in waiting:
        if states.get(name) == "gave up":
            raise VerdictError(
                f"{name} ended {supervision.START_RETRIES + 1} times as it started; the others stay up. "
                f"Mend it, then: make up. Its log ends with:\n{_last_lines(folder / f'{name}.log')}"
            )


def _refuse_stopping(states: Mapping[str, supervision.ServiceState] | None) -> None:
    if supervision.STOPPING in (states or {}).values():
        raise VerdictError(supervision.STOPPING_MESSAGE)


def _start(config: StackConfig, folder: Path) -> "subprocess.Popen[bytes]":
    """Start Supervisor where nothing of an earlier one is left and all ports are free."""
    if left := find_processes(config.home):
        raise VerdictError(f"{len(left)} processes of killed services are left; end them: make down")
    check_ports(config)
    relocate(Path(config.home, "mlflow.db"), Path(config.home, "artifacts"))
    write_auth_config(config)
    commands = {name: [sys.executable, "-m", "flows.services.service", name] for name in read_commands()}
    return supervision.start(folder, commands, config.environment)


def _stop(home: str) -> None:
    """Stop Supervisor, which stops its processes; then what a killed one left behind."""
    found = find_processes(home)
    end_processes([each for each in found if "supervisor.supervisord" in each.info["cmdline"]], STACK_STOP_TIMEOUT_S)
    end_processes(find_processes(home), supervision.STOP_TIMEOUT_S)


def _make_accounts(config: StackConfig) -> None:
    done = subprocess.run([sys.executable, str(ACCOUNTS_SCRIPT)], env=config.accounts, capture_output=True, text=True)
    if done.returncode:
        raise VerdictError(f"MLflow's accounts were not created: {done.stderr.strip()[-300:]}")


def _show(config: StackConfig) -> None:
    print("use them:")
    for variable, value in config.exports.items():
        print(f"  export {variable}={value}")
    print("  verdict deploy --data DIR    # schedules; then: verdict doctor")


def _folder(home: str) -> Path:
    folder = Path(home) / "stack"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _last_lines(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return "\n".join(lines[-LOG_LINES_SHOWN:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code."""
    environment.set_process_defaults()
    commands = {"up": up, "down": down, "logs": logs}
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


if __name__ == "__main__":
    sys.exit(main())
