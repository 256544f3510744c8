"""Fetches a file that a SHA-256 pins, and takes a member out of a zip.

    CACHE/DIGEST/NAME               the file, whole and verified
    CACHE/DIGEST.part               what a broken-off download has so far; the next one goes on from there
    CACHE/DIGEST.lock               held by the one process that downloads
    CACHE/DIGEST.mismatch-ACTUAL    what came instead of the pinned bytes

A zip is unpacked beside itself, into a folder whose name is a digest of the zip's bytes and of the member's name.
"""

import contextlib
import errno
import logging
import lzma
import os
import re
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

import httpx
from filelock import FileLock, Timeout

from tasks.core.errors import DataRejected, UnreachableError, UsageError, VerdictError
from tasks.core.files import atomic_directory, json_digest, sha256_of

MAX_RETRY_DELAY_S = 60.0  # seconds between two attempts; a server that asks for more is given up
MAX_FILE_NAME = 200  # bytes; file systems allow 255
MAX_LISTED_MEMBERS = 8  # members of a zip that a message names
MEMBER_ROOT = "."  # how the top of a zip is named as a folder

log = logging.getLogger(__name__)


class RetryPolicy(NamedTuple):
    """How long a download is tried; times in seconds, and each pause is twice the one before."""

    attempts: int = 4
    timeout: float = 30.0
    pause: float = 1.0


DEFAULT_RETRIES = RetryPolicy()


class _Failed(Exception):
    """An attempt failed, another may not; `wait` is the pause in seconds that the server asked for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def download(
    url: str, sha256: str, cache: str, *, offline: bool = False, patience: RetryPolicy = DEFAULT_RETRIES
) -> str:
    """Return the path of a file with these bytes in the cache, downloading it when it is not there.

    Proxies come from HTTP_PROXY, HTTPS_PROXY and NO_PROXY.

    Args:
        url: an http or https address; redirects are followed.
        sha256: the digest of the bytes, in hex.
        cache: the folder that keeps downloads.
        offline: take the cached file or fail, without any request.
        patience: attempts, time-out and first pause.

    Raises:
        WrongUsage: if the address or the digest cannot be meant, or the server refuses it (4xx).
        Unreachable: if no attempt brought the file, or it is not cached and offline is asked for.
        DataRefused: if the bytes are not the pinned ones.
        VerdictError: if the cache cannot be written.
    """
    address, digest = _checked(url, sha256)
    folder = Path(cache)
    file = folder / digest / _file_name(address)
    try:
        if _intact(file, digest):
            return str(file)
        if offline:
            raise UnreachableError(
                f"{_redacted(address)} has no intact copy in cache folder {cache!r} and offline is asked for; "
                f"expected it as {file}; put the file there or run once with network"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{digest}.lock"):
            if not _intact(file, digest):  # another process may have brought it while this one waited
                part = folder / f"{digest}.part"
                _download_verified(part, address, digest, patience)
                file.parent.mkdir(exist_ok=True)
                part.replace(file)
    except OSError as error:
        raise VerdictError(
            f"{_redacted(address)} cannot be kept in cache folder {cache!r} ({_one_line(error)}); "
            "expected a folder that can be written, with space; free some or name another"
        ) from error
    return str(file)


def extract_member(archive: str, member: str) -> str:
    """Return the path of a member that was taken out of a zip; a second call extracts nothing.

    Members that point out of the zip, symbolic links and what macOS adds are treated as not there.

    Args:
        archive: the zip.
        member: a file, or a folder of which the files directly under it are taken; "." is the zip's top. Empty for
            the only file, or else the only folder, that there is.

    Raises:
        WrongUsage: if the zip or the member is not there, or an empty name could mean several.
        DataRefused: if the zip is damaged or encrypted, or is none.
        VerdictError: if the files cannot be written beside the zip.
    """
    source = Path(archive)
    if not source.is_file():
        raise UsageError(f"zip file {archive!r} does not exist; expected the path of a zip; name another")
    try:
        with zipfile.ZipFile(source) as opened:
            members = _members(opened)
            wanted = _resolved(archive, members, member)
            place = source.parent / json_digest([sha256_of(source), wanted])[:32]
            target = place / (PurePosixPath(wanted).name or "files")
            if not target.exists():
                with _locked(place.with_suffix(".lock")):
                    if not target.exists():
                        _extract(opened, members, wanted, target)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError) as error:
        raise DataRejected(_damage(archive, error)) from error
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # from bz2, and from seeking to where a damaged index points
            raise DataRejected(_damage(archive, error)) from error
        raise VerdictError(
            f"{archive} cannot be unpacked beside itself ({_one_line(error)}); "
            "expected a folder that can be written, with space; free some or copy the zip elsewhere"
        ) from error
    return str(target)


def _checked(url: str, sha256: str) -> tuple[httpx.URL, str]:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UsageError(f"SHA-256 {sha256!r} is not 64 hex characters; expected what this prints: sha256sum FILE")
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"address {url!r} is no URL ({error}); expected https://HOST/FILE") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise UsageError(f"address {url!r} cannot be downloaded from; expected https://HOST/FILE")
    return address, sha256.lower()


def _file_name(address: httpx.URL) -> str:
    """Return the last part of the path, without anything that could lead to another folder."""
    name = "".join(filter(str.isprintable, PureWindowsPath(address.path).name))
    name = name.encode()[-MAX_FILE_NAME:].decode(errors="ignore")  # its end tells the format
    return "download" if name in ("", ".", "..") else name


def _redacted(address: httpx.URL) -> str:
    """Return the address without user and password."""
    return str(address.copy_with(userinfo=b""))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _intact(file: Path, digest: str) -> bool:
    return file.is_file() and sha256_of(file) == digest


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock over the block, waiting as long as another process works."""
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


