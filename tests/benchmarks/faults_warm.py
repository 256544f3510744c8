"""A process that imports what the commands need, once, and forks one process for each command that may be killed.

A command is a line of JSON: the arguments of `verdict`, and the file of its messages. The
replies are the process id of the child and, when it has ended, its exit code. Without this, most of a command's seconds
are imports, in which a kill can damage nothing.
"""

import importlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
MODULES = (
    "flows.jobs.retrain",
    "flows.jobs.score",
    "flows.jobs.unchanged",
    "flows.commands.compare",
    "flows.commands.predict",
    "flows.commands.review",
    "flows.services.embedded_prefect",
    "flows.cli.show_review",
    "flows.cli.show_run",
    "tasks.registry.retention",
    "great_expectations.expectations",
    "matplotlib.pyplot",
    "mlflow.pyfunc",
    "onnxruntime",
    "transformers",
)


class Command(NamedTuple):
    """A command that was started."""

    pid: int
    wait: Callable[[float], int | None]
    """Return its exit code, negative for a signal; None if it is still running after so many seconds."""


class WarmProcess:
    """The process as the benchmark uses it; one command at a time."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, **environment},
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid
        assert self._read(300) == "ready"

    def start(self, arguments: list[str]) -> Command:
        """Start a command.

        Args:
            arguments: of `verdict`, or "prepare", or "state" and a file for what the stores hold.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"arguments": arguments, "log": str(self.log)}).encode() + b"\n")

        def wait(seconds: float) -> int | None:
            reply = self._read(seconds)
            return None if reply is None else int(reply)

        reply = self._read(300)
        assert reply is not None
        return Command(int(reply), wait)

    def _read(self, seconds: float) -> str | None:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        return self._process.stdout.readline().decode().strip()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def main() -> None:
    from flows import environment

    environment.set_process_defaults(environment.RETRY_DEFAULTS)
    for module in MODULES:
        importlib.import_module(module)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            run(request["arguments"], request["log"])
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run(arguments: list[str], log: str) -> None:
    """Run a command in a forked process, and end it."""
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    import faults_home

    if arguments[0] == "state":
        Path(arguments[1]).write_text(json.dumps(faults_home.read_state()))
        os._exit(0)
    if arguments[0] == "prepare":
        faults_home.prepare_store()
        os._exit(0)
    from flows.cli import app

    sys.argv = ["verdict", *arguments]
    app.main()


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    main()
