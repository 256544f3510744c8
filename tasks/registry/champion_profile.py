"""Reads the profile of the champion's training data from its bundle: the reference of gate and drift checks."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow.artifacts

from tasks.core.files import read_json
from tasks.inference.bundle import CHAMPION, MODEL_NAME, PROFILE
from tasks.registry.lookup import version_by_alias
from tasks.registry.mlflow_client import connect
from tasks.registry.store import MlflowStore, is_uninitialised

if TYPE_CHECKING:
    from tasks.data.drift import DataProfile


def fetch_profile(store: MlflowStore) -> "DataProfile | None":
    """Return the profile of the data that the champion was trained on.

    None if there is no champion, or its bundle holds no profile.

    Raises:
        UnreachableError: if the store does not answer.
    """
    if is_uninitialised(store):
        return None
    with connect(store, process_wide=True) as client:
        champion = version_by_alias(client, MODEL_NAME, CHAMPION)
        if champion is None:
            return None
        folder = f"models:/{MODEL_NAME}/{champion.version}/data/bundle"
        held = {Path(entry.path).name for entry in mlflow.artifacts.list_artifacts(artifact_uri=folder)}
        if PROFILE not in held:
            return None
        with tempfile.TemporaryDirectory() as scratch:
            return read_json(Path(mlflow.artifacts.download_artifacts(f"{folder}/{PROFILE}", dst_path=scratch)))
