"""What reigns, what waits, what ran: the questions of a person who looks after the model."""

from pathlib import Path
from typing import Any

from tasks import registry
from tasks.predict import Classifier
from tasks.registry import CHALLENGER, CHAMPION, Version


def status(home: str) -> dict[str, Any]:
    """Return champion, challenger and the latest runs of the store; None and empty where there is nothing yet."""
    store = registry.locate_store(home)
    answer: dict[str, Any] = {"store": store["uri"], "champion": None, "challenger": None, "runs": []}
    if registry.is_new(store):
        return answer
    answer["champion"] = _public(registry.find_alias(store, CHAMPION, fetch=False))
    answer["challenger"] = _public(registry.find_alias(store, CHALLENGER, fetch=False))
    answer["runs"] = registry.recent_runs(store)
    return answer


def predict(sentences: list[str], model: str, device: str, home: str) -> list[dict[str, Any]]:
    """Judge sentences with a model; every answer carries its version.

    Raises:
        VerdictError: if there is no such model, or its bundle is damaged.
    """
    version, bundle = find_model(model, home)
    return [{**answer, "version": version} for answer in Classifier.from_bundle(bundle, device).predict(sentences)]


def find_model(model: str, home: str) -> tuple[str | None, str]:
    """Return a model's version, None for a bundle that is no registered one, and its bundle's folder on local disk.

    Args:
        model: registry address, version number, or a bundle's folder.
        home: folder of the stores.

    Raises:
        WrongUsage: if it is none of these.
        VerdictError: if there is no such version.
    """
    address = f"models:/{registry.MODEL_NAME}/{model}" if model.isdecimal() else model
    if address == model and Path(model).is_dir():
        return None, model
    version = registry.fetch_version(registry.locate_store(home), address)
    return version["version"], version["bundle"]


def _public(version: Version | None) -> dict[str, Any] | None:
    """Leave out where the bundle happens to lie."""
    return {key: value for key, value in version.items() if key != "bundle"} if version else None
