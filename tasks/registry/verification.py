"""Checks that the files of a version are those that were registered, and reads what its run recorded."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlflow.artifacts
from mlflow.exceptions import MlflowException

from tasks.core.errors import UnreachableError, UsageError, VerdictError
from tasks.core.files import read_json
from tasks.core.hidden_addresses import conceal
from tasks.core.signing import Signer, describe_signer
from tasks.inference.bundle import MODEL_NAME, Manifest, verify
from tasks.registry.code_digest import BUNDLE_DIGEST_TAG, BUNDLE_PATH, REMEDY, check_registered, check_version_signature
from tasks.registry.lookup import read_tags
from tasks.registry.mlflow_client import connect
from tasks.registry.sqlite_lookup import find_local_version
from tasks.registry.store import MlflowStore, database_of


def verify_version(store: MlflowStore, version: str, expected: str = "") -> str:
    """Check that a version's files are those that were registered; return the bundle's digest.

    Args:
        store: where.
        version: which.
        expected: digest that the bundle must have; empty: the one in the version's tags.

    Raises:
        UnknownModel: if there is no such version.
        VerdictError: if its files are missing, altered, or not those of the expected bundle.
        UnreachableError: if the store does not answer.
    """
    with open_verified(store, version, expected) as found:
        return found.manifest["digest"]


class VerifiedVersion(NamedTuple):
    """The folder of a version's files, which are those registered, the manifest of its bundle, and who signed them."""

    model: Path
    manifest: Manifest
    signer: Signer | None

    @property
    def bundle(self) -> Path:
        """The bundle's folder."""
        return self.model / BUNDLE_PATH


@contextlib.contextmanager
def open_verified(store: MlflowStore, version: str, expected: str = "") -> Iterator[VerifiedVersion]:
    """Yield the files of a version after the checks of `verify_version`; a downloaded folder is deleted afterwards."""
    tags = read_tags(store, version)
    if expected:
        tags[BUNDLE_DIGEST_TAG] = expected
    with open_model(store, version) as model:
        yield verify_files(model, version, tags)


def verify_files(model: Path, version: str, tags: Mapping[str, str]) -> VerifiedVersion:
    """Check a folder of a version's files against its manifest, the version's tags and its signature.

    Raises:
        VerdictError: if files are missing or altered, or not signed as they should be.
    """
    bundle = model / BUNDLE_PATH
    try:
        manifest = verify(bundle)
    except VerdictError as error:
        reason = str(error).partition(";")[0].replace(f"bundle {bundle}", f"bundle of version {version}")
        raise VerdictError(f"{reason.replace(str(bundle), f'version {version}')}; {REMEDY}") from error
    check_registered(model, version, manifest, tags)
    return VerifiedVersion(model, manifest, check_version_signature(model, version))


@contextlib.contextmanager
def open_model(store: MlflowStore, version: str) -> Iterator[Path]:
    """Yield the folder of a version's files: in a local store the original, else a temporary download.

    Raises:
        VerdictError: if its files cannot be downloaded.
        UnreachableError: if the store does not answer.
    """
    if local := find_local_version(store, MODEL_NAME, "", version):
        yield local.model  # MLflow would write a file there
        return
    with tempfile.TemporaryDirectory() as scratch:
        with connect(store, process_wide=True):
            target = None if database_of(store) else scratch
            try:
                model = mlflow.artifacts.download_artifacts(f"models:/{MODEL_NAME}/{version}", dst_path=target)
            except (MlflowException, OSError) as error:
                read_tags(store, version)  # raises where the store does not answer or the version does not exist
                reason = conceal((str(error).strip().splitlines() or [type(error).__name__])[-1])[:200]
                raise VerdictError(f"version {version}: its files cannot be read ({reason}); {REMEDY}") from error
        yield Path(model)


def inspect_version(store: MlflowStore, version: str) -> tuple[str | None, str | None]:
    """Return what is wrong with a version's files (None: nothing), and who signed them (None where something is).

    Raises:
        UnreachableError: if the store does not answer.
        UsageError: if a trusted key cannot be read.
    """
    try:
        with open_verified(store, version) as found:
            return None, describe_signer(found.signer)
    except (UnreachableError, UsageError):  # which say nothing about the files
        raise
    except VerdictError as error:
        return str(error), None


def read_recorded(store: MlflowStore, run_id: str, name: str) -> Any:
    """Return a JSON document from the artifacts of a run, None where there is none of that name."""
    with connect(store) as client, tempfile.TemporaryDirectory() as scratch:
        if not run_id or f"records/{name}" not in {entry.path for entry in client.list_artifacts(run_id, "records")}:
            return None
        recorded = Path(client.download_artifacts(run_id, f"records/{name}", scratch))
        return read_json(recorded, f"it is a record of run {run_id}; judge again: verdict retrain --force")
