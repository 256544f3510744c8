"""What reigns, what waits, what ran: the questions of a person who looks after the model."""

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
    """Judge sentences with a registered model; every answer carries the version.

    Raises:
        VerdictError: if there is no such model, or its bundle is damaged.
    """
    version = registry.fetch_version(registry.locate_store(home), model)
    classifier = Classifier.from_bundle(version["bundle"], device)
    return [{**answer, "version": version["version"]} for answer in classifier.predict(sentences)]


def _public(version: Version | None) -> dict[str, Any] | None:
    """Leave out where the bundle happens to lie."""
    return {key: value for key, value in version.items() if key != "bundle"} if version else None
