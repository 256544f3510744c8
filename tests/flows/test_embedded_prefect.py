"""The embedded Prefect server. That it answers at all shows that the installed versions fit together."""

import urllib.request
from pathlib import Path

import psutil
import pytest

from tasks.core.errors import VerdictError


def test_a_flow_runs_on_the_embedded_server(prefect_server: str) -> None:
    from prefect import flow

    @flow
    def answer() -> int:
        return 42

    assert answer() == 42
    with urllib.request.urlopen(f"{prefect_server}/health", timeout=10) as response:
        assert response.status == 200


def test_a_server_that_cannot_start_is_reported_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.services.embedded_prefect import LocalServer

    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////proc/no/such.db")
    server = LocalServer(str(tmp_path))
    with pytest.raises(VerdictError, match=r"ended with exit code 1; see .*prefect-server\.log"):
        server.wait()
    server.stop()


def test_a_server_that_is_killed_before_it_answers_may_lack_memory(tmp_path: Path) -> None:
    from flows.services.embedded_prefect import LocalServer

    others = {child.pid for child in psutil.Process().children()}  # the server of other tests among them
    server = LocalServer(str(tmp_path))
    for child in psutil.Process().children():
        if child.pid not in others:
            child.kill()
    with pytest.raises(VerdictError, match="the embedded Prefect server ended: memory ran out"):
        server.wait()
