"""Downloads come whole and verified or not at all, go on where they stopped, and a zip is unpacked in its place."""

import errno
import hashlib
import logging
import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tasks.core.errors import DataRejected, UnreachableError, UsageError, VerdictError
from tasks.data.download import MAX_LISTED_MEMBERS, RetryPolicy, download, extract_member

ROOT = Path(__file__).parents[2]
BODY = random.Random(0).randbytes(200_000)
DIGEST = hashlib.sha256(BODY).hexdigest()
OTHER = BODY[::-1]
OTHER_DIGEST = hashlib.sha256(OTHER).hexdigest()
HALF = 100_000
QUICK = RetryPolicy(attempts=3, timeout=10.0, pause=0.001)
ONCE = QUICK._replace(attempts=1)
STEP = RetryPolicy(attempts=2, timeout=0.2, pause=0.001)
FETCH = "import sys; from tasks.data.download import fetch; print(fetch(*sys.argv[1:]))"


class Request(NamedTuple):
    """What a client asked for."""

    target: str
    range: str | None


class Handler(BaseHTTPRequestHandler):
    """Does the next step of its server's plan."""

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
        """The first byte that is asked for."""
        return int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))


Step = Callable[[Handler], None]


class Site(ThreadingHTTPServer):
    """A web server that answers each request by the next step of a plan; the last step is for all that follow."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[Step] = [ranged]
        self.asked: list[Request] = []
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
        return [request.range for request in self.asked]

    def next_step(self, request: Request) -> Step:
        with self.lock:
            self.asked.append(request)
            return self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]


def whole(handler: Handler) -> None:
    """Send everything, whatever was asked."""
    handler.head(200, Content_Length=len(BODY))
    handler.wfile.write(BODY)


def ranged(handler: Handler) -> None:
    """Send what was asked for, as a server with ranges does."""
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
    """Send other bytes of the same length, from where it was asked."""
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
    """What the module logs; the command's own handlers do not reach pytest's."""
    logger = logging.getLogger("tasks.data.download")
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler, level = Keep(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield said
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which nobody waits for."""
    taken: list[float] = []
    monkeypatch.setattr("tasks.data.download.time.sleep", taken.append)
    return taken


def get(url: str, cache: Path, patience: RetryPolicy = QUICK, **options: Any) -> bytes:
    path = Path(download(url, DIGEST, str(cache), patience=patience, **options))
    assert path.parent == cache / DIGEST
    return path.read_bytes()


