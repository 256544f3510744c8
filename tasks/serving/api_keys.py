"""API keys: who may use the server, as a file of names and hashes that is read again when it changes.

    verdict api-key alice keys.txt          prints a new key once, and adds the line  alice sha256:HEX
    verdict serve --api-keys keys.txt

A client sends `Authorization: Bearer KEY`; a browser asks its user, and sends the key as the password of HTTP's Basic
scheme. Two lines of one name are two valid keys, so a key is changed by adding the new one before the old line goes.

The hash is plain SHA-256: keys are 256 random bits made here, which nobody can guess, so a slow hash with a salt, as
passwords chosen by people need, would protect nothing and cost each request its time.
"""

import base64
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tasks.core.errors import UsageError, VerdictError
from tasks.core.files import atomic_write
from tasks.serving.host_names import PROBE_PATHS

log = logging.getLogger(__name__)

KEY_PREFIX = "verdict_"  # by which scanners of source code find a key that was committed
KEY_BYTES = 32
KEY_LINE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._@-]{0,63})[ \t]+sha256:(?P<hash>[0-9a-f]{64})")
KEY_LOCK_TIMEOUT_S = 10.0  # to wait for another process that adds a key
KEY_FILE_POLL_S = 1.0  # between two looks at the file's time
KEY_NAME = "verdict.api_key"  # under which a request's scope has the name of its key


class ApiKeys:
    """The keys of a file."""

    def __init__(self, path: str) -> None:
        """Read the file.

        Raises:
            UsageError: if it cannot be read, or a line is none.
        """
        self._path, self._checked = Path(path), time.monotonic()
        self._stamp = _stamp(self._path)
        self._names = read_keys(self._path)

    def name_of(self, key: str) -> str | None:
        """Return whose key it is; None if it is nobody's. The time does not depend on how much of a hash is equal."""
        self._refresh()
        digest, found = hash_key(key), None
        for held, name in self._names.items():
            if hmac.compare_digest(held, digest):
                found = name
        return found

    def _refresh(self) -> None:
        """Read the file again if it changed; one that cannot be read leaves the keys as they are, and is logged."""
        if time.monotonic() < self._checked + KEY_FILE_POLL_S:
            return
        self._checked = time.monotonic()
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._names = read_keys(self._path)
        except UsageError as error:
            log.error("%s; the %d keys read before stay valid", error, len(self._names))
        else:
            log.info("%s: %d keys", self._path, len(self._names))


class ApiKeyCheck:
    """ASGI middleware that refuses requests without a valid key with status 401; probes of health pass."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with the name of its key, or refuse it."""
        if scope["type"] != "http" or scope["path"] in PROBE_PATHS:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        key = presented_key(headers.get("authorization", ""))
        name = self.keys.name_of(key) if key else None
        if name is not None:
            scope[KEY_NAME] = name
            await self.app(scope, receive, send)
            return
        what = "this API key is not valid" if key else "an API key is needed"
        asked = "Basic" if "text/html" in headers.get("accept", "") else "Bearer"  # a browser asks its user
        await JSONResponse(
            {"error": f"{what}; send the header Authorization: Bearer KEY"},
            401,
            {"WWW-Authenticate": f'{asked} realm="verdict"'},
        )(scope, receive, send)


def presented_key(authorization: str) -> str:
    """Return the key of an Authorization header, Bearer or the password of Basic; empty if it has none."""
    scheme, _, value = authorization.strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
    except ValueError:  # of base64 for other characters, or of UTF-8
        return ""


def hash_key(key: str) -> bytes:
    """Return the SHA-256 of a key."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def add_key(name: str, path: str, show: Callable[[str], None]) -> None:
    """Make a key, show it, and add its line to a file that only its owner can read; it is kept nowhere else.

    Args:
        name: of the client.
        path: of the file.
        show: called with the key before its line is written: a key that nobody has seen would be a line too many.

    Raises:
        UsageError: if the name cannot be one, or the file is not one of keys.
        VerdictError: if it cannot be written.
    """
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    line = f"{name} sha256:{hash_key(key).hex()}"
    if not KEY_LINE.fullmatch(line):
        raise UsageError(f"name {name!r} is refused; expected up to 64 letters, digits and . _ @ -")
    target = Path(path)
    if target.exists():
        if not target.is_file():
            raise UsageError(f"{path} is no file; name a file of keys, or a new one: verdict api-key {name} FILE")
        read_keys(target)  # a file of something else is refused before a lock appears beside it
    show(key)
    from filelock import FileLock, Timeout  # not in the inference image, whose keys are made elsewhere

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock", timeout=KEY_LOCK_TIMEOUT_S):  # two that read the same file lose a key
            _add_line(target, line)
    except Timeout:
        raise VerdictError(f"no key was made: another process holds {path}.lock; try again") from None
    except OSError as error:
        raise VerdictError(f"no key added: {path} cannot be written ({error.strerror}); name another file") from error


def _add_line(path: Path, line: str) -> None:
    """Write the file of keys with one more line; whoever calls holds its lock."""
    before: list[str] = []
    if path.exists():
        read_keys(path)
        before = path.read_text(encoding="utf-8").splitlines()
    with atomic_write(path) as temporary:
        temporary.chmod(0o600)
        temporary.write_text("\n".join([*before, line, ""]), encoding="utf-8")


def read_keys(path: Path) -> dict[bytes, str]:
    """Return the names of a file's keys by hash; empty lines and those that begin with # are comments.

    Raises:
        UsageError: if it cannot be read, holds no key, or a line is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{path} cannot be read ({reason}); make it: verdict api-key NAME {path}") from None
    names = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        found = KEY_LINE.fullmatch(line)
        if found is None:  # the line itself may be a key
            raise UsageError(f"{path}: line {number} is no line of `verdict api-key`; expected NAME sha256:HEX")
        names[bytes.fromhex(found["hash"])] = found["name"]
    if not names:
        raise UsageError(f"{path} holds no key; make one: verdict api-key NAME {path}")
    return names


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes with a file: time, size, inode; None where it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
