"""The digest of a model's files outside of its bundle: MLflow's own, and the code that consumers execute.

The bundle has a checksum for each of its files; the files around it have one digest, which is a tag of the version.
"""

import tempfile
from pathlib import Path

import mlflow.artifacts

from tasks.core.files import json_digest, sha256_of

CODE_DIGEST_TAG = "wrapping_digest"
DATA_FOLDER = "data"  # holds only the bundle
IGNORED_FILES = {"registered_model_meta"}  # MLflow adds it to a model that it downloads


def digest_code(address: str) -> str:
    """Return the hex SHA-256 over names and contents of a model's files outside of its bundle.

    Args:
        address: models:/NAME/VERSION, or the location of the model's files; the caller is connected to the store.

    Raises:
        MlflowException, OSError: if they cannot be downloaded.
    """
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for entry in mlflow.artifacts.list_artifacts(artifact_uri=address) or []:
            name = Path(entry.path).name
            if name == DATA_FOLDER:
                continue
            local = Path(mlflow.artifacts.download_artifacts(f"{address}/{name}", dst_path=scratch))
            for path in sorted(local.rglob("*")) if local.is_dir() else [local]:
                if path.is_file() and path.name not in IGNORED_FILES and path.suffix != ".pyc":
                    found[f"{name}/{path.relative_to(local)}"] = sha256_of(path)
    return json_digest(found)
