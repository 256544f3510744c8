"""Backs the folder of the stores up, restores it, and upgrades the schema of its MLflow database."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.services.stack_processes import find_processes
from tasks.core import home_backup
from tasks.core.errors import UsageError, VerdictError
from tasks.core.files import walk_files
from tasks.core.folder_locks import is_locked
from tasks.inference.bundle import MODEL_NAME
from tasks.registry.promotion_lock import promotion_lock
from tasks.registry.store import MlflowStore, database_of, locate_store

ELSEWHERE = {  # variables of stores that are not in the folder, and who backs them up
    "MLFLOW_TRACKING_URI": "MLflow's runs and versions are on a server: back up its database (pg_dump) and its bucket",
    "POSTGRES_HOST": "the services' databases are PostgreSQL's: back them up with pg_dump",
    "STORE_URL": "artifacts are in an S3 bucket: back that up",
}


def backup(target: str, dry_run: bool, home: str) -> dict[str, Any]:
    """Write a backup, or list what it would hold; promotions wait meanwhile.

    Raises:
        UsageError: if there is nothing to back up, or the target exists.
        VerdictError: if a database is damaged.
    """
    folder = Path(home)
    names = home_backup.list_files(folder) if folder.is_dir() else []
    if not names:
        raise UsageError(f"nothing is in {home}; name the folder that is meant: VERDICT_HOME=DIR")
    home_backup.check_target(folder, Path(target))
    if not dry_run:
        with _no_promotions(home):
            names = list(home_backup.write_backup(folder, Path(target), MODEL_NAME)["files"])
    size = sum(status.st_size for name in names for _, status in walk_files(folder / name))
    notices = [text for variable, text in ELSEWHERE.items() if os.environ.get(variable)]
    return {"target": target, "files": names, "megabytes": size / 1e6, "dry_run": dry_run, "notices": notices}


def restore(source: str, replace: bool, dry_run: bool, home: str) -> dict[str, Any]:
    """Put a backup in the place of the stores' folder; check all of it first.

    Raises:
        UsageError: if it is no backup, of another model, or stores are there already and are not to be replaced.
        VerdictError: if the backup is damaged, or the stores are in use.
    """
    folder = Path(home)
    occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    with home_backup.unpacked(Path(source), folder) as (copy, manifest):
        if manifest["model"] != MODEL_NAME:
            raise UsageError(f"{source} is of the model {manifest['model']!r}; set VERDICT_MODEL_NAME to it")
        if occupied and not replace:
            raise UsageError(
                f"{home} holds stores; expected an empty folder, or --replace, which keeps the old one aside"
            )
        _refuse_in_use(home)
        aside = None if dry_run else home_backup.replace_home(copy, folder)
    names = list(manifest["files"])
    answer = {"source": source, "home": home, "time": manifest["time"], "files": names, "dry_run": dry_run}
    return answer | {"aside": str(aside or "")}


def upgrade(dry_run: bool, home: str) -> dict[str, Any]:
    """Bring the schema of a local MLflow database up to date, after a backup of the database beside it.

    Raises:
        UsageError: if the database is not in the stores' folder.
        VerdictError: if its schema is newer than this program, or the stores are in use.
    """
    store = locate_store(home)
    database = database_of(store)
    if database is None:
        raise UsageError(
            f"MLflow store {store['uri']} is upgraded where its database is: back it up (pg_dump), then run there: "
            "mlflow db upgrade ADDRESS"
        )
    if not database.is_file():
        raise UsageError(f"there is no {database}; a new one is made with the current schema")
    from tasks.registry import schema_upgrade

    changes = schema_upgrade.pending_changes(database)
    answer = {"database": str(database), "changes": [change._asdict() for change in changes], "dry_run": dry_run}
    if not changes or dry_run:
        return answer | {"backup": ""}
    kept = database.with_name(f"{database.name}.{schema_upgrade.read_revision(database) or 'none'}")
    with _no_promotions(home):
        _refuse_in_use(home)
        kept.unlink(missing_ok=True)  # of an upgrade that was killed
        home_backup.copy_database(database, kept)
        schema_upgrade.upgrade_database(database)
    return answer | {"backup": str(kept)}


@contextlib.contextmanager
def _no_promotions(home: str) -> Iterator[None]:
    """Hold the promotion lock of a local database, so that alias and audit log agree in a copy."""
    own = Path(home, "mlflow.db")
    store = MlflowStore(uri=f"sqlite:///{own}", artifacts=str(Path(home, "artifacts")))
    with promotion_lock(store) if own.is_file() else contextlib.nullcontext():
        yield


def _refuse_in_use(home: str) -> None:
    """Raise VerdictError while services, a job or a sweep use the stores."""
    if find_processes(home):
        raise VerdictError(f"the services of {home} are up; stop them first: make down")
    for kind, folder in (("job", "runs"), ("sweep", "sweeps")):
        if busy := [path.name for path in Path(home, folder).glob("*") if is_locked(path)]:
            raise VerdictError(f"{kind} {busy[0]} runs in {home}; wait until it ends, or stop it")
