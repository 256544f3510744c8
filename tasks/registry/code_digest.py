"""What a model holds around its bundle: MLflow's own files and the code that answers, which consumers execute.

A bundle proves itself file by file. The files around it are sealed by one digest, a tag of the version.
"""

import tempfile
from pathlib import Path

import mlflow.artifacts

from tasks.core.files import json_digest, sha256_of

CODE_DIGEST_TAG = "wrapping_digest"  # the tag
BUNDLE_FOLDER = "data"  # the folder that holds nothing but the bundle
IGNORED_FILES = {"registered_model_meta"}  # files that MLflow adds to what it hands out


def digest_code(address: str) -> str:
    """Return the hex SHA-256 over names and contents of a model's files outside of its bundle; they are small.

    Args:
        address: of the model: models:/NAME/VERSION or where its files lie; the caller is connected to its store.

    Raises:
        MlflowException, OSError: if they are not to be had.
    """
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for entry in mlflow.artifacts.list_artifacts(artifact_uri=address) or []:
            name = Path(entry.path).name
            if name == BUNDLE_FOLDER:
                continue
            place = Path(mlflow.artifacts.download_artifacts(f"{address}/{name}", dst_path=scratch))
            for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
                if path.is_file() and path.name not in IGNORED_FILES and path.suffix != ".pyc":
                    found[f"{name}/{path.relative_to(place)}"] = sha256_of(path)
    return json_digest(found)
