"""The embedded Prefect server. That it answers at all shows that the installed versions fit together."""

import io
import socket
import urllib.parse
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
    from flows.services.embedded_prefect import EmbeddedServer

    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////proc/no/such.db")
    server = EmbeddedServer(str(tmp_path))
    with pytest.raises(VerdictError, match=r"ended with exit code 1; see .*prefect-server\.log"):
        server.wait()
    server.stop()


def test_a_server_that_is_killed_before_it_answers_may_lack_memory(tmp_path: Path) -> None:
    from flows.services.embedded_prefect import EmbeddedServer

    others = {child.pid for child in psutil.Process().children()}  # the server of other tests among them
    server = EmbeddedServer(str(tmp_path))
    for child in psutil.Process().children():
        if child.pid not in others:
            child.kill()
    with pytest.raises(VerdictError, match="the embedded Prefect server ended: memory ran out"):
        server.wait()


def test_nothing_else_can_listen_on_the_port_of_a_server_that_starts(tmp_path: Path) -> None:
    from flows.services.embedded_prefect import EmbeddedServer

    server = EmbeddedServer(str(tmp_path))
    try:
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="Address already in use"):
                other.bind(("127.0.0.1", urllib.parse.urlsplit(server.api_url).port))
    finally:
        server.stop()


def test_another_program_that_has_the_port_of_a_dead_server_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.services import embedded_prefect

    server = embedded_prefect.EmbeddedServer(str(tmp_path))

    def answer(*_: object, **__: object) -> io.BytesIO:
        server._process.kill()
        server._process.wait()
        return io.BytesIO()  # of another program, which has just taken the port

    monkeypatch.setattr(embedded_prefect.urllib.request, "urlopen", answer)
    with pytest.raises(VerdictError, match="the embedded Prefect server ended"):
        server.wait()
