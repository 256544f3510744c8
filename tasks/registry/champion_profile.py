"""Reads from the champion's bundle what served and new data are compared with: training data's profile, threshold."""

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

import mlflow.artifacts
from mlflow.entities.model_registry import ModelVersion

from tasks.core.errors import VerdictError
from tasks.core.files import read_json, sha256_of
from tasks.inference.bundle import CHAMPION, MANIFEST, MODEL_NAME, PROFILE, read_manifest
from tasks.inference.decision import DEFAULT_THRESHOLD, threshold_of
from tasks.registry.code_digest import BUNDLE_PATH, MANIFEST_DIGEST_TAG
from tasks.registry.lookup import version_by_alias
from tasks.registry.mlflow_client import connect
from tasks.registry.store import MlflowStore, is_uninitialised

if TYPE_CHECKING:
    from tasks.data.drift import DataProfile

log = logging.getLogger(__name__)


def fetch_profile(store: MlflowStore) -> "DataProfile | None":
    """Return the profile of the data that the champion was trained on.

    None if there is no champion, or its bundle holds no profile, or another one than was registered.

    Raises:
        UnreachableError: if the store does not answer.
    """
    if is_uninitialised(store):
        return None
    with connect(store, process_wide=True) as client:
        champion = version_by_alias(client, MODEL_NAME, CHAMPION)
        if champion is None:
            return None
        folder = _address(champion)
        held = {Path(entry.path).name for entry in mlflow.artifacts.list_artifacts(artifact_uri=folder)}
        if PROFILE not in held:
            return None
        with tempfile.TemporaryDirectory() as scratch:
            for name in (MANIFEST, PROFILE):
                path = Path(mlflow.artifacts.download_artifacts(f"{folder}/{name}", dst_path=scratch))
            try:
                return _read_profile(path.parent, champion.tags.get(MANIFEST_DIGEST_TAG, ""))
            except VerdictError as error:  # judging records it as a fault of the champion
                log.warning("data is not compared with the champion's, version %s: %s", champion.version, error)
                return None


def fetch_threshold(store: MlflowStore) -> float:
    """Return the champion's decision threshold, as its manifest states it; the default without a champion.

    Raises:
        UnreachableError: if the store does not answer.
        VerdictError: if the manifest is not the one that was registered.
    """
    with connect(store, process_wide=True) as client, tempfile.TemporaryDirectory() as scratch:
        champion = version_by_alias(client, MODEL_NAME, CHAMPION)
        if champion is None:
            return DEFAULT_THRESHOLD
        path = Path(mlflow.artifacts.download_artifacts(f"{_address(champion)}/{MANIFEST}", dst_path=scratch))
        return threshold_of(read_manifest(path.parent, champion.tags.get(MANIFEST_DIGEST_TAG, "")))


def _address(champion: ModelVersion) -> str:
    return f"models:/{MODEL_NAME}/{champion.version}/{BUNDLE_PATH}"


def _read_profile(folder: Path, manifest_digest: str) -> "DataProfile":
    """Read a profile that a manifest with this digest lists."""
    manifest = read_manifest(folder, manifest_digest)
    if sha256_of(folder / PROFILE) != manifest["files"].get(PROFILE):
        raise VerdictError(f"{PROFILE} is not the one that was registered; see: verdict status")
    return cast("DataProfile", read_json(folder / PROFILE, "see: verdict status"))
