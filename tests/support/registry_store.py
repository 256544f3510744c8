"""MLflow stores with versions whose bundles are a few bytes, for tests of aliases: with manifests, without a model."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

from toy import facts

from tasks.inference.bundle import MODEL_NAME, write_manifest
from tasks.registry import register
from tasks.registry.mlflow_client import connect
from tasks.registry.store import MlflowStore


def store_in(folder: Path) -> MlflowStore:
    return MlflowStore(uri=f"sqlite:///{folder}/mlflow.db", artifacts=str(folder / "artifacts"))


def new_store(empty_store: Path, folder: Path) -> MlflowStore:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(empty_store, folder / "mlflow.db")
    return store_in(folder)


def restore(backup: Path, folder: Path) -> MlflowStore:
    """Put the store in a folder back as it was, in the file that connections have open.

    A new file costs a new connection pool and a check of its schema, half a second for each test.
    """
    with sqlite3.connect(backup) as before, sqlite3.connect(folder / "mlflow.db") as now:
        before.backup(now)
    return store_in(folder)


def small_bundle(folder: Path, name: str) -> str:
    """Write a bundle of a few bytes where MLflow keeps the bundle of a model; return its digest."""
    bundle = folder / "data" / "bundle"
    bundle.mkdir(parents=True)
    for file in ("model.onnx", "tokenizer.json", "report.html"):
        (bundle / file).write_text(f"{file} of {name}")
    return write_manifest(bundle, facts(max_length=16), {})["digest"]


def add_version(store: MlflowStore, folder: Path, name: str, run_id: str | None = None, **tags: str) -> str:
    """Register a small bundle; return its version."""
    model = folder / f"model-{name}"
    digest = small_bundle(model, name)
    with connect(store) as client:
        register.create_model(client)
        held = {"bundle_digest": digest, "verdict": "PROMOTE", **tags}
        version = client.create_model_version(MODEL_NAME, source=str(model), run_id=run_id, tags=held)
        return str(version.version)


def bundle_folder(folder: Path, name: str) -> Path:
    return folder / f"model-{name}" / "data" / "bundle"


def aliases(store: MlflowStore) -> dict[str, str]:
    with connect(store) as client:
        found = client.search_registered_models(f"name = '{MODEL_NAME}'")
        return {alias: str(version) for alias, version in found[0].aliases.items()} if found else {}


def set_alias(store: MlflowStore, version: str, alias: str = "champion") -> None:
    """Set an alias as a person does in MLflow's page, without a record."""
    with connect(store) as client:
        client.set_registered_model_alias(MODEL_NAME, alias, version)


def changes_of(entries: list[Any]) -> list[tuple[str, str | None, str | None]]:
    """Return kind, from and to of each entry of a timeline."""
    return [(entry["kind"], entry["from"], entry["to"]) for entry in entries]


def is_complete(changes: list[Any]) -> bool:
    """Check whether records of the audit log are numbered and linked without a gap, each closed and unaltered."""
    linked = [change["previous"] for change in changes] == ["", *(change["id"] for change in changes[:-1])]
    numbered = [change["number"] for change in changes] == list(range(1, len(changes) + 1))
    closed = all(change["state"] != "pending" and not change["altered"] for change in changes)
    return linked and numbered and closed
