"""Predictions with a registered model or a bundle; imports MLflow only where the store is no local database."""

from pathlib import Path
from typing import Any

from tasks.inference.bundle import MODEL_NAME, digest_version, verify
from tasks.inference.classifier import Classifier
from tasks.registry.sqlite_lookup import find_local_version
from tasks.registry.store import locate_store, split_address


def predict(sentences: list[str], model: str, device: str, home: str) -> list[dict[str, Any]]:
    """Classify sentences with a model; every prediction carries its version.

    Raises:
        VerdictError: if there is no such model, or its bundle is damaged.
    """
    version, bundle = find_model(model, home)
    classifier = Classifier.from_bundle(bundle, device, spin=False)
    return [{**answer, "version": version} for answer in classifier.predict(sentences)]


def find_model(model: str, home: str) -> tuple[str, str]:
    """Return a model's version, `sha256:...` for the folder of a bundle, and the bundle's folder on local disk.

    Args:
        model: registry address, version number, or a bundle's folder.
        home: folder of the stores.

    Raises:
        UsageError: if it is none of these.
        VerdictError: if there is no such version.
    """
    address = f"models:/{MODEL_NAME}/{model}" if model.isdecimal() else model
    if address == model and Path(model).is_dir():
        return digest_version(verify(Path(model))), model
    store = locate_store(home)
    if found := find_local_version(store, *split_address(address)):
        return found.version, str(found.bundle)
    from tasks.registry.lookup import resolve_version  # imports MLflow, which takes seconds

    version = resolve_version(store, address, fetch=True)
    return version["version"], version["bundle"]
