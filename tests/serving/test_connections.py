"""Connections of the server: many of them, silent ones, slow ones, half-closed ones, and those that stay at its end."""

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from http_server import GOOD, running_server, wait_until

from tasks.serving import connections
from tasks.serving.champion import Champion
from tasks.serving.connections import InferenceServer

BOUND = 20  # connections
BODY = b'{"sentences": ["the cat sees the dog"]}'
REQUEST = b"POST /v1/judge HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def client(champion: Champion) -> Iterator[httpx.Client]:
    with running_server(champion, connections=BOUND) as client:
        yield client


def connect(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10)


def read_all(connection: socket.socket) -> bytes:
    """Return what arrives until the server closes the connection."""
    received = b""
    try:
        while part := connection.recv(65_536):
            received += part
    except ConnectionResetError:
        pass
    return received


def test_connections_that_send_nothing_keep_nobody_out(client: httpx.Client) -> None:
    silent = [connect(client) for _ in range(3 * BOUND)]
    begun = connect(client)
    begun.sendall(b"POST /v1/judge HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
    started = time.monotonic()
    for _ in range(5):
        with httpx.Client(base_url=client.base_url) as other:
            assert other.get("/healthz").status_code == 200
            assert other.post("/v1/judge", json={"sentences": [GOOD]}).status_code == 200
    assert time.monotonic() - started < connections.HEAD_S / 2
    assert [read_all(each) for each in silent[: 2 * BOUND]] == [b""] * 2 * BOUND  # the oldest are closed
    for each in (*silent, begun):
        each.close()


def test_a_head_that_does_not_arrive_ends_the_connection(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.5)
    with connect(client) as silent, connect(client) as slow:
        assert read_all(silent) == b""
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ")
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - started < 5:
                slow.sendall(b"x")
                time.sleep(0.02)
        assert time.monotonic() - started < 5


def test_a_head_in_two_parts_is_read_on_a_connection_that_was_used_before(client: httpx.Client) -> None:
    with connect(client) as kept, kept.makefile("rb") as answers:
        for _ in range(2):
            kept.sendall(b"GET /healthz HTTP/1.1\r\nHo")
            time.sleep(0.05)
            kept.sendall(b"st: localhost\r\n\r\n")
            assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
            while answers.readline() != b"\r\n":
                pass
            assert answers.read(len(b'{"live":true}')) == b'{"live":true}'


@pytest.mark.parametrize("requests", [1, 3])
def test_a_client_that_closes_its_sending_side_is_answered(champion: Champion, requests: int) -> None:
    with running_server(champion, slow=0.2) as client, connect(client) as connection:
        connection.sendall(REQUEST * requests)
        connection.shutdown(socket.SHUT_WR)
        received = read_all(connection)
    assert received.count(b"HTTP/1.1 200 ") == received.count(b'"label":"acceptable"') == requests


def test_half_a_request_before_the_sending_side_closes_ends_the_connection(client: httpx.Client) -> None:
    for part in (b"", REQUEST[:30], REQUEST[:-3]):
        with connect(client) as connection:
            connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
            assert read_all(connection) == b""


def test_requests_on_kept_connections_are_answered_while_the_server_stops(champion: Champion) -> None:
    begun, answered = threading.Semaphore(0), threading.Event()

    def wait() -> None:
        begun.release()
        assert answered.wait(30)

    with running_server(champion, slow=wait, max_batch=1) as client:
        kept = [httpx.Client(base_url=client.base_url, timeout=30) for _ in range(6)]
        assert [each.get("/healthz").headers.get("connection") for each in kept] == [None] * 6
        with ThreadPoolExecutor(2) as pool:
            computed = [pool.submit(each.post, "/v1/judge", json={"sentences": [GOOD]}) for each in kept[:2]]
            assert begun.acquire(timeout=30)
            client.server.should_exit = True
            wait_until(lambda: connections.CLOSE_HEADER in client.server.server_state.default_headers)
            answers = [each.get("/healthz") for each in kept[2:]]
            answered.set()
            answers += [future.result() for future in computed]
        assert [(answer.status_code, answer.headers.get("connection")) for answer in answers] == [(200, "close")] * 6
        for each in kept:
            each.close()


def test_a_client_that_does_not_read_its_answer_is_cut_off(champion: Champion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "UNREAD_S", 0.3)
    with running_server(champion) as client, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.connect((client.base_url.host, client.base_url.port))
        body = b'{"sentences": [' + b", ".join([b'"%s"' % (b"x" * 9_000)] * 600) + b"]}"
        connection.sendall(b"POST /v1/judge HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
        connection.sendall(body)
        state = client.server.server_state
        wait_until(lambda: any(each.flow.write_paused for each in state.connections))
        connection.sendall(REQUEST)  # which does not give it more time
        wait_until(lambda: not state.connections and not state.tasks)


def test_running_out_of_file_descriptors_is_logged_once(
    champion: Champion, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running_server(champion) as client:
        failing = threading.Event()
        accept = socket.socket.accept

        def refuse(self: socket.socket) -> Any:
            if not failing.is_set():
                raise OSError(errno.EMFILE, "Too many open files")
            return accept(self)

        monkeypatch.setattr(socket.socket, "accept", refuse)
        with connect(client) as waiting:
            wait_until(lambda: caplog.records)
            failing.set()
            waiting.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert waiting.recv(65_536).startswith(b"HTTP/1.1 200 ")
    assert [record.getMessage() for record in caplog.records] == [
        "connections wait to be accepted: Too many open files; raise the limit of open files (ulimit -n)"
    ]
    assert caplog.records[0].exc_info is None


def test_half_of_the_files_are_for_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, expected in ((64, 32), (1_024, 512), (1_048_576, connections.MAX_CONNECTIONS)):
        monkeypatch.setattr(connections.resource, "getrlimit", lambda kind, files=files: (files, files))
        assert connections.max_connections() == expected


def test_a_fault_of_the_event_loop_is_logged_by_the_loop() -> None:
    handled: list[Any] = []

    class Loop:
        def default_exception_handler(self, context: Any) -> None:
            handled.append(context)

    InferenceServer(lambda scope, receive, send: None, 1)._on_exception(Loop(), {"message": "x"})  # type: ignore
    assert handled == [{"message": "x"}]
