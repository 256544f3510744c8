"""A store whose champion is a bundle, as downstream systems find it through MLflow."""

import shutil
from pathlib import Path
from typing import Any

import mlflow

from tasks.registry import register, tracking
from tasks.registry.store import MlflowStore


def make_champion_store(folder: Path, empty_store: Path, exported: Any) -> Path:
    """Write mlflow.db, in which the champion is version 1, into a folder; return the folder."""
    shutil.copy(empty_store, folder / "mlflow.db")
    store = MlflowStore(uri=f"sqlite:///{folder}/mlflow.db", artifacts=str(folder / "artifacts"))
    run = tracking.open_run(store, "a" * 16, {}, {})
    version = register.register_bundle(store, run, exported["bundle"], exported["digest"], {}, "a bundle")
    client = mlflow.MlflowClient(store["uri"], registry_uri=store["uri"])
    client.set_registered_model_alias("acceptability", "champion", version)
    return folder
