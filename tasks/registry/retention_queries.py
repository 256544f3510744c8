"""What retention (retention.py) reads and deletes in MLflow: aliased and rejected versions, data sets, lost runs."""

import contextlib
import time
from pathlib import Path
from typing import NamedTuple, TypedDict

import mlflow
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from tasks.core.errors import VerdictError
from tasks.core.folder_locks import shared
from tasks.core.hidden_addresses import reveal
from tasks.inference.bundle import MODEL_NAME
from tasks.registry.local_database import SWEEP_EXPERIMENT
from tasks.registry.mlflow_client import connect, experiment_of, search_all, unless_missing
from tasks.registry.store import MlflowStore, is_uninitialised

MODEL_URI_PREFIX = "models:/"  # of the logged model that a version was made from


class RejectedVersion(TypedDict):
    """A version that was rejected."""

    version: str
    created: float
    """Unix time in seconds"""
    megabytes: float
    """of its files"""


class UnregisteredModel(NamedTuple):
    """A logged model that no version was made from."""

    id: str
    changed: float
    """Unix time in seconds"""
    location: str


def list_aliased(store: MlflowStore) -> set[str]:
    """Return every version that has an alias."""
    with connect(store) as client:
        found = client.search_registered_models(f"name = '{MODEL_NAME}'")
        return {str(version) for model in found for version in model.aliases.values()}


def list_rejected(store: MlflowStore) -> list[RejectedVersion]:
    """Return the versions whose latest verdict is REJECT, newest first."""
    with connect(store, process_wide=True) as client:
        found = search_all(client.search_model_versions, f"name = '{MODEL_NAME}' and tags.verdict = 'REJECT'")
        versions = sorted(found, key=lambda version: int(version.version), reverse=True)
        return [
            RejectedVersion(
                version=str(version.version),
                created=version.creation_timestamp / 1_000,
                megabytes=size_mb(version.source),
            )
            for version in versions
        ]


def drop_version(store: MlflowStore, version: str) -> None:
    """Delete a version and the files of its model, unless another process did that meanwhile; its run stays.

    The version is deleted first: a process that is killed in between leaves files without a version, not the reverse.

    Raises:
        VerdictError: if it has an alias by now.
    """
    with connect(store) as client:
        if version in list_aliased(store):
            raise VerdictError(f"version {version} has an alias by now; it stays, see: verdict status")
        with unless_missing():
            source = client.get_model_version(MODEL_NAME, version).source
            location = client.get_model_version_download_uri(MODEL_NAME, version)
            client.delete_model_version(MODEL_NAME, version)
            if source.startswith(MODEL_URI_PREFIX):
                _drop_files(client, store, source.removeprefix(MODEL_URI_PREFIX), location)


def list_unregistered(store: MlflowStore) -> list[UnregisteredModel]:
    """Return the models that were logged and never registered, except those of runs with status RUNNING."""
    with connect(store) as client:
        experiment = experiment_of(client, store)
        running = search_all(client.search_runs, [experiment], "attributes.status = 'RUNNING'")
        live = {run.info.run_id for run in running}
        registered = _sources(client)
        return [
            UnregisteredModel(model.model_id, model.last_updated_timestamp / 1_000, model.artifact_location)
            for model in search_all(client.search_logged_models, [experiment])
            if f"{MODEL_URI_PREFIX}{model.model_id}" not in registered and model.source_run_id not in live
        ]


def drop_model(store: MlflowStore, model: UnregisteredModel) -> bool:
    """Delete a logged model and its files, unless it was registered meanwhile; return whether that was done."""
    with connect(store) as client:
        if f"{MODEL_URI_PREFIX}{model.id}" in _sources(client):
            return False
        _drop_files(client, store, model.id, model.location)
        return True


def known_models(store: MlflowStore) -> set[str]:
    """Return the ids of all models that are logged or registered; not those deleted in MLflow's page."""
    with connect(store) as client:
        logged = {model.model_id for model in search_all(client.search_logged_models, [experiment_of(client, store)])}
        return logged | {source.removeprefix(MODEL_URI_PREFIX) for source in _sources(client)}


def _sources(client: mlflow.MlflowClient) -> set[str]:
    versions = search_all(client.search_model_versions, f"name = '{MODEL_NAME}'")
    return {str(version.source) for version in versions}


def _drop_files(client: mlflow.MlflowClient, store: MlflowStore, model_id: str, location: str) -> None:
    """Delete a logged model, if nobody deleted it in MLflow's page, and then its files."""
    with unless_missing():
        client.delete_logged_model(model_id)
    with contextlib.suppress(MlflowException, OSError, NotImplementedError):
        get_artifact_repository(location, reveal(store["uri"])).delete_artifacts()


def read_inputs(store: MlflowStore, run_id: str) -> set[str]:
    """Return the shortened digests of a run's data sets; none where the run does not exist."""
    if not run_id:
        return set()
    with connect(store) as client:
        try:
            run = client.get_run(run_id)
        except MlflowException:
            return set()
        return {entry.dataset.digest for entry in run.inputs.dataset_inputs}


def inputs_of_running(store: MlflowStore) -> set[str]:
    """Return the shortened digests of the data sets of every run with status RUNNING, of any home."""
    with connect(store) as client:
        runs = search_all(client.search_runs, [experiment_of(client, store)], "attributes.status = 'RUNNING'")
        return {entry.dataset.digest for run in runs for entry in run.inputs.dataset_inputs}


def close_lost_runs(store: MlflowStore, seconds: float, dry_run: bool) -> list[str]:
    """Close runs of jobs, sweeps and trials that have had the status RUNNING for `seconds`.

    Their homes are gone, or the same sweep was not started again, so nothing else closes them. The runs of a process
    that works in a folder of this home stay, however long it takes.

    Returns:
        their ids.
    """
    if is_uninitialised(store):
        return []
    with connect(store) as client:
        before = int((time.time() - seconds) * 1_000)
        lost = f"attributes.status = 'RUNNING' and attributes.start_time < {before}"
        sweeps = client.get_experiment_by_name(SWEEP_EXPERIMENT)
        experiments = [experiment_of(client, store), *([sweeps.experiment_id] if sweeps else [])]
        runs = search_all(client.search_runs, experiments, lost, run_view_type=ViewType.ACTIVE_ONLY)
        return [
            run.info.run_id for run in runs if _close_lost_run(client, run, Path(store["artifacts"]).parent, dry_run)
        ]


def _close_lost_run(client: mlflow.MlflowClient, run: Run, home: Path, dry_run: bool) -> bool:
    """Close a run, unless its process lives or it ended since it was found; return whether that was done."""
    folders = {"job": home / "runs", "sweep": home / "sweeps"}
    held = [folder / run.data.tags[tag] for tag, folder in folders.items() if tag in run.data.tags]
    with contextlib.ExitStack() as locks, unless_missing():
        if not all(locks.enter_context(shared(folder)) for folder in held):
            return False
        # No process of this home can end or resume it now; one of another home may have ended it.
        if client.get_run(run.info.run_id).info.status != "RUNNING":
            return False
        if not dry_run:
            client.set_terminated(run.info.run_id, "KILLED")
        return True
    return False


def size_mb(uri: str) -> float:
    """Return the megabytes of a model's files; 0 where they cannot be listed."""
    total = 0
    with contextlib.suppress(MlflowException, OSError):
        repository = get_artifact_repository(uri)
        folders = [""]
        while folders:
            for entry in repository.list_artifacts(folders.pop() or None):
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    total += entry.file_size or 0
    return round(total / 1e6, 3)