def refusal(kind: type[VerdictError], url: str, cache: Path, patience: RetryPolicy = QUICK, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        get(url, cache, patience, **options)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def kept(cache: Path) -> set[str]:
    """Return what lies in the cache; a lock says nothing."""
    return {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()} - {f"{DIGEST}.lock"}


def leave_part(cache: Path, content: bytes) -> None:
    cache.mkdir()
    (cache / f"{DIGEST}.part").write_bytes(content)


# A download that goes well.


def test_a_file_comes_under_its_digest_and_name(site: Site, cache: Path, lines: list[str]) -> None:
    assert download(site.url, DIGEST, str(cache), patience=QUICK) == f"{cache}/{DIGEST}/corpus.zip"
    assert (cache / DIGEST / "corpus.zip").read_bytes() == BODY
    assert kept(cache) == {f"{DIGEST}/corpus.zip"}
    assert site.asked == [Request("/files/corpus.zip", None)]
    assert lines == [f"downloading {site.url} (200000 bytes)"]


def test_a_cached_file_makes_no_request(site: Site, cache: Path, lines: list[str]) -> None:
    get(site.url, cache)
    lines.clear()
    assert get(site.url, cache) == BODY
    assert len(site.asked) == 1
    assert lines == []


def test_a_digest_may_be_written_in_capitals(site: Site, cache: Path) -> None:
    assert download(site.url, DIGEST.upper(), str(cache)) == str(cache / DIGEST / "corpus.zip")


def test_a_cached_file_that_changed_is_fetched_anew(site: Site, cache: Path) -> None:
    get(site.url, cache)
    (cache / DIGEST / "corpus.zip").write_bytes(BODY[:-1] + b"?")
    assert get(site.url, cache) == BODY
    assert len(site.asked) == 2


def test_a_length_need_not_be_told(site: Site, cache: Path, lines: list[str]) -> None:
    site.plan = [without_length]
    assert get(site.url, cache) == BODY
    assert lines == [f"downloading {site.url} (size unknown)"]


def test_bytes_are_asked_for_as_they_are_stored(site: Site, cache: Path) -> None:
    accepted: list[str] = []

    def send(handler: Handler) -> None:
        accepted.append(handler.headers["Accept-Encoding"])
        whole(handler)

    site.plan = [send]
    get(site.url, cache)
    assert accepted == ["identity"]


def test_a_redirect_is_followed_and_the_file_keeps_the_name_that_was_asked(site: Site, cache: Path) -> None:
    site.plan = [answer(302, Location="/elsewhere/blob"), ranged]
    assert download(site.url, DIGEST, str(cache)) == str(cache / DIGEST / "corpus.zip")
    assert [request.target for request in site.asked] == ["/files/corpus.zip", "/elsewhere/blob"]


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
        path = download(site.url, digest, str(cache), patience=QUICK)
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()
    assert Path(path).stat().st_size == count << 20


# Going on.


def test_a_cut_off_download_is_resumed_where_it_stopped(site: Site, cache: Path, lines: list[str]) -> None:
    site.plan = [cut, ranged]
    assert get(site.url, cache) == BODY
    assert site.ranges == [None, "bytes=100000-"]
    assert lines[0] == f"downloading {site.url} (200000 bytes)"
    assert re.fullmatch(rf"{site.url}: peer closed connection .*; attempt 2 of 3 in 0\.001 s", lines[1])
    assert lines[2] == f"downloading {site.url} from byte 100000 on (200000 bytes)"


def test_a_later_call_goes_on_too(site: Site, cache: Path) -> None:
    site.plan = [cut, ranged]
    message = refusal(UnreachableError, site.url, cache, ONCE)
    assert message.endswith("then run again: it goes on from byte 100000")
    assert kept(cache) == {f"{DIGEST}.part"}
    assert get(site.url, cache, ONCE) == BODY
    assert site.ranges == [None, "bytes=100000-"]
    assert kept(cache) == {f"{DIGEST}/corpus.zip"}


def test_a_killed_download_is_resumed_by_the_next_call(site: Site, cache: Path) -> None:
    site.plan = [dribble, ranged]
    part = cache / f"{DIGEST}.part"
    with subprocess.Popen([sys.executable, "-c", FETCH, site.url, DIGEST, str(cache)], cwd=ROOT) as process:
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
def test_an_answer_that_does_not_continue_starts_over(
    site: Site, cache: Path, lines: list[str], pauses: list[float], step: Step
) -> None:
    leave_part(cache, BODY[:HALF])
    site.plan = [step, ranged]
    assert get(site.url, cache, ONCE) == BODY
    assert site.ranges == ["bytes=100000-", None]
    assert lines[0] == f"{site.url} does not go on from byte 100000; starting over"
    assert pauses == []


def test_a_part_longer_than_the_file_starts_over(site: Site, cache: Path) -> None:
    leave_part(cache, BODY + b"more")
    assert get(site.url, cache, ONCE) == BODY
    assert site.ranges == ["bytes=200004-", None]


def test_an_empty_part_asks_for_everything(site: Site, cache: Path) -> None:
    leave_part(cache, b"")
    assert get(site.url, cache) == BODY
    assert site.ranges == [None]


def test_a_part_that_is_complete_makes_no_request(site: Site, cache: Path) -> None:
    leave_part(cache, BODY)
    assert get(site.url, cache) == BODY
    assert site.asked == []
    assert kept(cache) == {f"{DIGEST}/corpus.zip"}


# Other bytes than the pinned ones.


def test_a_stale_part_costs_one_download_from_the_start(site: Site, cache: Path, lines: list[str]) -> None:
    leave_part(cache, OTHER[:HALF])
    assert get(site.url, cache) == BODY
    assert site.ranges == ["bytes=100000-", None]
    assert lines[1] == f"{site.url} went on from bytes that do not fit; starting over"
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
    assert len(site.asked) == 1


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


# Servers that fail.


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
    assert len(site.asked) == 1
    assert kept(cache) == set()


def test_a_refusing_status_leaves_the_part_for_later(site: Site, cache: Path) -> None:
    leave_part(cache, BODY[:HALF])
    site.plan = [answer(403)]
    refusal(UsageError, site.url, cache)
    assert kept(cache) == {f"{DIGEST}.part"}


def test_a_server_that_recovers_is_asked_again(site: Site, cache: Path, lines: list[str]) -> None:
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
    assert len(site.asked) == 3


def test_pauses_grow_up_to_a_minute(site: Site, cache: Path, pauses: list[float]) -> None:
    site.plan = [answer(503)]
    refusal(UnreachableError, site.url, cache, RetryPolicy(attempts=5, timeout=10, pause=10))
    assert pauses == [10, 20, 40, 60]


@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_that_the_server_asks_for_is_kept(
    site: Site, cache: Path, pauses: list[float], lines: list[str], status: int
) -> None:
    site.plan = [answer(status, Retry_After=7), answer(status, Retry_After="soon"), ranged]
    assert get(site.url, cache) == BODY
    assert pauses == [7, 0.002]
    assert re.search(rf"it answered {status} [\w ]+ and asks to wait 7 s; attempt 2 of 3 in 7 s$", lines[0])


def test_a_server_that_asks_for_a_long_pause_is_given_up(site: Site, cache: Path, pauses: list[float]) -> None:
    site.plan = [answer(503, Retry_After=3600)]
    assert "in 1 of 3 attempts (the last one: it answered 503 Service Unavailable and asks to wait 3600 s);" in refusal(
        UnreachableError, site.url, cache
    )
    assert pauses == []


def test_a_stalled_download_is_given_up(site: Site, cache: Path) -> None:
    site.plan = [stall]
    assert refusal(UnreachableError, site.url, cache, STEP) == (
        f"{site.url} did not deliver the file in 2 of 2 attempts (the last one: nothing came for 0.2 s); "
        "check the network and the proxy (HTTPS_PROXY), then run again"
    )
    assert len(site.asked) == 2


def test_a_stall_is_overcome(site: Site, cache: Path) -> None:
    site.plan = [stall, ranged]
    assert get(site.url, cache, QUICK._replace(timeout=0.5)) == BODY


def test_a_closed_port_is_unreachable(cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert re.search(
        r"in 3 of 3 attempts \(the last one: .*Connection refused\); check the network",
        refusal(UnreachableError, f"http://127.0.0.1:{port}/x", cache),
    )


def test_a_host_that_cannot_be_one_is_unreachable(cache: Path) -> None:
    assert "label" in refusal(UnreachableError, f"http://{'a' * 300}.invalid/x", cache)


@pytest.mark.parametrize("target", ["/files/corpus.zip", "ftp://127.0.0.1/corpus.zip"])
def test_a_redirect_that_leads_nowhere_is_final(site: Site, cache: Path, target: str) -> None:
    site.plan = [answer(302, Location=target)]
    assert f"{site.url} redirects to no file (" in refusal(UsageError, site.url, cache)
    assert len(site.asked) <= 21


# Offline, wrong usage, proxies.


def test_offline_takes_what_is_cached(site: Site, cache: Path) -> None:
    get(site.url, cache)
    assert get(site.url, cache, offline=True) == BODY
    assert len(site.asked) == 1


@pytest.mark.parametrize("state", ["absent", "changed", "part"])
def test_offline_without_an_intact_file_says_where_it_belongs(site: Site, cache: Path, state: str) -> None:
    file = cache / DIGEST / "corpus.zip"
    if state == "changed":
        file.parent.mkdir(parents=True)
        file.write_bytes(OTHER)
    if state == "part":
        leave_part(cache, BODY[:HALF])
    assert refusal(UnreachableError, site.url, cache, offline=True) == (
        f"{site.url} has no intact copy in cache folder '{cache}' and offline is asked for; "
        f"expected it as {file}; put the file there or run once with network"
    )
    assert site.asked == []


@pytest.mark.parametrize("digest", ["", "a" * 63, "a" * 65, "g" * 64, "a" * 64 + "\n"])
def test_a_digest_that_is_none_is_wrong_usage(cache: Path, digest: str) -> None:
    with pytest.raises(UsageError) as caught:
        download("http://127.0.0.1/x", digest, str(cache))
    assert str(caught.value) == (
        f"SHA-256 {digest!r} is not 64 hex characters; expected what this prints: sha256sum FILE"
    )
    assert not cache.exists()


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "file:///etc/hosts", "corpus.zip", "", "http://", "http:///x"])
def test_an_address_that_is_not_of_the_web_is_wrong_usage(cache: Path, url: str) -> None:
    assert refusal(UsageError, url, cache) == (f"address {url!r} cannot be downloaded from; expected https://HOST/FILE")
    assert not cache.exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:port/x", "http://127.0.0.1/a\nb", "http://[::1/x"])
