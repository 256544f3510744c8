"""Reads the model registry: which version an alias or address names, its tags, and its files.

A version is one bundle. The alias `champion` marks the version that downstream systems load, `challenger` the last
candidate on HOLD. `mlflow-skinny` suffices for this module, which is part of the distribution verdict-inference;
`register.py` writes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import mlflow
import mlflow.artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode

from ..core.errors import NoChampion, UnknownModel
from ..inference.bundle import CHAMPION_URI, MODEL_NAME
from .downloads import new_download
from .mlflow_client import connect
from .sqlite_lookup import find_local_version
from .store import (
    MlflowStore,
    check_initialised,
    check_version_numbers,
    describe_absence,
    is_uninitialised,
    missing_version,
    split_address,
)


class RegisteredVersion(TypedDict):
    """A registered bundle, its digests as registered; `bundle` is its local folder, empty if it was not fetched."""

    version: str
    digest: str
    manifest_digest: str
    wrapping_digest: str
    mcc: float | None
    verdict: str | None
    dataset: str | None
    bundle: str


def find_version(store: MlflowStore, digest: str) -> str | None:
    """Return the number of the version that holds a bundle, or None."""
    with connect(store) as client:
        found = client.search_model_versions(f"name = '{MODEL_NAME}' and tags.bundle_digest = '{digest}'")
        return min((str(version.version) for version in found), key=int, default=None)


def versions_of_run(store: MlflowStore, run_id: str) -> set[str]:
    """Return the numbers of the versions that a run registered."""
    with connect(store) as client:
        found = client.search_model_versions(f"name = '{MODEL_NAME}' and run_id = '{run_id}'")
        return {str(version.version) for version in found}


def check_numbers(store: MlflowStore, *versions: str) -> None:
    """Check that arguments can be version numbers of a store.

    Raises:
        UsageError: if one is not a number.
        VerdictError: if nothing was ever written to the store.
    """
    check_version_numbers(*versions)
    check_initialised(store)


def read_tags(store: MlflowStore, version: str) -> dict[str, str]:
    """Return the tags of a version, and under `run` the id of the run that registered it.

    Raises:
        UnknownModel: if there is no such version.
    """
    with connect(store) as client:
        found = version_by_number(client, MODEL_NAME, version)
        if found is None:
            raise missing_version(store, MODEL_NAME, "", version)
        return {**found.tags, "run": found.run_id or ""}


def find_alias(store: MlflowStore, alias: str, fetch: bool = True) -> RegisteredVersion | None:
    """Return the version that an alias points at; None if the alias is not set.

    Args:
        store: where to look.
        alias: champion or challenger.
        fetch: download the bundle.

    Raises:
        UnreachableError: if the store does not answer, which does not mean that the alias is not set.
    """
    with connect(store, process_wide=fetch) as client:
        found = version_by_alias(client, MODEL_NAME, alias)
        return _describe(store, found, fetch) if found else None


def resolve_version(store: MlflowStore, uri: str = CHAMPION_URI, fetch: bool = False) -> RegisteredVersion:
    """Return the version behind models:/NAME@ALIAS or models:/NAME/VERSION.

    Args:
        store: where to look.
        uri: address.
        fetch: download the bundle.

    Raises:
        UsageError: if the address has another form.
        UnreachableError: if the store does not answer.
        NoChampion: if the store answers, and the alias is not set.
        UnknownModel: if the store answers, and holds no such model or version.
    """
    name, alias, number = split_address(uri)
    if is_uninitialised(store):
        raise NoChampion(f"there is no {'champion' if alias else 'version'} yet: {describe_absence(store)}")
    with connect(store, process_wide=fetch) as client:
        found = version_by_alias(client, name, alias) if alias else version_by_number(client, name, number)
        if found:
            return _describe(store, found, fetch)
        held = sorted(str(model.name) for model in client.search_registered_models(max_results=100))
    # The product's own model is registered by the first candidate that passes: until then it is missing, not unknown.
    if name != MODEL_NAME and name not in held:
        raise UnknownModel(
            f"model {name!r} is unknown in {store['uri']}, which holds {', '.join(held[:5]) or 'no model'}; "
            f"expected for example {CHAMPION_URI}"
        )
    raise missing_version(store, name, alias, number)


def fetch_bundle(store: MlflowStore, name: str, version: str, folder: str) -> str:
    """Download a version's bundle below a folder and return its path.

    Raises:
        UnreachableError: if it cannot be fetched.
    """
    with connect(store, process_wide=True):
        return str(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}/data/bundle", dst_path=folder))


def version_by_alias(client: mlflow.MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """Return the version of a model that an alias points at, or None."""
    return _or_none(lambda: client.get_model_version_by_alias(name, alias))


def version_by_number(client: mlflow.MlflowClient, name: str, number: str) -> ModelVersion | None:
    """Return a version of a model, or None."""
    return _or_none(lambda: client.get_model_version(name, number))


def _or_none(query: Callable[[], ModelVersion]) -> ModelVersion | None:
    """Return None if MLflow answers that something does not exist; all other errors propagate."""
    try:
        return query()
    except MlflowException as error:
        # A missing model or version gives the first code, a missing alias of an existing model the second.
        if error.error_code in {ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), ErrorCode.Name(INVALID_PARAMETER_VALUE)}:
            return None
        raise


def _describe(store: MlflowStore, version: ModelVersion, fetch: bool) -> RegisteredVersion:
    """Read a version's tags and, with `fetch`, find its files here or download them.

    If the files are gone, the folder that is returned does not exist: only callers that load the bundle fail.
    """
    folder = f"models:/{version.name}/{version.version}" if fetch else ""
    if folder and (local := find_local_version(store, version.name, "", str(version.version))):
        folder = str(local.model)  # MLflow would write a file there
    elif folder:
        try:
            folder = mlflow.artifacts.download_artifacts(folder, dst_path=new_download())
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
    mcc = version.tags.get("mcc")
    return RegisteredVersion(
        version=str(version.version),
        digest=version.tags.get("bundle_digest", ""),
        manifest_digest=version.tags.get("manifest_digest", ""),
        wrapping_digest=version.tags.get("wrapping_digest", ""),
        mcc=float(mcc) if mcc else None,
        verdict=version.tags.get("verdict"),
        dataset=version.tags.get("dataset"),
        bundle=str(Path(folder) / "data" / "bundle") if folder else "",
    )
