"""An embedded Prefect server for runs without a PREFECT_API_URL.

It starts in a process of its own while the run's libraries are imported (both take ten seconds and more), keeps its
database among the run's stores, listens on loopback only, and ends with the process that started it, however that ends.
"""

import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tasks.core.errors import VerdictError

SERVER_START_TIMEOUT_S = 180  # seconds; 13 were measured on two cores with a new database
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class LocalServer:
    """A Prefect server process; `api_url` answers after `wait`."""

    def __init__(self, folder: str) -> None:
        self._port = _free_port()
        self._log = Path(folder) / "prefect-server.log"
        self.results = Path(folder) / "results"
        self.api_url = f"http://127.0.0.1:{self._port}/api"
        Path(folder).mkdir(parents=True, exist_ok=True)
        command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self._port), "--no-ui"]
        inherited = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
        database = {"PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect.db"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=database | inherited,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )

    def wait(self) -> None:
        """Return when the server answers.

        Raises:
            VerdictError: if it ends or takes too long.
        """
        deadline = time.monotonic() + SERVER_START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"{self.api_url}/health", timeout=5).close()
                return
            time.sleep(0.1)
        raise VerdictError(f"the embedded Prefect server did not start; see {self._log}, or set PREFECT_API_URL")

    def stop(self) -> None:
        """End the server."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def prefect_api(folder: str) -> Iterator[LocalServer | None]:
    """Start an embedded server unless Prefect is configured for another one, and stop it after the block."""
    from prefect.settings import get_current_settings

    if get_current_settings().api.url:
        yield None
        return
    server = LocalServer(folder)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def connected(server: LocalServer | None) -> Iterator[None]:
    """Wait for the server and point Prefect at it; without one, Prefect stays as it is configured."""
    if server is None:
        yield
        return
    from prefect import settings

    server.wait()
    own = {
        settings.PREFECT_API_URL: server.api_url,
        settings.PREFECT_LOCAL_STORAGE_PATH: server.results,
        # Heartbeats tell a lasting server that a run died; here both end together, and they cost a second a flow.
        settings.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
    }
    with settings.temporary_settings(own):
        try:
            yield
        finally:
            _flush()


def _flush() -> None:
    """Deliver what is queued; afterwards nobody listens, and Prefect would try for more than a minute."""
    from prefect.events.worker import EventsWorker

    EventsWorker.drain_all(timeout=10)
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            handler.flush()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _die_with_parent() -> None:
    """Have the kernel end this child when its parent dies, also by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
