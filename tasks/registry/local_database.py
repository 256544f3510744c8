"""A home's own MLflow database: is it there, and does it point at the artifacts beside it? Imports no MLflow."""

import contextlib
import logging
import sqlite3
from pathlib import Path

from ..core.errors import UnreachableError, VerdictError
from ..core.files import read_json
from ..inference.bundle import scoped

SQLITE = "sqlite:///"
EXPERIMENT, AUDIT_EXPERIMENT = scoped("verdict"), scoped("verdict-history")  # of jobs, of the champion's changes
SWEEP_EXPERIMENT = scoped("verdict-sweeps")
DATABASE_TIMEOUT_S = 60.0  # for another program that holds the database; MLflow alone waits 20 s
LOCK_NOTICE_S = 2.0  # after which a waiting process says so
# Columns in which MLflow keeps absolute addresses of artifacts.
LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)

log = logging.getLogger("tasks.registry")


class LostDatabase(UnreachableError):
    """The database is missing or empty, and what was registered in it is still there: a champion may have been lost."""


def check_not_lost(database: Path, artifacts: Path) -> None:
    """Check that a local database is there if anything was ever registered in it.

    A first candidate is promoted without a comparison; without this check the next one after a loss would be, too.

    Raises:
        LostDatabase: if it is missing or empty beside registered models or results of jobs.
    """
    if not _is_empty(database):
        return
    if registered := _find_registered(database.parent, artifacts):
        state = "is empty" if database.exists() else "is missing"
        raise LostDatabase(
            f"{database} {state}, but {registered} was registered in it: the champion is lost, not absent; restore the "
            f"file from a backup, or start over without what it knew: move {database.parent} away"
        )


def await_lock(database: Path, write: bool = False) -> None:
    """Wait while another program locks a database; what is wrong after that, MLflow reports.

    Args:
        database: which; a missing one is not created.
        write: wait until it can be written to, not just read.
    """
    address = f"{database.resolve().as_uri()}?mode={'rw' if write else 'ro'}"
    query = "BEGIN IMMEDIATE" if write else "SELECT 1 FROM sqlite_master"
    for seconds in (LOCK_NOTICE_S, DATABASE_TIMEOUT_S - LOCK_NOTICE_S):
        try:
            with contextlib.closing(sqlite3.connect(address, uri=True, timeout=seconds)) as connection:
                connection.execute(query)
            return
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY:
                return
        if seconds == LOCK_NOTICE_S:
            log.warning("%s is locked by another program; waiting up to %.0f s", database, DATABASE_TIMEOUT_S)


def _is_empty(database: Path) -> bool:
    """Return whether a database holds neither runs nor versions; False where only MLflow can report what is wrong."""
    if not database.exists():
        return True
    with contextlib.suppress(sqlite3.Error):
        address = f"{database.resolve().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=0)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            found = tables & {"runs", "model_versions"}
            return not any(connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in found)
    return False


def _find_registered(home: Path, artifacts: Path) -> Path | None:
    """Return a model, or the result of a job, that was registered in the database of a home; None where nothing was."""
    if artifacts.parent != home:  # the database is another one than the home's own
        return None
    for path in (*artifacts.glob("models/*/"), *home.glob("runs/*/result.json")):
        if path.is_dir():
            return path
        with contextlib.suppress(VerdictError, AttributeError):  # unreadable; no object
            if str(read_json(path).get("store")).startswith(SQLITE):
                return path
    return None


def relocate(database: Path, artifacts: Path) -> None:
    """Let a database whose home was moved or copied point at the artifacts beside it, in one transaction.

    MLflow keeps absolute addresses: a moved home would miss its artifacts, a copied one read and write the original's.

    Raises:
        UnreachableError: if the database cannot be changed.
    """
    if artifacts.parent != database.parent or not artifacts.is_absolute():  # not a home's own database
        return
    new = artifacts.as_uri()
    old = _other_location(database, new)
    if old is None:
        return
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=DATABASE_TIMEOUT_S)) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            for table, column in LOCATIONS:
                below = f"substr({column} || '/', 1, ?) = ?"
                change = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {below}"
                connection.execute(change, (new, len(old) + 1, len(old) + 1, f"{old}/"))
    except sqlite3.Error as error:
        raise UnreachableError(
            f"{database} was made where its artifacts were {old}, and cannot be changed to where they are now "
            f"({error}); make it writable and run again"
        ) from error


def _other_location(database: Path, artifacts: str) -> str | None:
    """Return another folder of this machine, as an address, where a database has the artifacts of its home."""
    query = (
        "SELECT artifact_location FROM experiments "
        "WHERE name GLOB 'verdict*' AND artifact_location LIKE 'file://%' AND artifact_location <> ?"
    )
    address = f"{database.resolve().as_uri()}?mode=ro"
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
        found = connection.execute(query, (artifacts,)).fetchone()
        return found[0] if found else None
    return None  # it is new, or MLflow reports what is wrong