def _download_verified(part: Path, address: httpx.URL, digest: str, patience: RetryPolicy) -> None:
    """Bring the part file to the pinned bytes.

    Raises:
        DataRefused: if others come; they are moved aside.
    """
    if _intact(part, digest):  # an earlier process was killed between the last byte and the rename
        return
    with _client(patience) as client:
        resumed = _download_with_retries(client, address, part, patience)
        if resumed and not _intact(part, digest):
            log.info("%s went on from bytes that do not fit; starting over", _redacted(address))
            part.unlink()
            _download_with_retries(client, address, part, patience)
    found = sha256_of(part)
    if found != digest:
        kept = part.with_suffix(f".mismatch-{found[:12]}")
        part.replace(kept)
        raise DataRejected(
            f"{_redacted(address)} has SHA-256 {found}, expected {digest}; the file is kept at {kept}; "
            "look at it, then correct the address, or the digest if these are the right bytes"
        )


def _client(patience: RetryPolicy) -> httpx.Client:
    try:
        return httpx.Client(follow_redirects=True, timeout=patience.timeout)
    except (httpx.InvalidURL, ValueError, ImportError, OSError) as error:
        raise UsageError(
            f"the environment's network settings cannot be used ({_one_line(error)}); expected http://HOST:PORT: "
            "check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
        ) from error


def _download_with_retries(client: httpx.Client, address: httpx.URL, part: Path, patience: RetryPolicy) -> bool:
    """Complete the part file, in several attempts if need be; return whether it goes on from earlier bytes.

    Raises:
        Unreachable: if no attempt came to the end.
    """
    attempt, pause = 1, patience.pause
    while True:
        try:
            return _attempt(client, address, part)
        except httpx.TimeoutException:
            why, wait = f"nothing came for {patience.timeout:g} s", 0.0
        except (httpx.TooManyRedirects, httpx.UnsupportedProtocol) as error:
            raise UsageError(
                f"{_redacted(address)} redirects to no file ({_one_line(error)}); expected 200 OK with the file; "
                "check the address"
            ) from error
        except (httpx.RequestError, UnicodeError, _Failed) as error:  # UnicodeError: a host that no resolver takes
            why, wait = _one_line(error), getattr(error, "wait", 0.0)
        if attempt >= patience.attempts or wait > MAX_RETRY_DELAY_S:
            have = _size(part)
            raise UnreachableError(
                f"{_redacted(address)} did not deliver the file in {attempt} of {patience.attempts} attempts "
                f"(the last one: {why}); check the network and the proxy (HTTPS_PROXY), then run again"
                + (f": it goes on from byte {have}" if have else "")
            )
        attempt, wait, pause = attempt + 1, min(max(wait, pause), MAX_RETRY_DELAY_S), pause * 2
        log.info("%s: %s; attempt %d of %d in %g s", _redacted(address), why, attempt, patience.attempts, wait)
        time.sleep(wait)


