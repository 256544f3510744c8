"""Reads aliases, versions and where their files lie from a local MLflow database, without importing MLflow.

MLflow and SQLAlchemy take seconds to import, a query of SQLite milliseconds. The database is opened read-only, so what
is read is what was committed last. Every function returns None where only MLflow can answer: another kind of store, a
database of another schema, an alias or version that does not exist, files that are not on this machine.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from ..core.errors import NoChampion
from ..inference.bundle import MODEL_NAME
from .local_database import AUDIT_EXPERIMENT
from .store import MlflowStore, describe_absence, is_uninitialised, missing_version, prepare_local, split_address

# The revision (table alembic_version) of the schema of MLflow 3.17, whose tables are read here.
KNOWN_SCHEMAS = frozenset({"dc11669786a5"})
WORKSPACE = "default"  # MLflow's, where workspaces are not used
BUSY_TIMEOUT_S = 5.0
_MODEL_ID = "models:/"

R = TypeVar("R")


class LocalVersion(NamedTuple):
    """A version whose files are on this machine: their folder, and the version's tags."""

    version: str
    model: Path
    tags: dict[str, str]


def find_local_version(store: MlflowStore, name: str, alias: str, number: str) -> LocalVersion | None:
    """Return the version that an alias points at, or that has a number.

    Args:
        store: where to look.
        name: of the registered model.
        alias: as `store.split_address` returns it.
        number: of the version; either this or the alias is empty.
    """
    if alias.lower() == "latest":  # MLflow gives that name a meaning
        return None

    def read(database: sqlite3.Connection) -> LocalVersion | None:
        wanted = number
        if alias:
            query = "SELECT version FROM registered_model_aliases WHERE workspace = ? AND name = ? AND alias = ?"
            wanted = _first(database, query, WORKSPACE, name, alias)
        query = (
            "SELECT coalesce(nullif(storage_location, ''), source) FROM model_versions "
            "WHERE workspace = ? AND name = ? AND version = ? AND current_stage <> 'Deleted_Internal'"
        )
        folder = _local_folder(database, _first(database, query, WORKSPACE, name, wanted))
        query = "SELECT key, value FROM model_version_tags WHERE workspace = ? AND name = ? AND version = ?"
        tags = {str(key): str(value) for key, value in database.execute(query, (WORKSPACE, name, wanted))}
        return LocalVersion(wanted, folder, tags) if folder else None

    return _read(store, read)


def check_local_version(store: MlflowStore, address: str) -> None:
    """Check that a version of the product's model may exist; MLflow can take longer to say that it does not.

    Args:
        store: where to look.
        address: models:/NAME@ALIAS or models:/NAME/VERSION.

    Raises:
        UsageError: if the address has another form.
        UnknownModel: if a local database holds no such version; NoChampion: if it is new, or the alias is not set.
    """
    name, alias, number = split_address(address)
    if is_uninitialised(store):
        raise NoChampion(f"there is no {'champion' if alias else 'version'} yet: {describe_absence(store)}")
    query = "SELECT count(*) FROM model_versions WHERE workspace = ? AND name = ? AND version = ?"
    if alias:
        query = "SELECT count(*) FROM registered_model_aliases WHERE workspace = ? AND name = ? AND alias = ?"
    found = _read(store, lambda database: _first(database, query, WORKSPACE, name, alias or number))
    if found == "0" and name == MODEL_NAME and alias.lower() != "latest":
        raise missing_version(store, name, alias, number)


def find_local_digest(store: MlflowStore, name: str, digest: str) -> str | None:
    """Return the number of the first version that holds a bundle."""
    query = (
        "SELECT min(tag.version) FROM model_version_tags AS tag JOIN model_versions AS version "
        "ON tag.workspace = version.workspace AND tag.name = version.name AND tag.version = version.version "
        "WHERE tag.workspace = ? AND tag.name = ? AND tag.key = 'bundle_digest' AND tag.value = ? "
        "AND version.current_stage <> 'Deleted_Internal'"
    )
    return _read(store, lambda database: _first(database, query, WORKSPACE, name, digest) or None)


