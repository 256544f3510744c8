"""Downloads a file that a SHA-256 pins, into a cache; an interrupted download is resumed.

CACHE/DIGEST/NAME               the complete, verified file
CACHE/DIGEST.part               the bytes of an interrupted download
CACHE/DIGEST.lock               held by the process that downloads
CACHE/DIGEST.mismatch-ACTUAL    a file with another digest than the pinned one
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import httpx
import tenacity
from filelock import FileLock, Timeout

from tasks.core.errors import DataRejected, UnreachableError, UsageError, VerdictError, first_line
from tasks.core.files import sha256_of
from tasks.core.hidden_addresses import reveal
from tasks.core.printable import redact_address

MAX_RETRY_DELAY_S = 60.0  # with a longer Retry-After the download fails at once
MAX_FILE_NAME = 200  # bytes; file systems allow 255

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how patiently a download is tried."""

    attempts: int = 4
    timeout: float = 30.0
    """Seconds without a byte from the server, after which an attempt fails."""
    pause: float = 1.0
    """Seconds before the second attempt; doubled for each further one."""


DEFAULT_RETRIES = RetryPolicy()


class _RetryableError(Exception):
    """An attempt failed for a reason that may pass; `wait` is the server's Retry-After in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def download(url: str, sha256: str, cache: str, *, offline: bool = False, policy: RetryPolicy = DEFAULT_RETRIES) -> str:
    """Return the path of a file with these bytes in the cache, downloading it when it is not there.

    Proxies come from HTTP_PROXY, HTTPS_PROXY and NO_PROXY.

    Args:
        url: an http or https address, its secrets hidden or not; redirects are followed.
        sha256: the digest of the bytes, in hex.
        cache: cache folder.
        offline: make no request.
        policy: attempts, timeout and pause between attempts.

    Raises:
        UsageError: if the address or the digest is malformed, or the server rejects the request (4xx).
        UnreachableError: if all attempts failed, or the file is not cached while offline.
        DataRejected: if the bytes are not the pinned ones.
        VerdictError: if the cache cannot be written.
    """
    address, digest = _parse(url, sha256)
    folder = Path(cache)
    file = folder / digest / _file_name(address)
    try:
        if _is_intact(file, digest):
            return str(file)
        if offline:
            raise UnreachableError(
                f"{_redacted(address)} has no intact copy in cache folder {cache!r} and offline mode is on; "
                f"expected it as {file}; put the file there or run once with network"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{digest}.lock"):
            if not _is_intact(file, digest):  # another process may have downloaded it meanwhile
                part = folder / f"{digest}.part"
                _download_verified(part, address, digest, policy)
                file.parent.mkdir(exist_ok=True)
                part.replace(file)
    except OSError as error:
        raise VerdictError(
            f"{_redacted(address)} cannot be stored in cache folder {cache!r} ({first_line(error)}); "
            "expected a writable folder with free space; free some or name another"
        ) from error
    return str(file)


def _parse(url: str, sha256: str) -> tuple[httpx.URL, str]:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UsageError(f"SHA-256 {sha256!r} is not 64 hex characters; expected what this prints: sha256sum FILE")
    try:
        address = httpx.URL(reveal(url))
    except httpx.InvalidURL:  # whose message may quote a password
        raise UsageError(
            f"address {redact_address(url)!r} is no URL; expected https://HOST/FILE, in a password %40 for @, %2F for /"
        ) from None
    if address.scheme not in ("http", "https") or not address.host:
        raise UsageError(f"address {redact_address(url)!r} cannot be downloaded from; expected https://HOST/FILE")
    return address, sha256.lower()


def _file_name(address: httpx.URL) -> str:
    """Return the last part of the path, without anything that could lead to another folder."""
    name = "".join(filter(str.isprintable, PureWindowsPath(address.path).name))
    name = name.encode()[-MAX_FILE_NAME:].decode(errors="ignore")  # the end holds the suffix, thus the format
    return "download" if name in ("", ".", "..") else name


def _redacted(address: httpx.URL) -> str:
    """Return the address as messages name it."""
    return redact_address(str(address))


def _is_intact(file: Path, digest: str) -> bool:
    return file.is_file() and sha256_of(file) == digest


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock over the block; log if another process holds it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that holds %s", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download_verified(part: Path, address: httpx.URL, digest: str, policy: RetryPolicy) -> None:
    """Download the pinned bytes into the part file.

    Raises:
        DataRejected: if the bytes are others; they are moved to a .mismatch file.
    """
    if _is_intact(part, digest):  # an earlier process was killed between the last byte and the rename
        return
    with _client(policy) as client:
        resumed = _download_with_retries(client, address, part, policy)
        if resumed and not _is_intact(part, digest):
            log.info("%s was resumed from bytes that do not fit; starting over", _redacted(address))
            part.unlink()
            _download_with_retries(client, address, part, policy)
    found = sha256_of(part)
    if found != digest:
        mismatch = part.with_suffix(f".mismatch-{found[:12]}")
        part.replace(mismatch)
        raise DataRejected(
            f"{_redacted(address)} has SHA-256 {found}, expected {digest}; the file is kept at {mismatch}; "
            "look at it, then correct the address, or the digest if these are the right bytes"
        )


def _client(policy: RetryPolicy) -> httpx.Client:
    try:
        return httpx.Client(follow_redirects=True, timeout=policy.timeout)
    except (httpx.InvalidURL, ValueError, ImportError, OSError) as error:  # its message may quote a password
        raise UsageError(
            f"the environment's network settings cannot be used ({type(error).__name__}); expected http://HOST:PORT: "
            "check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
        ) from None


def _download_with_retries(client: httpx.Client, address: httpx.URL, part: Path, policy: RetryPolicy) -> bool:
    """Complete the part file; return whether it was resumed from earlier bytes.

    Raises:
        UsageError: if the server's answer is final.
        UnreachableError: if all attempts failed.
    """
    backoff = tenacity.wait_exponential(multiplier=policy.pause, max=MAX_RETRY_DELAY_S)

    def log_retry(state: tenacity.RetryCallState) -> None:
        following = f"attempt {state.attempt_number + 1} of {policy.attempts} in {state.upcoming_sleep:g} s"
        log.info("%s: %s; %s", _redacted(address), _failure(state), following)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_RetryableError),
        wait=lambda state: max(_failure(state).wait, backoff(state)),
        stop=lambda state: state.attempt_number >= policy.attempts or _failure(state).wait > MAX_RETRY_DELAY_S,
        before_sleep=log_retry,
    )
    try:
        return retrying(_attempt, client, address, part, policy.timeout)
    except tenacity.RetryError as error:
        last, have = error.last_attempt, _size(part)
        raise UnreachableError(
            f"{_redacted(address)} did not deliver the file in {last.attempt_number} of {policy.attempts} attempts "
            f"(the last one: {last.exception()}); check the network and the proxy (HTTPS_PROXY), then run again"
            + (f": it resumes from byte {have}" if have else "")
        ) from error


def _failure(state: tenacity.RetryCallState) -> _RetryableError:
    """Return the error of the attempt that just failed."""
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, _RetryableError)
    return error


def _attempt(client: httpx.Client, address: httpx.URL, part: Path, timeout: float) -> bool:
    """Make one attempt; return whether it was resumed from earlier bytes.

    Raises:
        _RetryableError: if another attempt may succeed.
        UsageError: if none will.
    """
    try:
        return _request(client, address, part)
    except httpx.TimeoutException as error:
        raise _RetryableError(f"nothing came for {timeout:g} s") from error
    except (httpx.TooManyRedirects, httpx.UnsupportedProtocol) as error:
        raise UsageError(
            f"{_redacted(address)} redirects to no file ({first_line(error)}); expected 200 OK with the file; "
            "check the address"
        ) from error
    except (httpx.RequestError, UnicodeError) as error:  # UnicodeError: a host name that IDNA cannot encode
        raise _RetryableError(first_line(error)) from error


def _request(client: httpx.Client, address: httpx.URL, part: Path) -> bool:
    """Request the bytes that the part file lacks; return whether it was resumed from earlier ones."""
    have = _size(part)
    # The digest is of the file as stored, so the server must not compress it.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", address, headers=headers) as response:
        start, total = _content_range(response)
        if response.status_code == 200 or (response.status_code == 206 and start == have):
            log.info("downloading %s%s (%s)", _redacted(address), f" from byte {start} on" if start else "", total)
            _append(response, part, start)
            return start > 0
        if not (have and response.status_code in (206, 416)):
            raise _refusal(response, address)
    log.info("%s cannot be resumed from byte %d; starting over", _redacted(address), have)
    part.unlink()
    return _request(client, address, part)


def _content_range(response: httpx.Response) -> tuple[int, str]:
    """Return the first byte of a response's body (-1 if unknown) and the size of the complete file as text."""
    if response.status_code == 206:
        found = re.match(r"bytes (\d{1,18})-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        start, total = (int(found[1]), found[2]) if found else (-1, "*")
    else:
        start, total = 0, response.headers.get("Content-Length", "*")
    return start, "size unknown" if total == "*" else f"{total} bytes"


def _append(response: httpx.Response, part: Path, start: int) -> None:
    """Append the body to the part file (or begin a new one), flushing so that a killed process loses no byte."""
    with part.open("ab" if start else "wb") as stream:
        for chunk in response.iter_raw():
            stream.write(chunk)
            stream.flush()
        os.fsync(stream.fileno())


def _refusal(response: httpx.Response, address: httpx.URL) -> Exception:
    """Return the error for a response without a file: retryable for 429, 5xx and a wrong range, otherwise final."""
    answer = f"{response.status_code} {response.reason_phrase}".strip()
    if response.status_code >= 500 or response.status_code in (206, 429):
        retry_after = response.headers.get("Retry-After", "")
        wait = float(retry_after) if retry_after.isdecimal() else 0.0
        return _RetryableError(f"it answered {answer}" + (f" with Retry-After {wait:g} s" if wait else ""), wait)
    return UsageError(
        f"{_redacted(address)} answered {answer}; expected 200 OK with the file; "
        "check the address and that it may be read without signing in"
    )


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
