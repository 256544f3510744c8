"""Backups of a folder of stores: one folder or archive with a copy of its files and a manifest of their digests.

Databases are copied by SQLite's online backup: each as it was at one moment, while other programs write. They come
first, as whatever a database refers to was written before it. Files that are deleted meanwhile are left out, and so
is what commands make again: caches, locks, logs.
"""

import contextlib
import datetime
import shutil
import sqlite3
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from .errors import UsageError, VerdictError, is_disk_full
from .files import atomic_directory, atomic_write, read_checksummed, sha256_of, walk_files, write_checksummed
from .timestamps import utc_now

BACKUP_MANIFEST = "backup.json"
OTHER_ARCHIVES = (".zip", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
BACKUP_SCHEMA = 1
ARCHIVES = {".tar": "", ".tgz": "gz", ".tar.gz": "gz"}  # compression by the end of the name; all others are folders
SQLITE_HEADER = b"SQLite format 3\0"
SKIPPED_FOLDERS = ("cache", "stack/prefect")
SKIPPED_ENDINGS = (".lock", ".promotion", ".log", ".sock", ".pid", "-wal", "-shm", "-journal")
COPY_ATTEMPT_S = 60.0  # for a database that another program holds


class BackupManifest(TypedDict):
    """Content of backup.json: `time` is ISO 8601, `files` maps paths to hex SHA-256."""

    schema_version: int
    time: str
    model: str
    files: dict[str, str]


def list_files(home: Path) -> list[str]:
    """Return the relative paths of what a backup holds: databases first, then all other files."""
    paths = sorted(path.relative_to(home) for path, _ in walk_files(home) if not path.is_symlink())
    kept = [path.as_posix() for path in paths if not _is_skipped(path)]
    return sorted(kept, key=lambda name: not is_database(home / name))


def is_database(path: Path) -> bool:
    """Return whether a file is a SQLite database."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        return stream.read(len(SQLITE_HEADER)) == SQLITE_HEADER
    return False


def write_backup(home: Path, target: Path, model: str) -> BackupManifest:
    """Write a backup of a folder of stores, under a temporary name until it is complete.

    Args:
        home: folder of the stores.
        target: new folder, or new archive if its name ends like one.
        model: name of the registered model.

    Raises:
        UsageError: if the target exists or lies within the stores.
        VerdictError: if a database is damaged.
    """
    check_target(home, target)
    if _compression(target) is None:
        with atomic_directory(target) as folder:
            return _fill(home, folder, model)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
        manifest = _fill(home, Path(name), model)
        with atomic_write(target) as scratch:
            scratch.chmod(0o600)
            with tarfile.open(scratch, f"w:{_compression(target)}") as archive:  # type: ignore[call-overload]
                archive.add(name, arcname="", recursive=True)
    return manifest


def check_target(home: Path, target: Path) -> None:
    """Raise UsageError if a backup cannot be written to a path."""
    if target.exists():
        raise UsageError(f"{target} exists; expected a new file (.tar, .tar.gz) or folder")
    if target.suffix.lower() in OTHER_ARCHIVES and not target.name.lower().endswith(".tar.gz"):
        raise UsageError(f"{target} is named as an archive of another kind; expected .tar, .tar.gz, or a folder")
    if target.resolve().is_relative_to(home.resolve()):
        raise UsageError(f"{target} lies within the stores that it is to back up; expected a path outside of {home}")


@contextlib.contextmanager
def unpacked(source: Path, beside: Path) -> Iterator[tuple[Path, BackupManifest]]:
    """Yield a verified copy of a backup in a temporary folder, without its manifest, and the manifest.

    Args:
        source: folder or archive.
        beside: path in whose folder the copy is made, so that it can be renamed to it.

    Raises:
        UsageError: if there is no backup.
        VerdictError: if a file is missing, altered, or not in the manifest.
    """
    beside.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{beside.name}.", dir=beside.parent, ignore_cleanup_errors=True) as name:
        folder = Path(name) / "stores"
        if source.is_dir():
            shutil.copytree(source, folder, symlinks=True)
        else:
            _extract(source, folder)
        manifest = _verify(source, folder)
        (folder / BACKUP_MANIFEST).unlink()
        yield folder, manifest


def replace_home(folder: Path, home: Path) -> Path | None:
    """Rename a folder to that of the stores; return where the old one is now, None if there was none.

    A process that is killed between the two calls leaves the old one under that name, complete.
    """
    aside = None
    if home.exists():
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = home.with_name(f"{home.name}.before-{stamp}")
        home.rename(aside)
    folder.rename(home)
    return aside


def copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite database as it is at one moment.

    Raises:
        VerdictError: if it is damaged, or locked for COPY_ATTEMPT_S.
    """
    deadline = time.monotonic() + COPY_ATTEMPT_S

    def give_up(status: int, _remaining: int, _total: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and time.monotonic() > deadline:
            raise sqlite3.OperationalError("database is locked")

    try:
        with (
            contextlib.closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)) as held,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            held.execute("PRAGMA busy_timeout = 0")  # `backup` itself tries again, for ever and whatever the timeout
            held.backup(copy, progress=give_up, sleep=0.1)
            (answer,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        raise VerdictError(f"{source} cannot be copied ({error}); nothing was backed up") from error
    if answer != "ok":
        raise VerdictError(f"{source} is damaged ({answer[:100]}); nothing was backed up")


def _fill(home: Path, folder: Path, model: str) -> BackupManifest:
    """Copy files into a folder, write the manifest last, and return it."""
    files = {}
    for name in list_files(home):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if is_database(home / name):
                mode = (home / name).stat().st_mode
                copy_database(home / name, target)
                target.chmod(mode)
            else:
                shutil.copy(home / name, target)
        except FileNotFoundError:  # deleted since it was listed, perhaps between its content and its mode
            target.unlink(missing_ok=True)
            continue
        files[name] = sha256_of(target)
    manifest = BackupManifest(schema_version=BACKUP_SCHEMA, time=utc_now(), model=model, files=files)
    write_checksummed(folder / BACKUP_MANIFEST, {**manifest})
    return manifest


def _extract(source: Path, folder: Path) -> None:
    folder.mkdir()
    try:
        with tarfile.open(source) as archive:
            archive.extractall(folder, filter="data")
    except FileNotFoundError as error:
        raise UsageError(f"{source} does not exist; expected a backup: verdict backup FILE|DIR") from error
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        if is_disk_full(error):
            raise VerdictError(
                f"there is no room for what {source} holds in {folder.parent} ({getattr(error, 'strerror', error)}); "
                "nothing was changed: make room there, or name another folder: VERDICT_HOME=DIR"
            ) from error
        raise VerdictError(f"{source} is no complete archive ({error}); nothing was changed") from error


def _verify(source: Path, folder: Path) -> BackupManifest:
    """Return the manifest of an unpacked backup whose files are those that it lists."""
    if not (folder / BACKUP_MANIFEST).is_file():
        raise UsageError(f"{source} is no backup: it holds no {BACKUP_MANIFEST}; expected what verdict backup wrote")
    manifest = read_checksummed(folder / BACKUP_MANIFEST)
    if manifest.get("schema_version") != BACKUP_SCHEMA:
        version = manifest.get("schema_version")
        raise VerdictError(f"{source} has schema {version!r}, this program reads {BACKUP_SCHEMA}; nothing was changed")
    files = manifest["files"]
    found = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()
    }
    for name in sorted(found ^ {*files, BACKUP_MANIFEST}):
        state = "is missing" if name in files else "is not in its manifest"
        raise VerdictError(f"{source}: {name} {state}; the backup is damaged, nothing was changed")
    for name, digest in files.items():
        if sha256_of(folder / name) != digest:
            raise VerdictError(f"{source}: {name} was altered; the backup is damaged, nothing was changed")
    return BackupManifest(**manifest)  # type: ignore[typeddict-item]


def _is_skipped(path: Path) -> bool:
    folders = [parent.as_posix() for parent in path.parents]
    hidden = any(part.startswith(".") for part in path.parts)
    return hidden or path.name == "lock" or path.name.endswith(SKIPPED_ENDINGS) or bool({*folders} & {*SKIPPED_FOLDERS})


def _compression(target: Path) -> str | None:
    """Return how an archive is compressed, empty if not; None where the target is a folder."""
    return next((kind for ending, kind in ARCHIVES.items() if target.name.endswith(ending)), None)
