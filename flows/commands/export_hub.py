"""Pushes the bundle of a model to a repository of the Hugging Face hub."""

from pathlib import Path
from typing import Any

from flows.commands.predict import find_model
from tasks.inference.bundle import check_signature
from tasks.registry.hub_bundles import check_repository, push_bundle


def export_hub(repository: str, model: str, public: bool, home: str) -> dict[str, Any]:
    """Push a bundle; return its version and where it is on the hub (`PushedBundle`).

    Args:
        repository: ORG/NAME; it is created where it is missing.
        model: registry address, version number, a bundle's folder, or hf:ORG/NAME[@REVISION].
        public: whether a new repository may be read by everybody.
        home: folder of the stores.

    Raises:
        UsageError: if repository or model are not valid, there is no token, or the hub refuses.
        UnreachableError: if the hub does not answer.
        VerdictError: if the model's files are damaged or not those registered, or not signed as required.
    """
    check_repository(repository)  # before a model is fetched
    found = find_model(model, home)
    check_signature(Path(found.bundle))
    return {"version": found.version, **push_bundle(Path(found.bundle), repository, public, found.manifest_digest)}
