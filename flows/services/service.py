"""Runs one service of infra/Procfile: what Supervisor starts, and starts again, for `make up`.

    python -m flows.services.service NAME

A service that was killed may have left processes that hold its port; they are ended first. Worker and inference service
wait for the servers that they ask.
"""

import os
import re
import sys
import time
import urllib.error
from pathlib import Path

from flows.services.stack_config import StackConfig, load_stack_config
from flows.services.stack_processes import end_processes, find_processes, in_session
from tasks.core.errors import VerdictError

PROCFILE = Path(__file__).parents[2] / "infra" / "Procfile"
SERVICE = "STACK_SERVICE"  # in the environment of every process of a service: its name
AFTER_SERVERS = ("worker", "inference")
STACK_START_TIMEOUT_S = 240  # measured: 40 to 70 s on two cores with new databases
LEFTOVER_TIMEOUT_S = 5  # from SIGTERM to SIGKILL


def read_commands() -> dict[str, str]:
    """Return the shell command of each service, in the order in which they start."""
    return dict(re.findall(r"^([a-z]+): (.*)$", PROCFILE.read_text(encoding="utf-8"), re.MULTILINE))


def answers(url: str, config: StackConfig) -> bool:
    """Return whether a server answers with the worker's credentials."""
    try:
        with config.opener.open(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def run(name: str, command: str, home: str) -> None:
    """Replace this process by a service.

    Raises:
        VerdictError: if the servers that it asks do not answer in time.
    """
    end_leftovers(name, home)
    if name in AFTER_SERVERS:
        _await_servers(load_stack_config(os.environ, home))
    os.execvpe("sh", ["sh", "-c", command], os.environ | {SERVICE: name})


def end_leftovers(name: str, home: str) -> None:
    """End what a killed process of a service left; flow runs, in other sessions, report to Prefect themselves."""
    held = in_session(find_processes(home), os.getsid(0))
    end_processes([each for each in held if each.info["environ"].get(SERVICE) == name], LEFTOVER_TIMEOUT_S)


def _await_servers(config: StackConfig) -> None:
    deadline = time.monotonic() + STACK_START_TIMEOUT_S
    while waiting := [name for name, url in config.wait_urls.items() if not answers(url, config)]:
        if time.monotonic() > deadline:
            raise VerdictError(f"{', '.join(waiting)} did not answer within {STACK_START_TIMEOUT_S} s")
        time.sleep(0.3)


def main() -> int:
    """Run the service that the argument names; return the exit code if it does not start."""
    [name] = sys.argv[1:]
    try:
        run(name, read_commands()[name], os.environ["VERDICT_HOME"])
    except VerdictError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
