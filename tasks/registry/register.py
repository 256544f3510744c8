"""Writes to the model registry: versions, their tags and descriptions, and aliases.

Registering a bundle twice gives one version. `promotion.py` moves aliases under a lock and records every move.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import mlflow
import mlflow.artifacts
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from tasks.core.errors import VerdictError
from tasks.core.printable import shorten
from tasks.inference.bundle import CHAMPION, CHAMPION_URI, MODEL_NAME
from tasks.registry.code_digest import (
    BUNDLE_DIGEST_TAG,
    BUNDLE_PATH,
    MANIFEST_DIGEST_TAG,
    WRAPPING_DIGEST_TAG,
    digest_wrapping,
)
from tasks.registry.limits import MAX_DECISION, MAX_DESCRIPTION, MAX_TAG
from tasks.registry.lookup import find_version, version_by_alias, version_by_number
from tasks.registry.mlflow_client import connect, experiment_of
from tasks.registry.store import MlflowStore

JUDGED_IN_TAG = "judged_in"  # of a version: the run of its verdict, where another run registered it
MODEL_DESCRIPTION = f"""Tells whether an English sentence is acceptable to a native speaker.

- **champion** is what downstream systems load: `mlflow.pyfunc.load_model("{CHAMPION_URI}")`
- **challenger** is the last candidate on HOLD, which waits for a person

Each version is one bundle of ONNX graphs. Its description says how it was judged: PROMOTE, HOLD or REJECT, with the
reasons, the figures beside the champion's, and what changed. Its run holds report, evidence, pictures and data.

Aliases are moved by `verdict approve`, `verdict reject` and `verdict rollback`, which check the files first and keep a
record: `verdict history`. A move in this page is not recorded, and `verdict status` says so.
"""


def register_bundle(
    store: MlflowStore, run_id: str, bundle: str, digest: str, tags: Mapping[str, str], description: str
) -> str:
    """Log a bundle as a model version and return its number; a bundle that has a version keeps it.

    An existing version takes the tags of the new verdict, unless it is the champion or a person decided about it. The
    version is created last, with its tags, in one call: a process killed before leaves no version, one killed after
    leaves a complete one.
    """
    existing = find_version(store, digest)
    if existing:
        _update_verdict(store, existing, {**tags, JUDGED_IN_TAG: run_id}, description)
        return existing
    from tasks.registry.mlflow_flavor import log_model  # imports all of MLflow

    with connect(store, process_wide=True) as client:
        experiment = experiment_of(client, store)
        model_id = _find_logged(client, experiment, digest) or log_model(experiment, run_id, bundle, digest)
        logged = client.get_logged_model(model_id)
        create_model(client)
        version = client.create_model_version(
            MODEL_NAME,
            source=f"models:/{model_id}",
            run_id=run_id,
            model_id=model_id,
            tags={
                **_shortened(tags),
                BUNDLE_DIGEST_TAG: digest,
                # Of a killed run's model: the documents that this run wrote since are not in it.
                MANIFEST_DIGEST_TAG: logged.tags[MANIFEST_DIGEST_TAG],
                WRAPPING_DIGEST_TAG: _digest_logged_wrapping(logged.artifact_location),
            },
            description=shorten(description, MAX_DESCRIPTION),
        )
        return str(version.version)


def move_alias(store: MlflowStore, alias: str, version: str) -> None:
    """Point an alias at a version and read it back.

    Raises:
        VerdictError: if it points elsewhere then.
    """
    with connect(store) as client:
        client.set_registered_model_alias(MODEL_NAME, alias, version)
        found = client.get_model_version_by_alias(MODEL_NAME, alias).version
        if str(found) != version:
            raise VerdictError(
                f"alias {alias} points at version {found}, expected {version}; run again: verdict retrain"
            )


def drop_alias(store: MlflowStore, alias: str, version: str) -> None:
    """Delete an alias if it points at a version."""
    with connect(store) as client:
        found = version_by_alias(client, MODEL_NAME, alias)
        if found and str(found.version) == version:
            client.delete_registered_model_alias(MODEL_NAME, alias)


def tag_version(store: MlflowStore, version: str, tags: Mapping[str, str]) -> None:
    """Set tags of a version; do nothing if it was deleted."""
    with connect(store) as client:
        if version_by_number(client, MODEL_NAME, version):
            for key, value in _shortened(tags).items():
                client.set_model_version_tag(MODEL_NAME, version, key, value)


def prepend_description(store: MlflowStore, version: str, line: str, outdated: str = "") -> None:
    """Put a line above the description of a version unless it is there; do nothing if the version was deleted.

    Both are cut where they are too long together.

    Args:
        store: MLflow store.
        version: version number.
        line: what is put above.
        outdated: paragraph of the description that the line makes untrue, and is left out; empty for none.
    """
    line = shorten(line, MAX_DECISION)
    with connect(store) as client:
        found = version_by_number(client, MODEL_NAME, version)
        before = (found.description or "") if found else line
        if outdated:
            before = before.replace(f"{outdated}\n\n", "")
        if not before.startswith(line):
            text = shorten(f"{line}\n\n{before}".rstrip(), MAX_DESCRIPTION)
            client.update_model_version(MODEL_NAME, version, description=text)


def create_model(client: mlflow.MlflowClient) -> None:
    """Create the registered model unless it exists; another process may create it meanwhile."""
    if client.search_registered_models(f"name = '{MODEL_NAME}'"):
        return
    try:
        client.create_registered_model(MODEL_NAME, description=MODEL_DESCRIPTION)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise


def _update_verdict(store: MlflowStore, version: str, tags: Mapping[str, str], description: str) -> None:
    """Give a version its new verdict, unless it is the champion or a person decided about it."""
    with connect(store) as client:
        champion = version_by_alias(client, MODEL_NAME, CHAMPION)
        decided = "decided_by" in client.get_model_version(MODEL_NAME, version).tags
        if decided or (champion and str(champion.version) == version):
            return
        for key, value in _shortened(tags).items():
            client.set_model_version_tag(MODEL_NAME, version, key, value)
        client.update_model_version(MODEL_NAME, version, description=shorten(description, MAX_DESCRIPTION))


def _shortened(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: shorten(value, MAX_TAG) for key, value in tags.items()}


def _digest_logged_wrapping(location: str) -> str:
    """Return the digest of what was logged around a bundle, which need not be downloaded."""
    with tempfile.TemporaryDirectory() as scratch:
        for entry in mlflow.artifacts.list_artifacts(artifact_uri=location) or []:
            name = Path(entry.path).name
            if name != Path(BUNDLE_PATH).parts[0]:
                mlflow.artifacts.download_artifacts(f"{location}/{name}", dst_path=scratch)
        return digest_wrapping(Path(scratch))


def _find_logged(client: mlflow.MlflowClient, experiment: str, digest: str) -> str | None:
    """Return the id of a complete logged model of this bundle without a version; delete an incomplete one."""
    for model in client.search_logged_models([experiment], f"tags.bundle_digest = '{digest}'"):
        if model.status == LoggedModelStatus.READY:
            return model.model_id
        client.delete_logged_model(model.model_id)
    return None