def _attempt(client: httpx.Client, address: httpx.URL, part: Path) -> bool:
    """Ask once for the bytes that the part file lacks; return whether it goes on from earlier ones."""
    have = _size(part)
    # The digest is of the file as it is stored, not as a server may compress it on the way.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", address, headers=headers) as response:
        start, total = _extent(response)
        if response.status_code == 200 or (response.status_code == 206 and start == have):
            log.info("downloading %s%s (%s)", _redacted(address), f" from byte {start} on" if start else "", total)
            _write(response, part, start)
            return start > 0
        if not (have and response.status_code in (206, 416)):
            raise _failure(response, address)
    log.info("%s does not go on from byte %d; starting over", _redacted(address), have)
    part.unlink()
    return _attempt(client, address, part)


def _extent(response: httpx.Response) -> tuple[int, str]:
    """Return the first byte that an answer brings (-1 when it does not say) and the size of the file in words."""
    if response.status_code == 206:
        found = re.match(r"bytes (\d{1,18})-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        start, total = (int(found[1]), found[2]) if found else (-1, "*")
    else:
        start, total = 0, response.headers.get("Content-Length", "*")
    return start, "size unknown" if total == "*" else f"{total} bytes"


def _write(response: httpx.Response, part: Path, start: int) -> None:
    """Put the body at the end of the part file, or into a new one, so that a kill loses nothing that came."""
    with part.open("ab" if start else "wb") as stream:
        for chunk in response.iter_raw():
            stream.write(chunk)
            stream.flush()
        os.fsync(stream.fileno())


def _failure(response: httpx.Response, address: httpx.URL) -> Exception:
    """Return the error for an answer that is no file: one that another attempt may not meet, or a final one."""
    answer = f"{response.status_code} {response.reason_phrase}".strip()
    if response.status_code >= 500 or response.status_code in (206, 429):
        asked = response.headers.get("Retry-After", "")
        wait = float(asked) if asked.isdecimal() else 0.0
        return _Failed(f"it answered {answer}" + (f" and asks to wait {wait:g} s" if wait else ""), wait)
    return UsageError(
        f"{_redacted(address)} answered {answer}; expected 200 OK with the file; "
        "check the address and that it may be read without signing in"
    )


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _damage(archive: str, error: Exception) -> str:
    return f"{archive} is no zip or is damaged ({_one_line(error)}); expected a whole zip; download or copy it again"


def _members(opened: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the files of a zip by their names with forward slashes, without those that nobody should take."""
    found = {}
    for info in opened.infolist():
        path = PureWindowsPath(info.filename)  # it knows both slashes and drives
        outside = path.anchor or ".." in path.parts
        junk = "__MACOSX" in path.parts or path.name.startswith("._") or path.name == ".DS_Store"
        link = stat.S_ISLNK(info.external_attr >> 16)
        if path.name and not (info.is_dir() or outside or junk or link):
            found[path.as_posix()] = info
    return found


def _folder_of(name: str) -> str:
    return str(PurePosixPath(name).parent)


def _resolved(archive: str, members: dict[str, zipfile.ZipInfo], member: str) -> str:
    """Return the name of the file or folder that is meant.

    Raises:
        WrongUsage: if there is none, or several.
    """
    folders = {_folder_of(name) for name in members}
    if member:
        wanted = PureWindowsPath(member).as_posix()
        if wanted in members or wanted in folders:
            return wanted
        problem = f"no member {member!r}"
    else:
        for only in (list(members), [folder for folder in folders if folder != MEMBER_ROOT]):
            if len(only) == 1:
                return only[0]
        problem = "no single file or folder"
    there = [*sorted(f"{folder}/" for folder in folders), *sorted(members)]
    shown = ", ".join(map(repr, there[:MAX_LISTED_MEMBERS])) or "no file"
    more = f" and {len(there) - MAX_LISTED_MEMBERS} more" if len(there) > MAX_LISTED_MEMBERS else ""
    raise UsageError(f"{archive} holds {problem}; it holds {shown}{more}; name one of them")


def _extract(opened: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], wanted: str, target: Path) -> None:
    """Write a file, or the files directly under a folder, as the folder that holds the target.

    Raises:
        DataRefused: if a file is encrypted.
    """
    single = wanted in members
    names = [wanted] if single else [name for name in members if _folder_of(name) == wanted]
    with atomic_directory(target.parent) as place:
        inside = place if single else place / target.name
        inside.mkdir(exist_ok=True)
        for name in names:
            if members[name].flag_bits & 1:
                raise DataRejected(
                    f"{opened.filename} is encrypted ({name!r}); expected a zip without password; unpack it yourself"
                )
            # Only the base name is used, so nothing lands outside.
            with opened.open(members[name]) as stream, (inside / PurePosixPath(name).name).open("xb") as copy:
                shutil.copyfileobj(stream, copy)
