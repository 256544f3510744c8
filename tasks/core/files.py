"""Atomic writes, JSON files, SHA-256 digests, and folders in which other processes write."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import VerdictError

# Of what another process has deleted or renamed, and of what `Path.rglob` passes over as well: no permission, links to
# nothing or to themselves.
_PASSED_OVER = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ELOOP}


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """Return the hex SHA-256 of a JSON value, independent of key order.

    The text is that of `json.dumps(sort_keys=True)` with CPython's form of floats. Digests are stored in registries, so
    it must not change.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@contextlib.contextmanager
def atomic_write(path: Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block ends without an exception.

    The data is synced to disk before the rename, so after a crash `path` is the old file or the complete new one.
    Without `sync` that holds for a crash of the process; after one of the machine the new file may be damaged, and its
    reader has to notice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    # mkstemp creates private files, but servers of other users read artifacts.
    temporary.chmod(0o644)
    try:
        yield temporary
        if sync:
            _fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` if the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent, ignore_cleanup_errors=True) as name:
        temporary = Path(name) / path.name
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _fsync(file)
        if path.exists():
            # A folder cannot be replaced in one call; the old one is moved aside and deleted with the temporary one.
            path.rename(Path(name) / "old")
        temporary.rename(path)


def remove_stale(folder: Path, prefix: str, seconds: float = 86_400) -> None:
    """Remove folders with a prefix that a killed process left more than `seconds` ago."""
    for path in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > seconds:
                shutil.rmtree(path)


def walk_files(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield each file at or below a path, and its status; what vanishes meanwhile is left out.

    Links to files count as files, links to folders are not followed.

    Raises:
        OSError: if the file system fails; what was found would be less than there is.
    """
    below = (Path(folder, name) for folder, _, names in os.walk(path, onerror=_pass_over) for name in names)
    for file in itertools.chain([path], below):
        try:
            status = file.stat()
        except OSError as error:
            _pass_over(error)
            continue
        if stat.S_ISREG(status.st_mode):
            yield file, status


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document atomically; NaN and Inf raise ValueError, because JSON has neither."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, remedy: str = "delete it and run again") -> Any:
    """Read a JSON document.

    Args:
        path: of the file.
        remedy: what the message advises; deleting is right for what a job writes again.

    Raises:
        VerdictError: if the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise VerdictError(f"{path} cannot be read as JSON ({error}); {remedy}") from error


def home_id(home: str) -> str:
    """Return the random id of a stores' folder, created at first use and kept in its file `name`.

    It tells the runs of one home from those of others, whatever the names of the hosts that share it.
    """
    path = Path(home) / "name"
    path.parent.mkdir(parents=True, exist_ok=True)
    while not path.is_file():
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".name.", encoding="utf-8") as stream:
            stream.write(uuid.uuid4().hex)
            stream.flush()
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(stream.name, path)
    return path.read_text(encoding="utf-8")


def write_checksummed(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object together with its digest."""
    write_json(path, content | {"digest": json_digest(content)})


def read_checksummed(path: Path) -> dict[str, Any]:
    """Read what `write_checksummed` wrote, without the digest.

    Raises:
        VerdictError: if the content does not have its digest.
    """
    content = read_json(path)
    digest = content.pop("digest", None) if isinstance(content, dict) else None
    if digest != json_digest(content):
        raise VerdictError(f"{path.name} does not have its recorded digest")
    return content


def _pass_over(error: OSError) -> None:
    if error.errno not in _PASSED_OVER:
        raise error


def _fsync(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
