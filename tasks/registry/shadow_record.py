"""What shadow deployments measured of a version, kept with it: a file for each server, and a line on its page.

Nobody's verdict depends on it: whoever can write to the store could change it. `mlflow-skinny` suffices.
"""

import tempfile
from pathlib import Path
from typing import cast

from mlflow import MlflowClient

from tasks.core.files import read_json, write_json
from tasks.evaluation.shadow_summary import SHADOW_SCHEMA_VERSION, ShadowSummary, describe_shadow, merge_summaries
from tasks.inference.bundle import MODEL_NAME
from tasks.registry.lookup import version_by_number
from tasks.registry.mlflow_client import connect
from tasks.registry.store import MlflowStore

SHADOW_TAG = "shadow"
RECORDS = "records"  # folder of a run's artifacts


def record_shadow(store: MlflowStore, summary: ShadowSummary, server: str) -> None:
    """Write what a server measured to the challenger's run, and what all have measured to the challenger's page.

    Args:
        store: with both versions.
        summary: of one server; replaces its earlier one.
        server: a name that no other server has, good for a file.

    Raises:
        UnreachableError: if the store does not answer.
    """
    champion, challenger = summary["champion"]["version"], summary["challenger"]["version"]
    with connect(store) as client, tempfile.TemporaryDirectory() as scratch:
        found = version_by_number(client, MODEL_NAME, challenger)
        if found is None or not found.run_id:
            return
        path = Path(scratch) / f"{server}.json"
        write_json(path, summary)
        client.log_artifact(found.run_id, str(path), _folder_of(champion))
        if whole := _read_all(client, found.run_id, challenger, champion):
            client.set_model_version_tag(MODEL_NAME, challenger, SHADOW_TAG, describe_shadow(whole))


def read_shadow(store: MlflowStore, challenger: str, champion: str) -> ShadowSummary | None:
    """Return what all servers measured of two versions, None where none did.

    Raises:
        UnreachableError: if the store does not answer.
    """
    with connect(store) as client:
        found = version_by_number(client, MODEL_NAME, challenger)
        return _read_all(client, found.run_id, challenger, champion) if found and found.run_id else None


def _read_all(client: MlflowClient, run: str, challenger: str, champion: str) -> ShadowSummary | None:
    with tempfile.TemporaryDirectory() as scratch:
        files = client.list_artifacts(run, _folder_of(champion))
        written = [read_json(Path(client.download_artifacts(run, file.path, scratch))) for file in files]
    summaries = [
        cast("ShadowSummary", each)
        for each in written
        if isinstance(each, dict)
        and each.get("schema_version") == SHADOW_SCHEMA_VERSION
        and (each["champion"]["version"], each["challenger"]["version"]) == (champion, challenger)
    ]
    return merge_summaries(summaries) if summaries else None


def _folder_of(champion: str) -> str:
    return f"{RECORDS}/shadow-against-{champion}"
