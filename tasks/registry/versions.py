"""Versions and aliases in MLflow: what is registered, and what an alias points at.

A version is one bundle: registering the same bundle twice gives one version. Aliases: `champion` is what downstream
systems load, `challenger` is the last candidate on HOLD. `moves.py` moves them, under a lock, and records it.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import mlflow
import mlflow.artifacts
from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)

from tasks.core.errors import UsageError, VerdictError
from tasks.core.files import read_json
from tasks.inference.bundle import PROFILE
from tasks.registry.code_digest import CODE_DIGEST_TAG, digest_code
from tasks.registry.descriptions import MODEL_DESCRIPTION
from tasks.registry.mlflow_client import MlflowStore, connect, experiment_of, is_uninitialised
from tasks.registry.mlflow_client import locate_store as locate_store

if TYPE_CHECKING:
    from tasks.data.drift import DataProfile

MODEL_NAME = "acceptability"
CHAMPION, CHALLENGER = "champion", "challenger"
CHAMPION_URI = f"models:/{MODEL_NAME}@{CHAMPION}"


class NoChampion(VerdictError):
    """The store answers, and nobody set the alias yet."""


class UnknownModel(VerdictError):
    """The store answers, and holds no such model or version."""


class RegisteredVersion(TypedDict):
    """A registered bundle; `bundle` is its folder on local disk, empty where it was not fetched."""

    version: str
    digest: str
    mcc: float | None
    verdict: str | None
    dataset: str | None
    bundle: str


def find_version(store: MlflowStore, digest: str) -> str | None:
    """Return the version that holds a bundle, or None."""
    with connect(store) as client:
        found = client.search_model_versions(f"name = '{MODEL_NAME}' and tags.bundle_digest = '{digest}'")
        return min((str(version.version) for version in found), key=int, default=None)


def register_bundle(
    store: MlflowStore, run_id: str, bundle: str, digest: str, tags: Mapping[str, str], description: str
) -> str:
    """Store a bundle as a model version and return its number; a bundle that has one already keeps it.

    A version that is there already takes the tags of the new verdict, unless it reigns or a person decided about it.
    The version is created last, in one call with its tags: a process killed before leaves no version, one killed
    after leaves a whole one.
    """
    existing = find_version(store, digest)
    if existing:
        _update_verdict(store, existing, tags, description)
        return existing
    from tasks.registry.mlflow_flavor import (
        log_model,  # writing a model needs all of MLflow, reading one the small client
    )

    with connect(store, process_wide=True) as client:
        experiment = experiment_of(client, store)
        model_id = _find_logged(client, experiment, digest) or log_model(experiment, run_id, bundle, digest)
        _make_model(client)
        version = client.create_model_version(
            MODEL_NAME,
            source=f"models:/{model_id}",
            run_id=run_id,
            model_id=model_id,
            tags={
                **tags,
                "bundle_digest": digest,
                CODE_DIGEST_TAG: digest_code(client.get_logged_model(model_id).artifact_location),
            },
            description=description,
        )
        return str(version.version)


def move_alias(store: MlflowStore, alias: str, version: str) -> None:
    """Point an alias at a version and check that it does."""
    with connect(store) as client:
        client.set_registered_model_alias(MODEL_NAME, alias, version)
        found = client.get_model_version_by_alias(MODEL_NAME, alias).version
        if str(found) != version:
            raise VerdictError(
                f"alias {alias} points at version {found}, expected {version}; run again: verdict retrain"
            )


def drop_alias(store: MlflowStore, alias: str, version: str) -> None:
    """Remove an alias where it points at a version."""
    with connect(store) as client:
        found = _version_by_alias(client, MODEL_NAME, alias)
        if found and str(found.version) == version:
            client.delete_registered_model_alias(MODEL_NAME, alias)


def tag_version(store: MlflowStore, version: str, tags: Mapping[str, str]) -> None:
    """Set tags of a version; one that was deleted has none."""
    with connect(store) as client:
        if _version_by_number(client, MODEL_NAME, version):
            for key, value in tags.items():
                client.set_model_version_tag(MODEL_NAME, version, key, value)


def prepend_description(store: MlflowStore, version: str, line: str) -> None:
    """Put a line above the description of a version, once; one that was deleted has none."""
    with connect(store) as client:
        found = _version_by_number(client, MODEL_NAME, version)
        before = (found.description or "") if found else line
        if not before.startswith(line):
            client.update_model_version(MODEL_NAME, version, description=f"{line}\n\n{before}".rstrip())


def check_numbers(store: MlflowStore, *versions: str) -> None:
    """Refuse what cannot be the number of a version.

    Raises:
        WrongUsage: if one is no number.
        VerdictError: if nothing was ever written to the store.
    """
    for version in versions:
        if not version.isdecimal():
            raise UsageError(f"version {version!r} is no number; expected one that `verdict status` shows")
    if is_uninitialised(store):
        raise VerdictError(f"there is no version yet: {store['uri']} is new; run: verdict retrain")


def read_tags(store: MlflowStore, version: str) -> dict[str, str]:
    """Return the tags of a version, and under `run` the id of the run that registered it.

    Raises:
        UnknownModel: if there is no such version.
    """
    with connect(store) as client:
        found = _version_by_number(client, MODEL_NAME, version)
        if found is None:
            raise UnknownModel(f"version {version!r} does not exist in {store['uri']}; see: verdict status")
        return {**found.tags, "run": found.run_id or ""}


def find_alias(store: MlflowStore, alias: str, fetch: bool = True) -> RegisteredVersion | None:
    """Return the version an alias points at; None when nobody set the alias.

    Args:
        store: where to look.
        alias: champion or challenger.
        fetch: bring the bundle to local disk.

    Raises:
        VerdictError: if the store cannot be asked: that is not the same as an alias that nobody set.
    """
    with connect(store, process_wide=fetch) as client:
        found = _version_by_alias(client, MODEL_NAME, alias)
        return _describe(found, fetch) if found else None


def fetch_profile(store: MlflowStore) -> "DataProfile | None":
    """Return the profile of the data that the champion was trained on.

    None when there is no champion, or one whose bundle holds no profile.

    Raises:
        Unreachable: if the store cannot be asked.
    """
    if is_uninitialised(store):
        return None
    with connect(store, process_wide=True) as client:
        champion = _version_by_alias(client, MODEL_NAME, CHAMPION)
        if champion is None:
            return None
        folder = f"models:/{MODEL_NAME}/{champion.version}/data/bundle"
        held = {Path(entry.path).name for entry in mlflow.artifacts.list_artifacts(artifact_uri=folder)}
        if PROFILE not in held:
            return None
        with tempfile.TemporaryDirectory() as scratch:
            return read_json(Path(mlflow.artifacts.download_artifacts(f"{folder}/{PROFILE}", dst_path=scratch)))


def fetch_version(store: MlflowStore, uri: str = CHAMPION_URI) -> RegisteredVersion:
    """Return the version behind models:/NAME@ALIAS or models:/NAME/VERSION, with its bundle on local disk.

    Raises:
        WrongUsage: if the address has another form.
        VerdictError: if there is no such version.
    """
    name, separator, alias = uri.removeprefix("models:/").partition("@")
    if not uri.startswith("models:/") or (not separator and name.count("/") != 1):
        raise UsageError(f"model {uri!r} is no registry address; expected {CHAMPION_URI} or models:/{MODEL_NAME}/1")
    if is_uninitialised(store):
        raise VerdictError(f"there is no model yet in {store['uri']}; run: verdict retrain")
    with connect(store, process_wide=True) as client:
        found = _version_by_alias(client, name, alias) if separator else _version_by_number(client, *name.split("/"))
        if found is None:
            missing = "there is no champion yet" if uri == CHAMPION_URI else f"{uri} does not exist"
            raise VerdictError(f"{missing} in {store['uri']}; run: verdict retrain, or see: verdict status")
        return _describe(found, fetch=True)


def resolve_version(store: MlflowStore, uri: str = CHAMPION_URI) -> RegisteredVersion:
    """Return the version behind models:/NAME@ALIAS or models:/NAME/VERSION; its bundle stays where it is.

    Raises:
        WrongUsage: if the address has another form.
        Unreachable: if the store cannot be asked.
        NoChampion: if the store answers, and nobody set the alias.
        UnknownModel: if the store answers, and holds no such model or version.
    """
    name, alias, number = split_address(uri)
    if is_uninitialised(store):
        raise NoChampion(f"there is no champion yet: {store['uri']} is new; run: verdict retrain")
    with connect(store) as client:
        found = _version_by_alias(client, name, alias) if alias else _version_by_number(client, name, number)
        if found:
            return _describe(found, fetch=False)
        held = sorted(str(model.name) for model in client.search_registered_models(max_results=100))
    # The product's own model is registered by the first run that deserves it: until then it is missing, not unknown.
    if name != MODEL_NAME and name not in held:
        raise UnknownModel(
            f"model {name!r} is unknown in {store['uri']}, which holds {', '.join(held[:5]) or 'no model'}; "
            f"expected for example {CHAMPION_URI}"
        )
    if alias:
        what = "champion" if alias == CHAMPION else f"version with the alias {alias!r}"
        raise NoChampion(f"there is no {what} yet in {store['uri']}; run: verdict retrain, or see: verdict status")
    raise UnknownModel(f"model {name!r} has no version {number!r} in {store['uri']}; see: verdict status")


def split_address(uri: str) -> tuple[str, str, str]:
    """Return name, alias and version number of a registry address; one of the last two is empty.

    Raises:
        WrongUsage: if it has another form.
    """
    name, at, alias = uri.removeprefix("models:/").partition("@")
    name, slash, number = name.partition("/")
    whole = name and bool(alias) == bool(at) and bool(number) == bool(slash) and bool(at) != bool(slash)
    if not uri.startswith("models:/") or not whole or "/" in number + alias:
        raise UsageError(
            f"model {uri!r} is no registry address and no folder; expected {CHAMPION_URI}, models:/{MODEL_NAME}/1 or "
            "a bundle's folder"
        )
    return name, alias, number


def fetch_bundle(store: MlflowStore, name: str, version: str, folder: str) -> str:
    """Copy a version's bundle below a folder and return where it lies.

    Raises:
        Unreachable: if it cannot be fetched.
    """
    with connect(store, process_wide=True):
        return str(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}/data/bundle", dst_path=folder))


def _update_verdict(store: MlflowStore, version: str, tags: Mapping[str, str], description: str) -> None:
    """Let a version that exists show its new verdict."""
    with connect(store) as client:
        champion = _version_by_alias(client, MODEL_NAME, CHAMPION)
        decided = "decided_by" in client.get_model_version(MODEL_NAME, version).tags
        if decided or (champion and str(champion.version) == version):
            return
        for key, value in tags.items():
            client.set_model_version_tag(MODEL_NAME, version, key, value)
        client.update_model_version(MODEL_NAME, version, description=description)


def _make_model(client: mlflow.MlflowClient) -> None:
    """Create the registered model where it is missing; another process may be first."""
    if client.search_registered_models(f"name = '{MODEL_NAME}'"):
        return
    try:
        client.create_registered_model(MODEL_NAME, description=MODEL_DESCRIPTION)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise


def _version_by_alias(client: mlflow.MlflowClient, name: str, alias: str) -> ModelVersion | None:
    return _or_none(lambda: client.get_model_version_by_alias(name, alias))


def _version_by_number(client: mlflow.MlflowClient, name: str, number: str) -> ModelVersion | None:
    return _or_none(lambda: client.get_model_version(name, number))


def _or_none(ask: Callable[[], ModelVersion]) -> ModelVersion | None:
    """Turn MLflow's answer that something does not exist into None; every other error stays one."""
    try:
        return ask()
    except MlflowException as error:
        # A missing model or version answers with the first code, a missing alias of a model with the second.
        if error.error_code in {ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), ErrorCode.Name(INVALID_PARAMETER_VALUE)}:
            return None
        raise


def _describe(version: ModelVersion, fetch: bool) -> RegisteredVersion:
    """Collect what the tags say; where asked, bring the bundle to local disk.

    Files that are gone leave a folder that is none: whoever loads it is told so, and others go on without it.
    """
    folder = f"models:/{version.name}/{version.version}" if fetch else None
    if folder:
        try:
            folder = mlflow.artifacts.download_artifacts(folder)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
    mcc = version.tags.get("mcc")
    return RegisteredVersion(
        version=str(version.version),
        digest=version.tags.get("bundle_digest", ""),
        mcc=float(mcc) if mcc else None,
        verdict=version.tags.get("verdict"),
        dataset=version.tags.get("dataset"),
        bundle=str(Path(folder) / "data" / "bundle") if folder else "",
    )


def _find_logged(client: mlflow.MlflowClient, experiment: str, digest: str) -> str | None:
    """Return a whole logged model of this bundle that no version took up; a half one is deleted."""
    for model in client.search_logged_models([experiment], f"tags.bundle_digest = '{digest}'"):
        if model.status == LoggedModelStatus.READY:
            return model.model_id
        client.delete_logged_model(model.model_id)
    return None
