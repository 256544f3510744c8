"""Addresses of MLflow stores and of the models in them. Imports nothing of MLflow, which takes seconds."""

import os
from pathlib import Path
from typing import TypedDict

from ..core.errors import NoChampion, UnknownModel, UsageError, VerdictError
from ..core.hidden_addresses import check_address, hide
from ..inference.bundle import CHAMPION, CHAMPION_URI, MODEL_NAME
from .local_database import SQLITE, await_lock, check_not_lost, relocate


class MlflowStore(TypedDict):
    """An MLflow tracking address without its password and, for a local database, the folder of its artifacts."""

    uri: str
    artifacts: str


def locate_store(home: str) -> MlflowStore:
    """Return the store that MLFLOW_TRACKING_URI names, else a SQLite one under `home`.

    Raises:
        UsageError: if MLFLOW_TRACKING_URI is no address.
    """
    check_address("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI", ""))
    folder = Path(home).resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{folder / 'mlflow.db'}"
    return MlflowStore(uri=hide(uri), artifacts=str(folder / "artifacts"))


def database_of(store: MlflowStore) -> Path | None:
    """Return the file of a local SQLite store; None for any other store."""
    uri = store["uri"]
    return Path(uri.removeprefix(SQLITE).partition("?")[0]) if uri.startswith(SQLITE) else None


def prepare_local(store: MlflowStore) -> Path | None:
    """Check that a local database is not lost, and let it point at the artifacts beside it; return its file.

    While another program locks it, this waits.

    Raises:
        UnreachableError: if it is lost, or was moved and cannot be changed.
    """
    database = database_of(store)
    if database:
        await_lock(database)
        check_not_lost(database, Path(store["artifacts"]))
        relocate(database, Path(store["artifacts"]))
    return database


def is_uninitialised(store: MlflowStore) -> bool:
    """Check whether the store is a local database that nothing was written to yet; a query would create it.

    Raises:
        LostDatabase: if it was written to and is gone.
    """
    database = prepare_local(store)
    return database is not None and not database.exists()


def check_version_numbers(*versions: str) -> None:
    """Raise UsageError unless these can be numbers of versions."""
    for version in versions:
        if not version.isdecimal():
            raise UsageError(f"version {version!r} is not a number; expected one that `verdict status` shows")


def check_initialised(store: MlflowStore) -> None:
    """Raise VerdictError if nothing was ever written to the store."""
    if is_uninitialised(store):
        raise VerdictError(f"there is no version yet: {describe_absence(store)}")


def describe_absence(store: MlflowStore) -> str:
    """Say where a local store was looked for, and what to do; a folder further up may hold the one that is meant."""
    database = database_of(store) or Path(store["artifacts"]).with_name("mlflow.db")
    home = database.parent
    others = (folder / home.name for folder in home.parent.parents)
    meant = next((other for other in others if (other / database.name).is_file()), "DIR")
    return (
        f"nothing is in {home} (no {database.name}); run: verdict retrain, or name the folder that is meant: "
        f"VERDICT_HOME={meant}"
    )


def split_address(uri: str) -> tuple[str, str, str]:
    """Return name, alias and version number of a registry address; one of the last two is empty.

    Raises:
        UsageError: if it has another form.
    """
    name, at, alias = uri.removeprefix("models:/").partition("@")
    name, slash, number = name.partition("/")
    complete = name and bool(alias) == bool(at) and bool(number) == bool(slash) and bool(at) != bool(slash)
    if not uri.startswith("models:/") or not complete or "/" in number + alias:
        raise UsageError(
            f"model {uri!r} is no registry address and no folder; expected {CHAMPION_URI}, models:/{MODEL_NAME}/1 or "
            "a bundle's folder"
        )
    return name, alias, number


def missing_version(store: MlflowStore, name: str, alias: str, number: str) -> VerdictError:
    """Return the error that says that a store answers and holds no such version; of an alias it is a NoChampion."""
    if not alias:
        return UnknownModel(f"model {name!r} has no version {number!r} in {store['uri']}; see: verdict status")
    what = "champion" if alias == CHAMPION else f"version with the alias {alias!r}"
    return NoChampion(f"there is no {what} yet in {store['uri']}; run: verdict retrain, or see: verdict status")
