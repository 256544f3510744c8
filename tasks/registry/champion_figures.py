"""Reads the figures of every version that became champion."""

from mlflow.exceptions import MlflowException

from tasks.core.errors import UnknownModel
from tasks.registry import lookup, promotion
from tasks.registry.champion_history import DECISION_KINDS, TimelineEntry
from tasks.registry.mlflow_client import connect
from tasks.registry.register import JUDGED_IN_TAG
from tasks.registry.store import MlflowStore
from tasks.reporting.past_champions import MAX_CHAMPIONS, PastChampion


def list_champions(store: MlflowStore) -> list[PastChampion]:
    """Return the latest MAX_CHAMPIONS champions, oldest first; a version that became champion twice is there twice."""
    entries, _ = promotion.history(store)
    moves = [entry for entry in entries if entry["to"] and entry["kind"] not in DECISION_KINDS]
    return [_describe(store, entry) for entry in moves[-MAX_CHAMPIONS:]]


def _describe(store: MlflowStore, entry: TimelineEntry) -> PastChampion:
    version = str(entry["to"])
    tags, metrics = dict[str, str](), dict[str, float]()
    try:
        tags = lookup.read_tags(store, version)
        with connect(store) as client:
            metrics = client.get_run(tags.get(JUDGED_IN_TAG) or tags["run"]).data.metrics
    except (UnknownModel, MlflowException):  # the version or its run was deleted
        pass
    mcc, low, high = (metrics.get(name) for name in ("mcc", "mcc_low", "mcc_high"))
    known = None not in (mcc, low, high)
    return PastChampion(
        version=version,
        time=entry["time"],
        kind=entry["kind"],
        mcc=mcc if known else None,
        low=low if known else None,
        high=high if known else None,
        holdout=tags.get("holdout", ""),
        dataset=tags.get("dataset", ""),
    )
