"""A server that a run needs and that is away: this is said, waited for within bounds, and an error in the end."""

import http.server
import threading
from collections.abc import Callable, Iterator

import pytest

from flows.services import server_watch
from flows.services.server_watch import check_servers, external_servers, watched
from tasks.core.errors import UnreachableError


class Server:
    """An HTTP server that refuses everybody, at one address whenever it is up."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_error(401)

            def log_message(self, *_: object) -> None: ...

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setattr(server_watch, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(server_watch, "START_LIMIT_S", 0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:secret@127.0.0.1:{server.port}/")
    yield server
    server.stop()


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "tasks.servers"]


def wait_for(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(200):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError("not within 10 s")


def test_a_server_that_returns_is_waited_for_and_named(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    servers = external_servers()
    [name] = servers
    assert "secret" not in name
    check_servers(servers)  # that it refuses us is not for the watch to report
    lost: list[str] = []
    with watched(servers, lost.append):
        server.stop()
        wait_for(lambda: messages(caplog) == [f"{name} does not answer; waiting up to 240 s"])
        with pytest.raises(UnreachableError, match="does not answer; start it, or correct the address"):
            check_servers(servers)
        server.start()
        wait_for(lambda: messages(caplog)[1:] == [f"{name} answers again"])
    assert lost == []


def test_a_server_that_does_not_return_ends_the_run(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_watch, "AWAY_LIMIT_S", 0.2)
    lost: list[str] = []
    with watched(external_servers(), lost.append):
        server.stop()
        wait_for(lambda: bool(lost))
        server.start()
    assert len(lost) == 1
    assert "did not answer for 0 s; start it, then run the same command again" in lost[0]


def test_an_embedded_server_and_a_local_store_are_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert external_servers() == {}
    assert external_servers("http://127.0.0.1:4200/api") == {
        "Prefect at http://127.0.0.1:4200/api": "http://127.0.0.1:4200/api/health"
    }
