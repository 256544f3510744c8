"""The embedded Prefect server. That it answers at all shows that the installed versions fit together."""

import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tasks.core.errors import VerdictError

ROOT = Path(__file__).parents[2]


def test_a_flow_runs_on_the_embedded_server(prefect_server: str) -> None:
    from prefect import flow

    @flow
    def answer() -> int:
        return 42

    assert answer() == 42
    with urllib.request.urlopen(f"{prefect_server}/health", timeout=10) as response:
        assert response.status == 200


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_the_server_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from flows.services.embedded_prefect import LocalServer; "
        "print(LocalServer(sys.argv[1])._process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while _runs(server) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs(server)


def test_a_server_that_cannot_start_is_told_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.services.embedded_prefect import LocalServer

    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////proc/no/such.db")
    server = LocalServer(str(tmp_path))
    with pytest.raises(VerdictError, match=r"did not start; see .*prefect-server\.log"):
        server.wait()
    server.stop()


def _runs(pid: int) -> bool:
    """Tell whether a process lives; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