def find_running_jobs(store: MlflowStore, home: str) -> list[str] | None:
    """Return the jobs of the runs of a home that are RUNNING, and "" for each record of the audit log that is pending.

    Args:
        store: where to look.
        home: id of the folder of stores.
    """
    query = (
        "SELECT coalesce(job.value, '') FROM runs AS run "
        "JOIN experiments AS experiment ON experiment.experiment_id = run.experiment_id "
        "LEFT JOIN tags AS home ON home.run_uuid = run.run_uuid AND home.key = 'home' "
        "LEFT JOIN tags AS job ON job.run_uuid = run.run_uuid AND job.key = 'job' "
        "WHERE run.status = 'RUNNING' AND run.lifecycle_stage = 'active' AND (home.value = ? OR experiment.name = ?)"
    )
    return _read(store, lambda database: [row[0] for row in database.execute(query, (home, AUDIT_EXPERIMENT))])


def find_local_champion(store: MlflowStore, name: str) -> tuple[str, str] | None:
    """Return the champion's version and when it became champion last (ISO 8601; empty where no record says so)."""
    alias = "SELECT version FROM registered_model_aliases WHERE workspace = ? AND name = ? AND alias = 'champion'"
    query = (
        "SELECT max(time.value) FROM runs AS run "
        "JOIN experiments AS experiment ON experiment.experiment_id = run.experiment_id AND experiment.name = ? "
        "JOIN tags AS moved ON moved.run_uuid = run.run_uuid AND moved.key = 'to' AND moved.value = ? "
        "JOIN tags AS kind ON kind.run_uuid = run.run_uuid AND kind.key = 'kind' AND kind.value <> 'reject' "
        "JOIN tags AS time ON time.run_uuid = run.run_uuid AND time.key = 'time' WHERE run.status = 'FINISHED'"
    )

    def read(database: sqlite3.Connection) -> tuple[str, str] | None:
        version = _first(database, alias, WORKSPACE, name)
        return (version, _first(database, query, AUDIT_EXPERIMENT, version)) if version else None

    return _read(store, read)


def _read(store: MlflowStore, query: Callable[[sqlite3.Connection], R | None]) -> R | None:
    """Query a store's database; None where it cannot be read here, or has another schema."""
    path = prepare_local(store)
    workspaces = any(name.startswith(("MLFLOW_WORKSPACE", "MLFLOW_ENABLE_WORKSPACES")) for name in os.environ)
    if path is None or "?" in store["uri"] or workspaces:
        return None
    try:
        address = f"{path.resolve().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S)) as database:
            revisions = {str(row[0]) for row in database.execute("SELECT version_num FROM alembic_version")}
            return query(database) if revisions and revisions <= KNOWN_SCHEMAS else None
    except (sqlite3.Error, OSError):  # no such file, another program's, locked, half written
        return None


def _first(database: sqlite3.Connection, query: str, *values: str) -> str:
    """Return the first column of the first row as text; empty where there is none."""
    found = database.execute(query, values).fetchone()
    return "" if found is None or found[0] is None else str(found[0])


def _local_folder(database: sqlite3.Connection, location: str) -> Path | None:
    """Return the folder of a model's files; None unless it is an existing folder on this machine."""
    if location.startswith(_MODEL_ID):
        query = "SELECT artifact_location FROM logged_models WHERE model_id = ? AND lifecycle_stage = 'active'"
        location = _first(database, query, location.removeprefix(_MODEL_ID))
    parts = urlsplit(location)
    folder = Path(unquote(parts.path)) if parts.scheme == "file" else Path(location)
    local = parts.scheme in ("", "file") and parts.netloc in ("", "localhost") and not parts.query
    return folder if local and folder.is_absolute() and folder.is_dir() else None