def test_an_address_that_is_no_url_is_wrong_usage(cache: Path, url: str) -> None:
    message = refusal(UsageError, url, cache)
    assert message.startswith(f"address {url!r} is no URL (")
    assert message.endswith("); expected https://HOST/FILE")


def test_a_password_is_used_and_not_told(site: Site, cache: Path, lines: list[str]) -> None:
    seen: list[str] = []

    def need_password(handler: Handler) -> None:
        seen.append(handler.headers["Authorization"])
        handler.head(500)

    site.plan = [need_password]
    message = refusal(UnreachableError, site.url.replace("//", "//ann:secret@"), cache)
    assert message.startswith(f"{site.url} did not deliver")
    assert seen == ["Basic YW5uOnNlY3JldA=="] * 3
    assert "secret" not in message + "".join(lines)


def test_a_cache_that_cannot_be_written_is_told(site: Site, cache: Path) -> None:
    cache.write_text("a file")
    message = refusal(VerdictError, site.url, cache)
    assert message.startswith(f"{site.url} cannot be kept in cache folder '{cache}' ([Errno 17] File exists: ")
    assert message.endswith("expected a folder that can be written, with space; free some or name another")


def test_a_proxy_of_the_environment_is_asked(site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", site.origin)
    assert get("http://data.invalid/files/corpus.zip", cache) == BODY
    assert site.asked == [Request("http://data.invalid/files/corpus.zip", None)]


def test_a_host_without_proxy_is_asked_itself(site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    assert get(site.url, cache) == BODY
    assert site.asked == [Request("/files/corpus.zip", None)]


@pytest.mark.parametrize(("name", "value"), [("HTTP_PROXY", "gopher://h:1"), ("SSL_CERT_FILE", "/no/such.pem")])
def test_a_wrong_setting_of_the_environment_is_told(
    site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    message = refusal(UsageError, site.url, cache)
    assert message.startswith("the environment's network settings cannot be used (")
    assert name in message


# Several at once.


def test_two_processes_download_once_and_nobody_sees_half_a_file(site: Site, cache: Path, lines: list[str]) -> None:
    arrived, go = threading.Event(), threading.Event()

    def held(handler: Handler) -> None:
        handler.head(200, Content_Length=len(BODY))
        handler.wfile.write(BODY[:HALF])
        arrived.set()
        go.wait(60)
        handler.wfile.write(BODY[HALF:])

    site.plan = [held]
    command = [sys.executable, "-c", FETCH, site.url, DIGEST, str(cache)]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process,
        ThreadPoolExecutor() as pool,
    ):
        assert arrived.wait(60)
        waiting = pool.submit(get, site.url, cache)
        until = time.monotonic() + 30
        while not lines and time.monotonic() < until:
            time.sleep(0.01)
        assert kept(cache) == {f"{DIGEST}.part"}
        go.set()
        assert waiting.result() == BODY
        assert process.communicate()[0].strip() == str(cache / DIGEST / "corpus.zip")
    assert lines == [f"waiting for another process that holds {cache / DIGEST}.lock"]
    assert len(site.asked) == 1


def test_many_threads_download_once(site: Site, cache: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: get(site.url, cache), range(8))) == {BODY}
    assert len(site.asked) == 1


def test_a_file_under_a_second_name_does_not_disturb_the_first(site: Site, cache: Path) -> None:
    get(site.url, cache)
    get(f"{site.origin}/mirror.zip", cache)
    assert kept(cache) == {f"{DIGEST}/corpus.zip", f"{DIGEST}/mirror.zip"}


# Unpacking.

COLA = {
    "cola/README": b"read me",
    "cola/raw/train.tsv": b"raw train",
    "cola/raw/dev.tsv": b"raw dev",
    "cola/raw/old/train.tsv": b"older",
    "cola/tokenized/train.tsv": b"tokens",
}


def zipped(folder: Path, files: dict[str, bytes], name: str = "z.zip", method: int = zipfile.ZIP_DEFLATED) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w", method) as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    return str(folder / name)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def not_unpacked(kind: type[VerdictError], archive: str, member: str) -> str:
    """Return the message of a refusal, which leaves no file and no folder behind."""
    with pytest.raises(kind) as caught:
        extract_member(archive, member)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    beside = [path for path in Path(archive).parent.iterdir() if path.suffix != ".lock"]
    assert beside in ([Path(archive)], [])
    return str(caught.value)


def test_a_file_is_taken_out_of_a_zip(tmp_path: Path) -> None:
    path = Path(extract_member(zipped(tmp_path, COLA), "cola/raw/dev.tsv"))
    assert path.name == "dev.tsv"
    assert path.parent.parent == tmp_path
    assert re.fullmatch("[0-9a-f]{32}", path.parent.name)
    assert path.read_bytes() == b"raw dev"
    assert tree(path.parent) == {"dev.tsv": b"raw dev"}


@pytest.mark.parametrize("member", ["cola/raw", "cola/raw/", "./cola/raw", "cola\\raw"])
def test_a_folder_is_taken_with_the_files_directly_under_it(tmp_path: Path, member: str) -> None:
    path = Path(extract_member(zipped(tmp_path, COLA), member))
    assert path.name == "raw"
    assert tree(path.parent) == {"raw/train.tsv": b"raw train", "raw/dev.tsv": b"raw dev"}


def test_folders_that_a_zip_lists_itself_are_no_files(tmp_path: Path) -> None:
    archive = zipped(tmp_path, {"data/": b"", "data/deep/": b"", "data/a.tsv": b"a"})
    assert Path(extract_member(archive, "")).name == "a.tsv"
    assert [path.name for path in Path(extract_member(archive, "data")).iterdir()] == ["a.tsv"]


def test_the_top_of_a_zip_is_a_folder_with_a_name_of_its_own(tmp_path: Path) -> None:
    path = Path(extract_member(zipped(tmp_path, {"a.tsv": b"a", "b.tsv": b"b", "deep/c.tsv": b"c"}), "."))
    assert path.name == "files"
    assert tree(path) == {"a.tsv": b"a", "b.tsv": b"b"}


def test_a_second_call_extracts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(tmp_path, COLA)
    first = extract_member(archive, "cola/raw")
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    assert extract_member(archive, "cola/raw") == first


def test_members_and_zips_side_by_side_do_not_meet(tmp_path: Path) -> None:
    one, two = zipped(tmp_path, {"a": b"1", "b": b"2"}, "one.zip"), zipped(tmp_path, {"a": b"3"}, "two.zip")
    paths = [extract_member(one, "a"), extract_member(one, "b"), extract_member(two, "a")]
    assert [Path(path).read_bytes() for path in paths] == [b"1", b"2", b"3"]


def test_a_zip_that_changed_is_unpacked_anew(tmp_path: Path) -> None:
    assert Path(extract_member(zipped(tmp_path, {"a": b"old"}), "a")).read_bytes() == b"old"
    assert Path(extract_member(zipped(tmp_path, {"a": b"new"}), "a")).read_bytes() == b"new"


@pytest.mark.parametrize(
    ("files", "name", "content"),
    [
        ({"data/a.tsv": b"a", "data/b.tsv": b"b"}, "data", {"a.tsv": b"a", "b.tsv": b"b"}),
        ({"README": b"r", "data/a.tsv": b"a", "data/b.tsv": b"b"}, "data", {"a.tsv": b"a", "b.tsv": b"b"}),
        ({"top/data/a.tsv": b"a", "top/data/b.tsv": b"b"}, "data", {"a.tsv": b"a", "b.tsv": b"b"}),
    ],
)
def test_an_empty_name_is_the_only_folder(
    tmp_path: Path, files: dict[str, bytes], name: str, content: dict[str, bytes]
) -> None:
    path = Path(extract_member(zipped(tmp_path, files), ""))
    assert path.name == name
    assert tree(path) == content


@pytest.mark.parametrize("member", ["a.tsv", "data/a.tsv"])
def test_an_empty_name_is_the_only_file(tmp_path: Path, member: str) -> None:
    archive = zipped(tmp_path, {member: b"a", "__MACOSX/._a.tsv": b"junk", ".DS_Store": b"junk"})
    assert Path(extract_member(archive, "")).read_bytes() == b"a"
    assert extract_member(archive, "") == extract_member(archive, member)


@pytest.mark.parametrize(
    ("files", "there"),
    [
        (
            COLA,
            "'cola/', 'cola/raw/', 'cola/raw/old/', 'cola/tokenized/', 'cola/README', 'cola/raw/dev.tsv', "
            "'cola/raw/old/train.tsv', 'cola/raw/train.tsv' and 1 more",
        ),
        ({"a": b"", "b": b""}, "'./', 'a', 'b'"),
        ({}, "no file"),
    ],
)
def test_an_empty_name_that_could_be_several_lists_what_is_there(
    tmp_path: Path, files: dict[str, bytes], there: str
) -> None:
    archive = zipped(tmp_path, files)
    assert not_unpacked(UsageError, archive, "") == (
        f"{archive} holds no single file or folder; it holds {there}; name one of them"
    )


def test_a_missing_member_lists_some_that_are_there(tmp_path: Path) -> None:
    archive = zipped(tmp_path, {f"data/{number:02}.tsv": b"" for number in range(20)})
    there = ", ".join(["'data/'", *(f"'data/{number:02}.tsv'" for number in range(MAX_LISTED_MEMBERS - 1))])
    assert not_unpacked(UsageError, archive, "raw") == (
        f"{archive} holds no member 'raw'; it holds {there} and 13 more; name one of them"
    )


def test_a_folder_of_folders_alone_is_no_member(tmp_path: Path) -> None:
    archive = zipped(tmp_path, {"top/a/x": b"", "top/b/y": b""})
    assert "holds no member 'top'; it holds 'top/a/', 'top/b/', " in not_unpacked(UsageError, archive, "top")


def test_what_macos_adds_is_left_out(tmp_path: Path) -> None:
    files = {"data/a.tsv": b"a", "data/._a.tsv": b"j", "data/.DS_Store": b"j", "__MACOSX/data/._a.tsv": b"j"}
    assert tree(Path(extract_member(zipped(tmp_path, files), "data"))) == {"a.tsv": b"a"}


OUTSIDE = ["../evil", "/evil", "data/../../evil", "..\\evil", "\\evil", "C:\\evil", "C:evil", "data/.."]


def test_names_that_point_outside_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    archive = zipped(folder, dict.fromkeys(OUTSIDE, b"evil") | {"data/good": b"good"})
    path = Path(extract_member(archive, "data"))
    assert tree(path.parent) == {"data/good": b"good"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"evil"]


@pytest.mark.parametrize("member", [*OUTSIDE, "..", "/", "data/../data"])
def test_names_that_point_outside_cannot_be_asked_for(tmp_path: Path, member: str) -> None:
    archive = zipped(tmp_path / "a" / "b", dict.fromkeys(OUTSIDE, b"evil") | {"data/good": b"good"})
    assert f"holds no member {member!r}; it holds 'data/', 'data/good'; name" in not_unpacked(
        UsageError, archive, member
    )


def test_a_symbolic_link_is_no_member(tmp_path: Path) -> None:
    archive = zipped(tmp_path, {"data/good": b"good"})
    link = zipfile.ZipInfo("data/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(link, "/etc/hosts")
    assert "holds no member 'data/link'" in not_unpacked(UsageError, archive, "data/link")
    assert tree(Path(extract_member(archive, "data"))) == {"good": b"good"}


def test_a_member_with_other_bytes_than_its_checksum_is_refused(tmp_path: Path) -> None:
    path = Path(zipped(tmp_path, {"data/a": b"good", "data/b": b"bytes"}, method=zipfile.ZIP_STORED))
    path.write_bytes(path.read_bytes().replace(b"bytes", b"bites"))
    assert not_unpacked(DataRejected, str(path), "data") == (
        f"{path} is no zip or is damaged (Bad CRC-32 for file 'data/b'); "
        "expected a whole zip; download or copy it again"
    )


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_is_refused_whatever_the_compression(tmp_path: Path, method: int) -> None:
    path = Path(zipped(tmp_path, {"a": BODY}, method=method))
    raw = path.read_bytes()
    path.write_bytes(raw[:5_000] + bytes(5_000) + raw[10_000:])
    assert "is no zip or is damaged" in not_unpacked(DataRejected, str(path), "a")


@pytest.mark.parametrize("kept_bytes", [0, 1_000, -30])
def test_what_is_no_whole_zip_is_refused(tmp_path: Path, kept_bytes: int) -> None:
    path = Path(zipped(tmp_path, {"a": BODY}))
    path.write_bytes(path.read_bytes()[:kept_bytes])
    assert not_unpacked(DataRejected, str(path), "a") == (
        f"{path} is no zip or is damaged (File is not a zip file); expected a whole zip; download or copy it again"
    )


def test_random_damage_never_ends_in_another_error(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = Path(zipped(tmp_path, COLA))
    raw = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(raw)
        for _ in range(3):
            damaged[rng.randrange(len(raw))] = rng.randrange(256)
        path.write_bytes(damaged)
        with suppress(DataRejected, UsageError):
            extract_member(str(path), "cola/raw")


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = Path(zipped(tmp_path, {"data/a": b"secret"}))
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x03\x04") + 6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    assert not_unpacked(DataRejected, str(path), "data") == (
        f"{path} is encrypted ('data/a'); expected a zip without password; unpack it yourself"
    )


def test_a_zip_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    archive = str(tmp_path / "none.zip")
    assert not_unpacked(UsageError, archive, "a") == (
        f"zip file '{archive}' does not exist; expected the path of a zip; name another"
    )


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    archive = zipped(tmp_path, COLA)
    monkeypatch.setattr("tasks.data.download.shutil.copyfileobj", full)
    assert not_unpacked(VerdictError, archive, "cola/raw") == (
        f"{archive} cannot be unpacked beside itself ([Errno 28] No space left on device); "
        "expected a folder that can be written, with space; free some or copy the zip elsewhere"
    )


def test_threads_that_unpack_at_once_get_one_folder(tmp_path: Path) -> None:
    archive = zipped(tmp_path, COLA)
    with ThreadPoolExecutor(8) as pool:
        (path,) = set(pool.map(lambda _: extract_member(archive, "cola/raw"), range(8)))
    assert tree(Path(path)) == {"train.tsv": b"raw train", "dev.tsv": b"raw dev"}
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [Path(path).parent]


def test_a_fetched_zip_is_unpacked_in_the_cache(site: Site, tmp_path: Path) -> None:
    archive = Path(zipped(tmp_path / "made", COLA)).read_bytes()

    def send(handler: Handler) -> None:
        handler.head(200, Content_Length=len(archive))
        handler.wfile.write(archive)

    site.plan = [send]
    digest = hashlib.sha256(archive).hexdigest()
    path = Path(extract_member(download(site.url, digest, str(tmp_path / "cache")), "cola/raw"))
    assert path.parent.parent == tmp_path / "cache" / digest
    assert (path / "train.tsv").read_bytes() == b"raw train"
