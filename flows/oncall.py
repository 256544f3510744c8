"""The first look of who is on call: what reigns, what ran and why it ended so, what runs next, drift, disk."""

import datetime
import shutil
from pathlib import Path
from typing import Any

from flows.schedule import ask_schedule
from tasks import history, inspection, moves, registry, runs
from tasks.doctor import FREE_DISK
from tasks.errors import Unreachable
from tasks.files import read_json
from tasks.history import Entry
from tasks.registry import CHALLENGER, CHAMPION, Version
from tasks.store import Store, is_new, locate_store


def status(home: str) -> dict[str, Any]:
    """Return champion, challenger, latest runs and the rest of what somebody on call asks first.

    None and empty where there is nothing yet. `incumbency` tells a champion that vanished from one that there never
    was; the champion's `fault` says what is wrong with its files and `since` when it was made champion; `drift` is the
    latest look at data beside the champion's; `schedule` is what a lasting Prefect server says; `notices` holds one
    line for each thing that somebody should look at.

    Raises:
        Unreachable: if the store cannot be asked.
    """
    store = locate_store(home)
    answer: dict[str, Any] = {"store": store["uri"], "champion": None, "challenger": None, "runs": []}
    answer |= {"incumbency": "never", "drift": None, "schedule": None, "disk": measure_disk(home), "notices": []}
    if not is_new(store):
        answer |= look_into(store)
    answer["drift"] = latest_drift(answer["runs"], home)
    try:
        answer["schedule"] = ask_schedule()
    except Unreachable as error:  # the rest of the answer is all the more needed
        answer["notices"].append(str(error))
    answer["notices"] += [
        f"the next {each['deployment']} is late: it was due at {each['time']}; is a worker up? verdict doctor"
        for each in (answer["schedule"] or {"next": []})["next"]
        if each["late"]
    ]
    if answer["disk"]["free_gb"] < FREE_DISK:
        answer["notices"].append(
            f"{answer['disk']['free_gb']:.1f} GB free at {home}, a run needs {FREE_DISK}; make room: verdict prune"
        )
    return answer


def look_into(store: Store) -> dict[str, Any]:
    """Return what a store that exists says."""
    champion = registry.find_alias(store, CHAMPION, fetch=False)
    entries, records = moves.history(store)
    answer: dict[str, Any] = {"champion": _public(champion)}
    if champion:
        answer["champion"]["fault"] = inspection.find_fault(store, champion["version"])
        answer["champion"]["since"] = crowned_at(entries, champion["version"])
    return answer | {
        "challenger": _public(registry.find_alias(store, CHALLENGER, fetch=False)),
        "runs": runs.recent_runs(store),
        "incumbency": moves.incumbency(store),
        "notices": history.notices(entries, records),
    }


def crowned_at(entries: list[Entry], version: str) -> str | None:
    """Return when the last move to a version was, ISO 8601; None where no record says it."""
    found = [entry["time"] for entry in entries if entry["to"] == version and entry["kind"] not in history.DECISIONS]
    return found[-1] if found else None


def latest_drift(recent: list[dict[str, Any]], home: str) -> dict[str, str] | None:
    """Return time and finding of the latest look at data beside the champion's, by a run or by `watch`."""
    looks = [
        {"time": datetime.datetime.fromtimestamp(run["start"], datetime.UTC).isoformat(), "seen": run["drift"]}
        for run in recent
        if run["drift"]
    ]
    for path in (Path(home) / "watch").glob("*.json"):
        seen = read_json(path)
        if seen.get("drift"):
            looks.append({"time": seen["time"], "seen": seen["drift"]})
    return max(looks, key=lambda look: datetime.datetime.fromisoformat(look["time"]), default=None)


def measure_disk(home: str) -> dict[str, float]:
    """Return GB (10^9 bytes) that are free where the stores lie, and that they take."""
    folder = Path(home)
    taken = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    while not folder.exists():
        folder = folder.parent
    return {"free_gb": shutil.disk_usage(folder).free / 1e9, "stores_gb": taken / 1e9}


def _public(version: Version | None) -> dict[str, Any] | None:
    """Leave out where the bundle happens to lie."""
    return {key: value for key, value in version.items() if key != "bundle"} if version else None
