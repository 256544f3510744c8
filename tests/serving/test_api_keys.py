"""Requests need a key of a file that may change meanwhile, no key is written; each client has its own limit."""

import base64
import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from challengers import ScriptedAddress, ScriptedModel
from fastapi.testclient import TestClient
from filelock import FileLock

from tasks.core.errors import UsageError, VerdictError
from tasks.serving import api_keys as module
from tasks.serving.api_keys import ApiKeys, presented_key, read_keys
from tasks.serving.batcher import Batcher
from tasks.serving.client_limits import ClientRates
from tasks.serving.feedback import Feedback
from tasks.serving.metrics import ServerMetrics
from tasks.serving.routes import Extensions, build_app
from tasks.serving.server import ServerConfig, warn_of_open_access

ASK = {"sentences": ["a cat"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.txt"


@contextlib.contextmanager
def client_of(feedback: Feedback | None = None, **extensions: Any) -> Iterator[TestClient]:
    """Yield a client of an application in this process, whose model is scripted."""
    address: Any = ScriptedAddress(ScriptedModel("1", "cat"))
    batcher = Batcher(address.current, max_wait=0.0)
    telemetry = ServerMetrics(address.status, lambda: batcher.waiting)
    app = build_app(address, batcher, telemetry, feedback=feedback, extensions=Extensions(**extensions))
    with TestClient(app, base_url="http://localhost") as client:
        yield client
    batcher.close()


def add_key(name: str, path: str) -> str:
    shown: list[str] = []
    module.add_key(name, path, shown.append)
    return shown[0]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_is_printed_once_and_only_its_hash_is_written(path: Path) -> None:
    keys = [add_key("alice", str(path)), add_key("bob", str(path))]
    assert len(set(keys)) == 2
    assert all(key.startswith("verdict_") and len(key) == 51 for key in keys)
    text = path.read_text()
    assert [line.split()[0] for line in text.splitlines()] == ["alice", "bob"]
    assert not any(key in text for key in keys)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [ApiKeys(str(path)).name_of(key) for key in (*keys, "verdict_other", "")] == ["alice", "bob", None, None]


def test_a_key_that_could_not_be_shown_is_not_added(path: Path) -> None:
    def fail(_: str) -> None:
        raise OSError(28, "No space left on device")

    first = add_key("alice", str(path))
    with pytest.raises(OSError, match="No space left"):
        module.add_key("bob", str(path), fail)
    assert list(read_keys(path).values()) == ["alice"]
    assert ApiKeys(str(path)).name_of(first) == "alice"


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_folder_or_pipe_is_no_file_of_keys(kind: str, path: Path) -> None:
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(UsageError, match=r"is no file; name a file of keys, or a new one: verdict api-key alice FILE$"):
        add_key("alice", str(path))


def test_keys_that_two_processes_add_at_once_are_both_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_key("zero", str(path))
    made: list[str] = []
    others: list[threading.Thread] = []
    waits, write = threading.Event(), module.atomic_write

    class SeenLock(FileLock):
        def acquire(self, *arguments: Any, **options: Any) -> Any:
            if others:
                waits.set()
            return super().acquire(*arguments, **options)

    def write_late(target: Path) -> Any:
        if not others:  # another process comes between this one's reading and writing
            others.append(threading.Thread(target=lambda: made.append(add_key("two", str(path)))))
            others[0].start()
            waits.wait(5)
        return write(target)

    monkeypatch.setattr("filelock.FileLock", SeenLock)
    monkeypatch.setattr(module, "atomic_write", write_late)
    made.append(add_key("one", str(path)))
    others[0].join()
    assert [line.split()[0] for line in path.read_text().splitlines()] == ["zero", "one", "two"]
    assert all(module.hash_key(key) in read_keys(path) for key in made)


def test_no_key_is_made_while_another_process_holds_the_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEY_LOCK_TIMEOUT_S", 0.0)
    with FileLock(f"{path}.lock"), pytest.raises(VerdictError, match=r"another process holds .*\.lock; try again"):
        add_key("alice", str(path))
    assert not path.exists()


def test_only_requests_with_a_key_are_answered_and_probes_need_none(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = add_key("alice", str(path))
    with client_of(Feedback(str(tmp_path / "f.tsv")), api_keys=ApiKeys(str(path))) as client:
        answers = [
            client.post("/v1/judge", json=ASK, headers=headers) for headers in ({}, bearer("wrong"), bearer(key))
        ]
        assert [answer.status_code for answer in answers] == [401, 401, 200]
        assert [answer.json()["error"] for answer in answers[:2]] == [
            "an API key is needed; send the header Authorization: Bearer KEY",
            "this API key is not valid; send the header Authorization: Bearer KEY",
        ]
        assert answers[0].headers["WWW-Authenticate"] == 'Bearer realm="verdict"'
        assert [client.get(probe).status_code for probe in ("/healthz", "/readyz", "/metrics")] == [200] * 3
        assert [client.get(other).status_code for other in ("/", "/openapi.json", "/v2", "/nowhere")] == [401] * 4
        page = client.get("/", headers={"Accept": "text/html"})  # a browser asks its user for the key
        assert (page.status_code, page.headers["WWW-Authenticate"]) == (401, 'Basic realm="verdict"')
        assert client.post("/v1/judge", json=ASK, auth=("anyone", key)).status_code == 200
        metrics = client.get("/metrics").text
    assert 'verdict_requests_total{code="200",route="/v1/judge"} 2.0' in metrics
    assert key not in metrics + caplog.text


def test_keys_are_rotated_while_the_server_runs(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "KEY_FILE_POLL_S", 0.0)
    old = add_key("alice", str(path))
    keys = ApiKeys(str(path))
    new = add_key("alice", str(path))
    assert [keys.name_of(old), keys.name_of(new)] == ["alice", "alice"]
    path.write_text(path.read_text().splitlines()[1] + "\n")
    assert [keys.name_of(old), keys.name_of(new)] == [None, "alice"]
    path.write_text("half a li")
    assert keys.name_of(new) == "alice"
    path.unlink()
    assert keys.name_of(new) == "alice"
    messages = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [message.partition("; ")[0].replace(str(path), "FILE") for message in messages] == [
        "FILE: line 1 is no line of `verdict api-key`",
        "FILE cannot be read (No such file or directory)",
    ]


@pytest.mark.parametrize("text", ["", "# none\n", "alice\n", "alice sha256:12\n", "a b sha256:" + "0" * 64, "\xff"])
def test_a_file_that_holds_something_else_is_refused_without_repeating_it(path: Path, text: str) -> None:
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as refused:
        read_keys(path)
    assert str(path) in str(refused.value)
    assert not text.strip() or text.strip() not in str(refused.value)


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic " + base64.b64encode(b"me:a:b").decode(), "a:b"),
        ("Basic !", ""),
        ("Basic é", ""),
        ("Basic " + base64.b64encode(b"\xff").decode(), ""),
        ("Digest abc", ""),
        ("", ""),
    ],
)
def test_the_key_of_a_header(header: str, key: str) -> None:
    assert presented_key(header) == key


def test_each_client_has_its_own_limit_which_answers_announce(path: Path) -> None:
    now = [100.0]
    names = {name: bearer(add_key(name, str(path))) for name in ("alice", "bob")}
    with client_of(api_keys=ApiKeys(str(path)), rates=ClientRates(2.0, lambda: now[0])) as client:

        def ask(name: str, sentences: int) -> Any:
            return client.post("/v1/judge", json={"sentences": ["a cat"] * sentences}, headers=names[name])

        first = ask("alice", 15)
        announced = {name: first.headers[name] for name in first.headers if name.startswith("ratelimit")}
        assert announced == {"ratelimit-limit": "20", "ratelimit-remaining": "5", "ratelimit-reset": "8"}
        assert ask("alice", 11).status_code == 200  # admitted whole: 6 too many
        refused = ask("alice", 1)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "3")
        assert refused.json()["error"] == "this client may send 2 sentences per second; try again in 3 s"
        assert refused.headers["RateLimit-Remaining"] == "0"
        assert ask("bob", 1).status_code == 200
        now[0] += 3.5
        assert ask("alice", 1).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_without_keys_an_address_is_a_client_and_the_oldest_bucket_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.serving.client_limits.MAX_CLIENTS", 1)
    rates = ClientRates(1.0, lambda: 0.0)
    with client_of(rates=rates) as client:
        assert client.post("/v1/judge", json={"sentences": ["a"] * 12}).status_code == 200
        assert client.post("/v1/judge", json=ASK).status_code == 429
    assert list(rates._buckets) == ["testclient"]


@pytest.mark.parametrize(
    ("host", "keys", "warned"),
    [("0.0.0.0", "", True), ("0.0.0.0", "keys.txt", False), ("127.0.0.1", "", False), ("localhost", "", False)],
)
def test_a_server_open_to_other_machines_is_a_warning(
    host: str, keys: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_open_access(ServerConfig(host=host, api_keys=keys))
    assert caplog.messages == [f"{host} is reachable from other machines, without authentication"] * warned
