"""Downloads are atomic, verified and resumed; a loopback server misbehaves in every way that is handled."""

import hashlib
import logging
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tasks.core.errors import DataRejected, UnreachableError, UsageError, VerdictError
from tasks.data.download import RetryPolicy, download

ROOT = Path(__file__).parents[2]
BODY = random.Random(0).randbytes(200_000)
DIGEST = hashlib.sha256(BODY).hexdigest()
OTHER = BODY[::-1]
OTHER_DIGEST = hashlib.sha256(OTHER).hexdigest()
HALF = 100_000
QUICK = RetryPolicy(attempts=3, timeout=10.0, pause=0.001)
ONCE = replace(QUICK, attempts=1)
STEP = RetryPolicy(attempts=2, timeout=0.2, pause=0.001)
DOWNLOAD_SCRIPT = "import sys; from tasks.data.download import download; print(download(*sys.argv[1:]))"


class Request(NamedTuple):
    """A request that the server received."""

    target: str
    range: str | None


class Handler(BaseHTTPRequestHandler):
    """Answers by the next step of the server's plan."""

    server: "Site"

    def do_GET(self) -> None:
        with suppress(ConnectionError):
            self.server.next_step(Request(self.path, self.headers["Range"]))(self)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    @property
    def start(self) -> int:
        """The first byte of the requested range."""
        return int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))


Step = Callable[[Handler], None]


