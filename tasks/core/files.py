"""Files that are whole or absent: digests, and writes that a kill cannot leave half done."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import VerdictError


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """Return the hex SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    The data is on disk before the rename, so after a crash `path` is the old file or the whole new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    # mkstemp makes private files; artifacts are read by servers that run as other users.
    temporary.chmod(0o644)
    try:
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent, ignore_cleanup_errors=True) as name:
        temporary = Path(name) / path.name
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _fsync(file)
        if path.exists():
            # A folder cannot be replaced in one call; the old one is moved aside and goes with the temporary one.
            path.rename(Path(name) / "old")
        temporary.rename(path)


def remove_stale(folder: Path, prefix: str, seconds: float = 86_400) -> None:
    """Remove folders of unfinished work that a killed process left more than so many seconds ago."""
    for path in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > seconds:
                shutil.rmtree(path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document, whole or not at all; NaN is refused because JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON document.

    Raises:
        VerdictError: if the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise VerdictError(f"{path} cannot be read as JSON ({error}); delete it and run again") from error


def home_id(home: str) -> str:
    """Return the name of a folder of stores, made up at first use.

    Runs of other machines have other homes; workers that share one have one name, whatever their hosts are called.
    """
    path = Path(home) / "name"
    path.parent.mkdir(parents=True, exist_ok=True)
    while not path.is_file():
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".name.", encoding="utf-8") as own:
            own.write(uuid.uuid4().hex)
            own.flush()
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(own.name, path)
    return path.read_text(encoding="utf-8")


def write_checksummed(path: Path, content: dict[str, Any]) -> None:
    """Write content as JSON with its own digest."""
    write_json(path, content | {"digest": json_digest(content)})


def read_checksummed(path: Path) -> dict[str, Any]:
    """Return what `write_sealed` wrote.

    Raises:
        VerdictError: if it is anything else.
    """
    held = read_json(path)
    digest = held.pop("digest", None) if isinstance(held, dict) else None
    if digest != json_digest(held):
        raise VerdictError(f"{path.name} is not what was written")
    return held


def _fsync(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
