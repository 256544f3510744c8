"""A store of versions whose bundles weigh nothing, for tests of moves: sealed for real, and no model inside."""

import shutil
from pathlib import Path
from typing import Any

from toy import facts

from tasks.inference.bundle import MODEL_NAME, write_manifest
from tasks.registry import register
from tasks.registry.mlflow_client import MlflowStore, connect


def new_store(empty_store: Path, folder: Path) -> MlflowStore:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(empty_store, folder / "mlflow.db")
    return MlflowStore(uri=f"sqlite:///{folder}/mlflow.db", artifacts=str(folder / "artifacts"))


def light_bundle(folder: Path, name: str) -> str:
    """Write a sealed bundle of a few bytes in the place where MLflow keeps one of a model; return its digest."""
    bundle = folder / "data" / "bundle"
    bundle.mkdir(parents=True)
    for file in ("model.onnx", "tokenizer.json", "report.html"):
        (bundle / file).write_text(f"{file} of {name}")
    return write_manifest(bundle, facts(max_length=16), {})["digest"]


def add_version(store: MlflowStore, folder: Path, name: str, **tags: str) -> str:
    """Register a light bundle; return its version."""
    model = folder / f"model-{name}"
    digest = light_bundle(model, name)
    with connect(store) as client:
        register.create_model(client)
        held = {"bundle_digest": digest, "verdict": "PROMOTE", **tags}
        version = client.create_model_version(MODEL_NAME, source=str(model), tags=held)
        return str(version.version)


def bundle_folder(folder: Path, name: str) -> Path:
    return folder / f"model-{name}" / "data" / "bundle"


def aliases(store: MlflowStore) -> dict[str, str]:
    with connect(store) as client:
        found = client.search_registered_models(f"name = '{MODEL_NAME}'")
        return {alias: str(version) for alias, version in found[0].aliases.items()} if found else {}


def set_alias(store: MlflowStore, version: str, alias: str = "champion") -> None:
    """What a person does in MLflow's own page."""
    with connect(store) as client:
        client.set_registered_model_alias(MODEL_NAME, alias, version)


def shown(entries: list[Any]) -> list[tuple[str, str | None, str | None]]:
    return [(entry["kind"], entry["from"], entry["to"]) for entry in entries]