class Site(ThreadingHTTPServer):
    """A web server that answers each request by the next step of a plan; the last step is for all that follow."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[Step] = [ranged]
        self.requests: list[Request] = []
        self.over = threading.Event()
        self.lock = threading.Lock()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        return f"{self.origin}/files/corpus.zip"

    @property
    def ranges(self) -> list[str | None]:
        return [request.range for request in self.requests]

    def next_step(self, request: Request) -> Step:
        with self.lock:
            self.requests.append(request)
            return self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]

    def wait_for_requests(self, count: int) -> None:
        """Wait until so many requests were received: a client that gives up may do so before its own was."""
        deadline = time.monotonic() + 30
        while len(self.requests) < count and time.monotonic() < deadline:
            time.sleep(0.01)


def whole(handler: Handler) -> None:
    """Send everything, whatever the range."""
    handler.head(200, Content_Length=len(BODY))
    handler.wfile.write(BODY)


def ranged(handler: Handler) -> None:
    """Send the requested range."""
    start = handler.start
    if not handler.headers["Range"]:
        whole(handler)
    elif start >= len(BODY):
        handler.head(416, Content_Length=0, Content_Range=f"bytes */{len(BODY)}")
    else:
        rest = BODY[start:]
        handler.head(206, Content_Length=len(rest), Content_Range=f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        handler.wfile.write(rest)


def from_the_wrong_byte(handler: Handler) -> None:
    start = handler.start + 1
    handler.head(206, Content_Length=len(BODY) - start, Content_Range=f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
    handler.wfile.write(BODY[start:])


def other(handler: Handler) -> None:
    """Send the requested range of other bytes."""
    rest = OTHER[handler.start :]
    handler.head(206 if handler.start else 200, Content_Range=f"bytes {handler.start}-{len(BODY) - 1}/{len(BODY)}")
    handler.wfile.write(rest)


def without_length(handler: Handler) -> None:
    handler.head(200)
    handler.wfile.write(BODY)


def cut(handler: Handler) -> None:
    """Promise everything, send half and close."""
    handler.head(200, Content_Length=len(BODY))
    handler.wfile.write(BODY[:HALF])


def stall(handler: Handler) -> None:
    """Send the headers, then nothing."""
    handler.head(200, Content_Length=len(BODY))
    handler.server.over.wait(30)


def dribble(handler: Handler) -> None:
    """Send half, then a few bytes one after another, then nothing."""
    handler.head(200, Content_Length=len(BODY))
    handler.wfile.write(BODY[:HALF])
    for byte in BODY[HALF : HALF + 5]:
        handler.server.over.wait(0.01)
        handler.wfile.write(bytes([byte]))
    handler.server.over.wait(30)


def answer(status: int, **headers: object) -> Step:
    return lambda handler: handler.head(status, **headers)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Log lines of the module."""
    logger = logging.getLogger("tasks.data.download")
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler, level = Keep(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield messages
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between attempts, recorded instead of waited."""
    taken: list[float] = []
    monkeypatch.setattr("time.sleep", taken.append)
    return taken


def get(url: str, cache: Path, policy: RetryPolicy = QUICK, **options: Any) -> bytes:
    path = Path(download(url, DIGEST, str(cache), policy=policy, **options))
    assert path.parent == cache / DIGEST
    return path.read_bytes()


def refusal(kind: type[VerdictError], url: str, cache: Path, policy: RetryPolicy = QUICK, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        get(url, cache, policy, **options)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def kept(cache: Path) -> set[str]:
    """Return the files in the cache except the lock."""
    return {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()} - {f"{DIGEST}.lock"}


def leave_part(cache: Path, content: bytes) -> None:
    cache.mkdir()
    (cache / f"{DIGEST}.part").write_bytes(content)


# Without faults.


def test_a_file_is_stored_under_its_digest_and_name(site: Site, cache: Path, lines: list[str]) -> None:
    assert download(site.url, DIGEST, str(cache), policy=QUICK) == f"{cache}/{DIGEST}/corpus.zip"
    assert (cache / DIGEST / "corpus.zip").read_bytes() == BODY
    assert kept(cache) == {f"{DIGEST}/corpus.zip"}
    assert site.requests == [Request("/files/corpus.zip", None)]
    assert lines == [f"downloading {site.url} (200000 bytes)"]


def test_a_cached_file_makes_no_request(site: Site, cache: Path, lines: list[str]) -> None:
    get(site.url, cache)
    lines.clear()
    assert get(site.url, cache) == BODY
    assert len(site.requests) == 1
    assert lines == []


def test_a_digest_may_be_written_in_capitals(site: Site, cache: Path) -> None:
    assert download(site.url, DIGEST.upper(), str(cache)) == str(cache / DIGEST / "corpus.zip")


def test_a_cached_file_that_changed_is_downloaded_again(site: Site, cache: Path) -> None:
    get(site.url, cache)
    (cache / DIGEST / "corpus.zip").write_bytes(BODY[:-1] + b"?")
    assert get(site.url, cache) == BODY
    assert len(site.requests) == 2


def test_a_response_without_content_length_is_downloaded(site: Site, cache: Path, lines: list[str]) -> None:
    site.plan = [without_length]
    assert get(site.url, cache) == BODY
    assert lines == [f"downloading {site.url} (size unknown)"]


def test_the_server_is_requested_not_to_compress(site: Site, cache: Path) -> None:
    accepted: list[str] = []

    def send(handler: Handler) -> None:
        accepted.append(handler.headers["Accept-Encoding"])
        whole(handler)

    site.plan = [send]
    get(site.url, cache)
    assert accepted == ["identity"]


def test_a_redirect_is_followed_and_the_file_keeps_the_requested_name(site: Site, cache: Path) -> None:
    site.plan = [answer(302, Location="/elsewhere/blob"), ranged]
    assert download(site.url, DIGEST, str(cache)) == str(cache / DIGEST / "corpus.zip")
    assert [request.target for request in site.requests] == ["/files/corpus.zip", "/elsewhere/blob"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/cola%20public.zip?version=2#top", "cola public.zip"),
        ("/a/..%2F..%2Fevil", "evil"),
        ("/a/..%5C..%5Cevil", "evil"),
        ("/a/%2e%2e", "download"),
        ("/a%00b%0A.zip", "ab.zip"),
        ("/", "download"),
        ("", "download"),
        (f"/{'x' * 300}.zip", "x" * 196 + ".zip"),
    ],
)
def test_a_file_name_stays_in_its_folder(site: Site, cache: Path, path: str, name: str) -> None:
    assert download(site.origin + path, DIGEST, str(cache)) == str(cache / DIGEST / name)
    assert kept(cache) == {f"{DIGEST}/{name}"}


def test_a_large_file_does_not_fill_the_memory(site: Site, cache: Path) -> None:
    block, count = bytes(1 << 20), 24

    def send(handler: Handler) -> None:
        handler.head(200, Content_Length=count << 20)
        for _ in range(count):
            handler.wfile.write(block)

    site.plan = [send]
    digest = hashlib.sha256(block * count).hexdigest()
    tracemalloc.start()
    try:
        path = download(site.url, digest, str(cache), policy=QUICK)
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()
    assert Path(path).stat().st_size == count << 20


# Resuming.


def test_a_cut_off_download_is_resumed_where_it_stopped(site: Site, cache: Path, lines: list[str]) -> None:
    site.plan = [cut, ranged]
    assert get(site.url, cache) == BODY
    assert site.ranges == [None, "bytes=100000-"]
    assert lines[0] == f"downloading {site.url} (200000 bytes)"
    assert re.fullmatch(rf"{site.url}: peer closed connection .*; attempt 2 of 3 in 0\.001 s", lines[1])
    assert lines[2] == f"downloading {site.url} from byte 100000 on (200000 bytes)"


def test_a_later_call_resumes_too(site: Site, cache: Path) -> None:
    site.plan = [cut, ranged]
    message = refusal(UnreachableError, site.url, cache, ONCE)
    assert message.endswith("then run again: it resumes from byte 100000")
    assert kept(cache) == {f"{DIGEST}.part"}
    assert get(site.url, cache, ONCE) == BODY
    assert site.ranges == [None, "bytes=100000-"]
    assert kept(cache) == {f"{DIGEST}/corpus.zip"}


def test_a_killed_download_is_resumed_by_the_next_call(site: Site, cache: Path) -> None:
    site.plan = [dribble, ranged]
    part = cache / f"{DIGEST}.part"
    with subprocess.Popen([sys.executable, "-c", DOWNLOAD_SCRIPT, site.url, DIGEST, str(cache)], cwd=ROOT) as process:
        until = time.monotonic() + 20
        while time.monotonic() < until and not (part.exists() and part.stat().st_size == HALF + 5):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert part.read_bytes() == BODY[: HALF + 5]
    assert kept(cache) == {f"{DIGEST}.part"}
    assert get(site.url, cache) == BODY
    assert site.ranges == [None, "bytes=100005-"]


def test_a_server_without_ranges_sends_everything_again(site: Site, cache: Path) -> None:
    site.plan = [cut, whole]
    assert get(site.url, cache) == BODY
    assert site.ranges == [None, "bytes=100000-"]


@pytest.mark.parametrize("step", [from_the_wrong_byte, answer(206), answer(416)])
def test_a_response_that_cannot_be_appended_starts_over(
    site: Site, cache: Path, lines: list[str], pauses: list[float], step: Step
) -> None:
    leave_part(cache, BODY[:HALF])
    site.plan = [step, ranged]
    assert get(site.url, cache, ONCE) == BODY
    assert site.ranges == ["bytes=100000-", None]
    assert lines[0] == f"{site.url} cannot be resumed from byte 100000; starting over"
    assert pauses == []


def test_a_part_longer_than_the_file_starts_over(site: Site, cache: Path) -> None:
    leave_part(cache, BODY + b"more")
    assert get(site.url, cache, ONCE) == BODY
    assert site.ranges == ["bytes=200004-", None]


def test_an_empty_part_is_no_reason_for_a_range(site: Site, cache: Path) -> None:
    leave_part(cache, b"")
    assert get(site.url, cache) == BODY
    assert site.ranges == [None]


def test_a_part_that_is_complete_makes_no_request(site: Site, cache: Path) -> None:
    leave_part(cache, BODY)
    assert get(site.url, cache) == BODY
    assert site.requests == []
    assert kept(cache) == {f"{DIGEST}/corpus.zip"}


# Wrong bytes.


def test_a_stale_part_costs_one_download_from_the_start(site: Site, cache: Path, lines: list[str]) -> None:
    leave_part(cache, OTHER[:HALF])
    assert get(site.url, cache) == BODY
    assert site.ranges == ["bytes=100000-", None]
    assert lines[1] == f"{site.url} was resumed from bytes that do not fit; starting over"
    assert kept(cache) == {f"{DIGEST}/corpus.zip"}


def test_wrong_bytes_are_kept_aside_and_refused(site: Site, cache: Path) -> None:
    site.plan = [other]
    aside = f"{DIGEST}.mismatch-{OTHER_DIGEST[:12]}"
    assert refusal(DataRejected, site.url, cache) == (
        f"{site.url} has SHA-256 {OTHER_DIGEST}, expected {DIGEST}; the file is kept at {cache}/{aside}; "
        "look at it, then correct the address, or the digest if these are the right bytes"
    )
    assert kept(cache) == {aside}
    assert (cache / aside).read_bytes() == OTHER
    assert len(site.requests) == 1


def test_wrong_bytes_after_a_resumed_part_are_refused_after_one_start_from_scratch(site: Site, cache: Path) -> None:
    leave_part(cache, BODY[:HALF])
    site.plan = [other]
    assert f"has SHA-256 {OTHER_DIGEST}, expected {DIGEST}" in refusal(DataRejected, site.url, cache)
    assert site.ranges == ["bytes=100000-", None]
    assert kept(cache) == {f"{DIGEST}.mismatch-{OTHER_DIGEST[:12]}"}


def test_after_a_mismatch_the_next_call_starts_from_scratch(site: Site, cache: Path) -> None:
    site.plan = [other, ranged]
    refusal(DataRejected, site.url, cache)
    assert get(site.url, cache) == BODY
    assert site.ranges == [None, None]


# Failing servers.


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "401 Unauthorized"),
        (403, "403 Forbidden"),
        (404, "404 Not Found"),
        (410, "410 Gone"),
        (204, "204 No Content"),
    ],
)
def test_a_refusing_status_is_final_at_once(site: Site, cache: Path, status: int, words: str) -> None:
    site.plan = [answer(status)]
    assert refusal(UsageError, site.url, cache) == (
        f"{site.url} answered {words}; expected 200 OK with the file; "
        "check the address and that it may be read without signing in"
    )
    assert len(site.requests) == 1
    assert kept(cache) == set()


def test_a_refusing_status_leaves_the_part_for_later(site: Site, cache: Path) -> None:
    leave_part(cache, BODY[:HALF])
    site.plan = [answer(403)]
    refusal(UsageError, site.url, cache)
    assert kept(cache) == {f"{DIGEST}.part"}


def test_a_server_error_is_retried(site: Site, cache: Path, lines: list[str]) -> None:
    site.plan = [answer(500), answer(500), ranged]
    assert get(site.url, cache) == BODY
    assert lines == [
        f"{site.url}: it answered 500 Internal Server Error; attempt 2 of 3 in 0.001 s",
        f"{site.url}: it answered 500 Internal Server Error; attempt 3 of 3 in 0.002 s",
        f"downloading {site.url} (200000 bytes)",
    ]


def test_a_server_that_does_not_recover_is_given_up_after_all_attempts(site: Site, cache: Path) -> None:
    site.plan = [answer(500)]
    assert refusal(UnreachableError, site.url, cache) == (
        f"{site.url} did not deliver the file in 3 of 3 attempts "
        "(the last one: it answered 500 Internal Server Error); "
        "check the network and the proxy (HTTPS_PROXY), then run again"
    )
    assert len(site.requests) == 3


def test_pauses_grow_up_to_a_minute(site: Site, cache: Path, pauses: list[float]) -> None:
    site.plan = [answer(503)]
    refusal(UnreachableError, site.url, cache, RetryPolicy(attempts=5, timeout=10, pause=10))
    assert pauses == [10, 20, 40, 60]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(site: Site, cache: Path, pauses: list[float], lines: list[str], status: int) -> None:
    site.plan = [answer(status, Retry_After=7), answer(status, Retry_After="soon"), ranged]
    assert get(site.url, cache) == BODY
    assert pauses == [7, 0.002]
    assert re.search(rf"it answered {status} [\w ]+ with Retry-After 7 s; attempt 2 of 3 in 7 s$", lines[0])


def test_a_long_retry_after_fails_at_once(site: Site, cache: Path, pauses: list[float]) -> None:
    site.plan = [answer(503, Retry_After=3600)]
    assert "in 1 of 3 attempts (the last one: it answered 503 Service Unavailable with Retry-After 3600 s);" in refusal(
        UnreachableError, site.url, cache
    )
    assert pauses == []


def test_a_stalled_download_is_given_up(site: Site, cache: Path) -> None:
    site.plan = [stall]
    assert refusal(UnreachableError, site.url, cache, STEP) == (
        f"{site.url} did not deliver the file in 2 of 2 attempts (the last one: nothing came for 0.2 s); "
        "check the network and the proxy (HTTPS_PROXY), then run again"
    )
    site.wait_for_requests(2)
    assert len(site.requests) == 2


def test_a_stall_is_overcome(site: Site, cache: Path) -> None:
    site.plan = [stall, ranged]
    # On a busy machine a later answer may take longer than the timeout as well.
    assert get(site.url, cache, replace(QUICK, timeout=0.5, attempts=20)) == BODY
    site.wait_for_requests(2)
    assert len(site.requests) >= 2


def test_a_closed_port_is_unreachable(cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert re.search(
        r"in 3 of 3 attempts \(the last one: .*Connection refused\); check the network",
        refusal(UnreachableError, f"http://127.0.0.1:{port}/x", cache),
    )


def test_a_host_name_that_cannot_be_encoded_is_unreachable(cache: Path) -> None:
    assert "label" in refusal(UnreachableError, f"http://{'a' * 300}.invalid/x", cache)


@pytest.mark.parametrize("target", ["/files/corpus.zip", "ftp://127.0.0.1/corpus.zip"])
def test_a_redirect_that_leads_nowhere_is_final(site: Site, cache: Path, target: str) -> None:
    site.plan = [answer(302, Location=target)]
    assert f"{site.url} redirects to no file (" in refusal(UsageError, site.url, cache)
    assert len(site.requests) <= 21


# Offline, wrong arguments, proxies.


def test_offline_takes_what_is_cached(site: Site, cache: Path) -> None:
    get(site.url, cache)
    assert get(site.url, cache, offline=True) == BODY
    assert len(site.requests) == 1


@pytest.mark.parametrize("state", ["absent", "changed", "part"])
def test_offline_without_an_intact_file_says_where_it_belongs(site: Site, cache: Path, state: str) -> None:
    file = cache / DIGEST / "corpus.zip"
    if state == "changed":
        file.parent.mkdir(parents=True)
        file.write_bytes(OTHER)
    if state == "part":
        leave_part(cache, BODY[:HALF])
    assert refusal(UnreachableError, site.url, cache, offline=True) == (
        f"{site.url} has no intact copy in cache folder '{cache}' and offline mode is on; "
        f"expected it as {file}; put the file there or run once with network"
    )
    assert site.requests == []


@pytest.mark.parametrize("digest", ["", "a" * 63, "a" * 65, "g" * 64, "a" * 64 + "\n"])
def test_a_malformed_digest_is_a_usage_error(cache: Path, digest: str) -> None:
    with pytest.raises(UsageError) as caught:
        download("http://127.0.0.1/x", digest, str(cache))
    assert str(caught.value) == (
        f"SHA-256 {digest!r} is not 64 hex characters; expected what this prints: sha256sum FILE"
    )
    assert not cache.exists()


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "file:///etc/hosts", "corpus.zip", "", "http://", "http:///x"])
def test_an_address_of_another_scheme_is_a_usage_error(cache: Path, url: str) -> None:
    assert refusal(UsageError, url, cache) == (f"address {url!r} cannot be downloaded from; expected https://HOST/FILE")
    assert not cache.exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:port/x", "http://127.0.0.1/a\nb", "http://[::1/x"])
def test_an_address_that_is_no_url_is_a_usage_error(cache: Path, url: str) -> None:
    message = refusal(UsageError, url, cache)
    assert message.startswith(f"address {url!r} is no URL; ")


def test_a_password_is_used_and_not_shown(site: Site, cache: Path, lines: list[str]) -> None:
    seen: list[str] = []

    def need_password(handler: Handler) -> None:
        seen.append(handler.headers["Authorization"])
        handler.head(500)

    site.plan = [need_password]
    message = refusal(UnreachableError, site.url.replace("//", "//ann:secret@"), cache)
    assert message.startswith(f"{site.url.replace('//', '//***@')} did not deliver")
    assert seen == ["Basic YW5uOnNlY3JldA=="] * 3
    assert "secret" not in message + "".join(lines)


def test_a_cache_that_cannot_be_written_is_reported(site: Site, cache: Path) -> None:
    cache.write_text("a file")
    message = refusal(VerdictError, site.url, cache)
    assert message.startswith(f"{site.url} cannot be stored in cache folder '{cache}' ([Errno 17] File exists: ")
    assert message.endswith("expected a writable folder with free space; free some or name another")


def test_a_proxy_of_the_environment_is_used(site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", site.origin)
    assert get("http://data.invalid/files/corpus.zip", cache) == BODY
    assert site.requests == [Request("http://data.invalid/files/corpus.zip", None)]


def test_no_proxy_is_honoured(site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    assert get(site.url, cache) == BODY
    assert site.requests == [Request("/files/corpus.zip", None)]


@pytest.mark.parametrize(("name", "value"), [("HTTP_PROXY", "gopher://h:1"), ("SSL_CERT_FILE", "/no/such.pem")])
def test_a_wrong_network_setting_is_reported(
    site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    message = refusal(UsageError, site.url, cache)
    assert message.startswith("the environment's network settings cannot be used (")
    assert name in message


# Concurrency.


def test_two_processes_download_once_and_neither_sees_a_partial_file(site: Site, cache: Path, lines: list[str]) -> None:
    arrived, go = threading.Event(), threading.Event()

    def held(handler: Handler) -> None:
        handler.head(200, Content_Length=len(BODY))
        handler.wfile.write(BODY[:HALF])
        arrived.set()
        go.wait(60)
        handler.wfile.write(BODY[HALF:])

    site.plan = [held]
    command = [sys.executable, "-c", DOWNLOAD_SCRIPT, site.url, DIGEST, str(cache)]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process,
        ThreadPoolExecutor() as pool,
    ):
        assert arrived.wait(60)
        waiting = pool.submit(get, site.url, cache)
        until = time.monotonic() + 30
        while not (lines and kept(cache)) and time.monotonic() < until:
            time.sleep(0.01)
        assert kept(cache) == {f"{DIGEST}.part"}
        go.set()
        assert waiting.result() == BODY
        assert process.communicate()[0].strip() == str(cache / DIGEST / "corpus.zip")
    assert lines == [f"waiting for another process that holds {cache / DIGEST}.lock"]
    assert len(site.requests) == 1


def test_many_threads_download_once(site: Site, cache: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: get(site.url, cache), range(8))) == {BODY}
    assert len(site.requests) == 1


def test_a_file_under_a_second_name_does_not_disturb_the_first(site: Site, cache: Path) -> None:
    get(site.url, cache)
    get(f"{site.origin}/mirror.zip", cache)
    assert kept(cache) == {f"{DIGEST}/corpus.zip", f"{DIGEST}/mirror.zip"}
