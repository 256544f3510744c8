"""An embedded Prefect server for runs without a PREFECT_API_URL.

It starts in a child process while this one imports its libraries (each takes ten seconds or more), which Prefect's own
ephemeral server cannot do. Its database lies with the stores, it listens on loopback only, and the kernel kills it when
the process that started it ends.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from tasks.core.database_templates import copy_template
from tasks.core.errors import MEMORY_MESSAGES, OUT_OF_MEMORY, VerdictError
from tasks.core.hidden_addresses import check_address

# Measured on two cores with a new database: 13 s; several that start at once wait for each other. One that fails exits
# at once.
SERVER_START_TIMEOUT_S = 900
SERVER_STOP_TIMEOUT_S = 3  # measured: 0.3 s; while it starts it may take long
MAX_LOG_BYTES = 1_000_000  # beyond which a new log is begun, and the one before the old one is deleted
END_CHECK_SECONDS = 1.0  # between checks that it still runs
DATABASE_VARIABLE = "PREFECT_API_DATABASE_CONNECTION_URL"
SERVER_SETTINGS = {
    "PREFECT__SERVER_FINAL": "1",  # as `prefect server start` sets it
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_API_DATABASE_MIGRATE_ON_START": "false",  # prefect_process.py has done it
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",  # those that ended 90 days ago; by default events
    # Types of blocks serve people who configure something in Prefect's page, which this server does not have.
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
}


class EmbeddedServer:
    """A Prefect server in a child process; `api_url` answers once `wait` has returned."""

    def __init__(self, folder: str) -> None:
        self._log = Path(folder) / "prefect-server.log"
        self.results = Path(folder) / "results"
        Path(folder).mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
        database = Path(folder) / "prefect.db"
        if DATABASE_VARIABLE not in inherited:
            copy_template("prefect", database)
        defaults = SERVER_SETTINGS | {DATABASE_VARIABLE: f"sqlite+aiosqlite:///{database}"}
        _begin_log(self._log)
        # Bound here, so that the port is the child's from the start and no other program can answer in its place.
        with self._log.open("ab") as log, socket.socket() as bound:  # servers of one home write to it at the same time
            bound.bind(("127.0.0.1", 0))
            self.api_url = f"http://127.0.0.1:{bound.getsockname()[1]}/api"
            self._log_begin = log.tell()
            arguments = [str(os.getpid()), str(bound.fileno()), f"{database}.lock"]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.services.prefect_process", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=defaults | inherited,
                pass_fds=[bound.fileno()],
                process_group=0,  # Ctrl-C stops this process, which reports the end of its flow to the server
            )

    def wait(self) -> None:
        """Wait until the server answers.

        Raises:
            VerdictError: if it exits, or does not answer within SERVER_START_TIMEOUT_S.
        """
        deadline = time.monotonic() + SERVER_START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"{self.api_url}/health", timeout=5).close()
                if self._process.poll() is None:  # else another program has its port by now
                    return
            time.sleep(0.1)
        raise VerdictError(
            self.describe_end()
            or f"the embedded Prefect server did not start in {SERVER_START_TIMEOUT_S} s; see {self._log}"
        )

    def describe_end(self) -> str:
        """Return how the server ended by itself; empty while it runs."""
        code = self._process.poll()
        if code is None:
            return ""
        said = ""
        with contextlib.suppress(FileNotFoundError):  # another command begins a new one
            said = self._log.read_bytes()[self._log_begin :].decode(errors="replace")
        if code == -signal.SIGKILL or any(words in said for words in ("MemoryError", *MEMORY_MESSAGES)):
            return f"the embedded Prefect server ended: {OUT_OF_MEMORY}"
        return f"the embedded Prefect server ended with exit code {code}; see {self._log}, or set PREFECT_API_URL"

    def stop(self) -> None:
        """Stop the server; kill it after SERVER_STOP_TIMEOUT_S, which its database survives."""
        self._process.terminate()
        try:
            self._process.wait(SERVER_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def external_api() -> str:
    """Return the address of the API that Prefect is configured with; empty where there is none.

    Raises:
        UsageError: if it is no address of a server.
    """
    check_address("PREFECT_API_URL", os.environ.get("PREFECT_API_URL", ""), http=True)  # some fail Prefect's import
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url or ""  # also of a profile
    check_address("PREFECT_API_URL", url, http=True)
    return url


@contextlib.contextmanager
def prefect_api(folder: str) -> Iterator[EmbeddedServer | None]:
    """Start an embedded server for the block; yield None where PREFECT_API_URL names another one."""
    if external_api():
        yield None
        return
    server = EmbeddedServer(folder)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def connected(server: EmbeddedServer | None, on_lost: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Wait for the embedded server and point Prefect at it for the block; with None, Prefect stays as configured.

    Args:
        server: the embedded server.
        on_lost: called in another thread, with the reason, where the server ends during the block.
    """
    if server is None:
        yield
        return
    from prefect import settings

    server.wait()
    overrides = {
        settings.PREFECT_API_URL: server.api_url,
        settings.PREFECT_UI_URL: "",  # it serves no pages, and ends with the run: nothing may lead there
        settings.PREFECT_LOCAL_STORAGE_PATH: server.results,
        # Heartbeats report a dead run to a server that outlives it; here both end together, and they cost 1 s a flow.
        settings.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
    }
    ended = threading.Event()
    threading.Thread(target=_watch, args=(server, ended, on_lost), daemon=True).start()
    with settings.temporary_settings(overrides):
        try:
            yield
        finally:
            ended.set()
            if not server.describe_end():
                _flush()


def _watch(server: EmbeddedServer, ended: threading.Event, on_lost: Callable[[str], None]) -> None:
    while not ended.wait(END_CHECK_SECONDS):
        if reason := server.describe_end():
            on_lost(reason)
            return


def _flush() -> None:
    """Deliver queued events and logs; once the server is gone Prefect would retry for more than a minute."""
    from prefect.events.worker import EventsWorker

    EventsWorker.drain_all(timeout=10)
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            handler.flush()


def _begin_log(path: Path) -> None:
    """Move a long log aside."""
    with contextlib.suppress(FileNotFoundError):  # there is none, or another command has just moved it
        if path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
