"""The first look of who is on call: what reigns, what ran and why it ended so, what runs next, drift, disk."""

import contextlib
import datetime
import os
import shutil
import time
from pathlib import Path
from typing import Any, TypedDict

from flows.commands.doctor import MIN_FREE_DISK_GB
from tasks.core.errors import UnreachableError, VerdictError
from tasks.core.files import read_json
from tasks.registry import champion_history as history
from tasks.registry import promotion as moves
from tasks.registry import tracking as runs
from tasks.registry import verification as inspection
from tasks.registry import versions as registry
from tasks.registry.champion_history import TimelineEntry
from tasks.registry.mlflow_client import MlflowStore, is_uninitialised, locate_store
from tasks.registry.versions import CHALLENGER, CHAMPION, RegisteredVersion

DISK_SCAN_TIMEOUT_S = 2.0  # seconds in which the stores' files are counted, or not at all


class LatestDrift(TypedDict):
    """A look at data beside a champion's: when (ISO 8601), what drifted, and the digest of the champion's data."""

    time: str
    seen: str
    reference: str


def status(home: str) -> dict[str, Any]:
    """Return champion, challenger, latest runs and the rest of what somebody on call asks first.

    None and empty where there is nothing yet. `incumbency` tells a champion that vanished from one that there never
    was, and is unknown where the store does not answer; the champion's `fault` says what is wrong with its files and
    `since` when it was made champion; `drift` is the latest look at data beside the reigning champion's; `schedule` is
    what a lasting Prefect server says; `notices` holds one line for each thing that somebody should look at, and
    `unreachable` one for each server that did not answer: the rest of the answer is all the more needed then.
    """
    store = locate_store(home)
    answer: dict[str, Any] = {"store": store["uri"], "champion": None, "challenger": None, "runs": []}
    answer |= {"champion_state": "none", "drift": None, "schedule": None, "disk": measure_disk(home)}
    answer |= {"notices": [], "unreachable": []}
    if not is_uninitialised(store):
        try:
            answer |= read_runs(store)
        except UnreachableError as error:
            answer |= {"champion_state": "unknown", "unreachable": [str(error)]}
    try:
        answer["schedule"] = read_prefect()
    except UnreachableError as error:
        answer["unreachable"].append(str(error))
    answer["drift"] = latest_drift(answer["champion"], answer["runs"], home, answer["notices"])
    answer["notices"] += [
        f"the next {each['deployment']} is late: it was due at {each['time']}; is a worker up? verdict doctor"
        for each in (answer["schedule"] or {"next": []})["next"]
        if each["late"]
    ]
    if answer["disk"]["free_gb"] < MIN_FREE_DISK_GB:
        free = f"{answer['disk']['free_gb']:.1f} GB free at {home}"
        answer["notices"].append(f"{free}, a run needs {MIN_FREE_DISK_GB}; make room: verdict prune")
    return answer


def read_runs(store: MlflowStore) -> dict[str, Any]:
    """Return what a store that exists says.

    Raises:
        Unreachable: if it cannot be asked.
    """
    champion = registry.find_alias(store, CHAMPION, fetch=False)
    entries, records = moves.history(store)
    answer: dict[str, Any] = {"champion": _public(champion)}
    if champion:
        answer["champion"]["fault"] = inspection.version_error(store, champion["version"])
        answer["champion"]["since"] = promoted_at(entries, champion["version"])
    return answer | {
        "challenger": _public(registry.find_alias(store, CHALLENGER, fetch=False)),
        "runs": runs.recent_runs(store),
        "champion_state": moves.read_champion_state(store),
        "notices": history.warnings(entries, records),
    }


def read_prefect() -> Any:
    """Return what a lasting Prefect server knows; None where none is configured.

    Raises:
        Unreachable: if it does not answer.
    """
    from prefect.settings import get_current_settings

    if not get_current_settings().api.url:
        return None
    from flows.services.prefect_status import read_schedule  # its client takes a second to import

    return read_schedule()


def promoted_at(entries: list[TimelineEntry], version: str) -> str | None:
    """Return when the last move to a version was, ISO 8601; None where no record says it."""
    found = [
        entry["time"] for entry in entries if entry["to"] == version and entry["kind"] not in history.DECISION_KINDS
    ]
    return found[-1] if found else None


def latest_drift(
    champion: dict[str, Any] | None, recent: list[dict[str, Any]], home: str, notices: list[str]
) -> LatestDrift | None:
    """Return the latest look, by a run or by `watch`, at data beside that of the champion who reigns now.

    Args:
        champion: who reigns.
        recent: the latest runs.
        home: folder of the stores.
        notices: receives a line for each record of `watch` that cannot be read.
    """
    looks = [
        LatestDrift(time=_iso(run["start"]), seen=run["drift"], reference=run["drift_from"] or "")
        for run in recent
        if run["drift"]
    ]
    for path in sorted((Path(home) / "watch").glob("*.json")):
        try:
            seen = read_json(path)
            moment = datetime.datetime.fromisoformat(seen["time"]).astimezone(datetime.UTC).isoformat()
            if seen.get("drift"):
                looks.append(LatestDrift(time=moment, seen=seen["drift"], reference=seen.get("drift_from") or ""))
        except (VerdictError, KeyError, TypeError, ValueError, AttributeError):
            notices.append(f"{path} is no record of a look at data; delete it, and the next look writes it anew")
    asked = [look for look in looks if champion and look["reference"] == champion["dataset"]]
    return max(asked, key=lambda look: look["time"], default=None)


def measure_disk(home: str) -> dict[str, float | None]:
    """Return GB (10^9 bytes) that are free where the stores lie, and that they take; None where there are too many."""
    folder = Path(home)
    taken: float | None = _size_of(home)
    while not folder.exists():
        folder = folder.parent
    return {"free_gb": shutil.disk_usage(folder).free / 1e9, "stores_gb": None if taken is None else taken / 1e9}


def _size_of(home: str) -> int | None:
    """Add up the files of a folder in which others write and delete meanwhile."""
    deadline, total = time.monotonic() + DISK_SCAN_TIMEOUT_S, 0
    for folder, _, names in os.walk(home):
        if time.monotonic() > deadline:
            return None
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(folder, name).lstat().st_size
    return total


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()


def _public(version: RegisteredVersion | None) -> dict[str, Any] | None:
    """Leave out where the bundle happens to lie."""
    return {key: value for key, value in version.items() if key != "bundle"} if version else None
