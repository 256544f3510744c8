"""What a shadow deployment measured of a version, kept with it: a file of its run, and a line on its page.

Nobody's verdict depends on it: whoever can write to the store could change it. `mlflow-skinny` suffices.
"""

import tempfile
from pathlib import Path
from typing import cast

from tasks.core.files import read_json, write_json
from tasks.evaluation.shadow_summary import SHADOW_SCHEMA_VERSION, ShadowSummary, describe_shadow
from tasks.inference.bundle import MODEL_NAME
from tasks.registry.lookup import version_by_number
from tasks.registry.mlflow_client import connect
from tasks.registry.store import MlflowStore

SHADOW_TAG = "shadow"
RECORDS = "records"  # folder of a run's artifacts


def record_shadow(store: MlflowStore, summary: ShadowSummary) -> None:
    """Write a summary to the challenger's run, and its line to the challenger's page; the latest replaces others.

    Raises:
        UnreachableError: if the store does not answer.
    """
    version = summary["challenger"]["version"]
    with connect(store) as client, tempfile.TemporaryDirectory() as scratch:
        found = version_by_number(client, MODEL_NAME, version)
        if found is None or not found.run_id:
            return
        path = Path(scratch) / _file_name(summary["champion"]["version"])
        write_json(path, summary)
        client.log_artifact(found.run_id, str(path), RECORDS)
        client.set_model_version_tag(MODEL_NAME, version, SHADOW_TAG, describe_shadow(summary))


def read_shadow(store: MlflowStore, challenger: str, champion: str) -> ShadowSummary | None:
    """Return what a server measured of two versions, None where none did.

    Raises:
        UnreachableError: if the store does not answer.
    """
    with connect(store) as client, tempfile.TemporaryDirectory() as scratch:
        found = version_by_number(client, MODEL_NAME, challenger)
        name = f"{RECORDS}/{_file_name(champion)}"
        if not found or not found.run_id or name not in {e.path for e in client.list_artifacts(found.run_id, RECORDS)}:
            return None
        written = read_json(Path(client.download_artifacts(found.run_id, name, scratch)))
        if not isinstance(written, dict) or written.get("schema_version") != SHADOW_SCHEMA_VERSION:
            return None
        summary = cast("ShadowSummary", written)
        return summary if summary["challenger"]["version"] == challenger else None


def _file_name(champion: str) -> str:
    return f"shadow-against-{champion}.json"
