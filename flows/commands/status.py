"""Collects the state of the system: champion, challenger, past and scheduled runs, drift, disk, warnings."""

import contextlib
import datetime
import os
import shutil
import time
from pathlib import Path
from typing import Any, TypedDict

from flows.commands.doctor import MIN_FREE_DISK_GB
from flows.services import supervision
from flows.services.embedded_prefect import external_api
from flows.services.server_watch import check_servers, external_servers
from tasks.core.errors import UnreachableError, UsageError, VerdictError
from tasks.core.files import home_id, read_json, walk_files
from tasks.core.folder_locks import is_locked
from tasks.inference.bundle import CHALLENGER, CHAMPION
from tasks.registry import champion_history, lookup, promotion, tracking, verification
from tasks.registry.champion_history import TimelineEntry
from tasks.registry.lookup import RegisteredVersion
from tasks.registry.mlflow_client import check_database
from tasks.registry.shadow_record import SHADOW_TAG
from tasks.registry.store import MlflowStore, is_uninitialised, locate_store
from tasks.serving.summary_file import REQUEST_LOG_FOLDER, RequestSummary, read_summary

# The step of a job after the one that wrote a file in its folder, the last ones first.
STEP_AFTER = {
    "evidence.json": "document, register",
    "export.json": "measure",
    "model/training.json": "export",
    "split.json": "fine-tune",
    "gate.json": "check encoder, split",
}
DISK_SCAN_TIMEOUT_S = 2.0  # after which the size of the stores is left out


class LatestDrift(TypedDict):
    """A comparison of new data with a champion's: time (ISO 8601), what drifted, digest of the champion's data."""

    time: str
    seen: str
    reference: str


def status(home: str) -> dict[str, Any]:
    """Return the state of the system for whoever is on call, as the command prints it.

    Keys: `home`, the folder of the stores, and `initialised`, whether a run ever wrote to them; `champion` with `fault`
    (what is wrong with its files), `signature` (who signed them) and `since`; `champion_state` (none, active, lost, or
    unknown if the store does not answer); `challenger` with `shadow`, what a server measured of it; `runs`; `drift`
    from the champion's data; `requests`, the last summary of the request log; `schedule` of the Prefect server;
    `services`, the state of each that `make up` runs; `disk`; `notices`, one line per thing to look at; `unreachable`,
    one line per server that does not answer, whose part is then missing.
    """
    store = locate_store(home)
    answer: dict[str, Any] = {"store": store["uri"], "champion": None, "challenger": None, "runs": []}
    answer |= {"home": home, "initialised": True}
    answer |= {"champion_state": "none", "drift": None, "schedule": None, "disk": measure_disk(home)}
    answer |= {"services": supervision.read_states(Path(home, "stack")), "notices": [], "unreachable": []}
    try:
        check_servers(external_servers(), wait=False)
        check_database(store)
        answer["initialised"] = not is_uninitialised(store)
        if answer["initialised"]:
            answer |= read_runs(store)
            describe_open_runs(answer["runs"], home)
    except UnreachableError as error:
        answer |= {"champion_state": "unknown", "unreachable": [str(error)]}
    try:
        answer["schedule"] = read_prefect()
    except (UnreachableError, UsageError) as error:
        answer["unreachable"].append(str(error))
    answer["requests"] = latest_summary(home, answer["notices"])
    answer["drift"] = latest_drift(answer["champion"], answer["runs"], home, answer["notices"])
    answer["notices"] += [
        f"the next {each['deployment']} is late: it was due at {each['time']}; is a worker up? verdict doctor"
        for each in (answer["schedule"] or {"next": []})["next"]
        if each["late"]
    ]
    answer["notices"] += [
        f"service {name} {state}; see why: make logs, then: make up"
        for name, state in (answer["services"] or {}).items()
        if state != "running"
    ]
    answer["notices"] += describe_room(home, answer["disk"]["free_gb"])
    return answer


def read_runs(store: MlflowStore) -> dict[str, Any]:
    """Return the part of the state that is in an existing MLflow store.

    Raises:
        UnreachableError: if it does not answer.
    """
    champion = lookup.find_alias(store, CHAMPION, fetch=False)
    entries, records = promotion.history(store)
    answer: dict[str, Any] = {"champion": _public(champion)}
    if champion:
        fault, signature = verification.inspect_version(store, champion["version"])
        answer["champion"] |= {"fault": fault, "signature": signature}
        answer["champion"]["since"] = promoted_at(entries, champion["version"])
    challenger = _public(lookup.find_alias(store, CHALLENGER, fetch=False))
    if challenger:
        challenger["shadow"] = lookup.read_tags(store, challenger["version"]).get(SHADOW_TAG)
    return answer | {
        "challenger": challenger,
        "runs": tracking.recent_runs(store),
        "champion_state": promotion.read_champion_state(store),
        "notices": champion_history.warnings(entries, records),
    }


def describe_open_runs(runs: list[dict[str, Any]], home: str) -> None:
    """Say of runs of this home at which step they are; those whose process is gone are shown as KILLED.

    The next run closes these in MLflow.
    """
    for run in runs:
        ours, folder = run.pop("home") == home_id(home), Path(home, "runs", str(run["job"]))
        if not ours or run["status"] != "RUNNING":
            continue
        if is_locked(folder):
            later = (step for file, step in STEP_AFTER.items() if (folder / file).is_file())
            run["why"] = f"at step {next(later, 'check data')}"
        else:
            run |= {"status": "KILLED", "why": run["why"] or tracking.STATUS_REASONS["KILLED"]}


def read_prefect() -> Any:
    """Return the schedule of the configured Prefect server; None if none is configured.

    Raises:
        UnreachableError: if it does not answer.
        UsageError: if PREFECT_API_URL is no address.
    """
    if not external_api():
        return None
    from flows.services.prefect_status import read_schedule  # its client takes a second to import

    return read_schedule()


def promoted_at(entries: list[TimelineEntry], version: str) -> str | None:
    """Return when the alias was last moved to a version, ISO 8601; None if no record has it."""
    found = [
        entry["time"]
        for entry in entries
        if entry["to"] == version and entry["kind"] not in champion_history.DECISION_KINDS
    ]
    return found[-1] if found else None


def latest_drift(
    champion: dict[str, Any] | None, recent: list[dict[str, Any]], home: str, notices: list[str]
) -> LatestDrift | None:
    """Return the latest comparison of data with the current champion's, by a run or by `watch`.

    Args:
        champion: the current one.
        recent: the latest runs.
        home: folder of the stores.
        notices: receives a line per record of `watch` that cannot be read.
    """
    comparisons = [
        LatestDrift(time=_iso(run["start"]), seen=run["drift"], reference=run["drift_from"] or "")
        for run in recent
        if run["drift"]
    ]
    for path in sorted((Path(home) / "watch").glob("*.json")):
        try:
            seen = read_json(path)
            moment = datetime.datetime.fromisoformat(seen["time"]).astimezone(datetime.UTC).isoformat()
            if seen.get("drift"):
                comparisons.append(LatestDrift(time=moment, seen=seen["drift"], reference=seen.get("drift_from") or ""))
        except (VerdictError, KeyError, TypeError, ValueError, AttributeError):
            notices.append(f"{path} is not a record of verdict watch; delete it, the next check writes it again")
    current = [each for each in comparisons if champion and each["reference"] == champion["dataset"]]
    return max(current, key=lambda each: each["time"], default=None)


def latest_summary(home: str, notices: list[str]) -> RequestSummary | None:
    """Return the last summary of the request log in the stores' folder; `notices` receives why one cannot be read."""
    try:
        return read_summary(Path(home) / REQUEST_LOG_FOLDER)
    except VerdictError as error:
        notices.append(str(error))
        return None


def measure_disk(home: str) -> dict[str, float | None]:
    """Return GB (10^9 bytes): free on the disk of the stores, used by them, and of that by Prefect's local databases.

    What the stores use is None if counting takes too long.
    """
    folder = Path(home)
    used = _size_of(home)
    databases = (*folder.glob("prefect.db*"), *folder.glob("stack/prefect.db*"))  # -wal and -shm come and go
    prefect = sum(status.st_size for path in databases for _, status in walk_files(path))
    return {
        "free_gb": shutil.disk_usage(_existing(folder)).free / 1e9,
        "stores_gb": None if used is None else used / 1e9,
        "prefect_gb": prefect / 1e9,
    }


def describe_room(home: str, free_gb: float) -> list[str]:
    """Return a notice where no run can be stored in a folder, and why."""
    folder = _existing(Path(home))
    if str(folder) != home and not (os.access(folder, os.W_OK) and shutil.disk_usage(folder).total):
        return [f"{home} cannot be created: {folder} takes no files; name another folder: VERDICT_HOME=DIR"]
    if free_gb < MIN_FREE_DISK_GB:
        return [f"{free_gb:.1f} GB free at {home}, a run needs {MIN_FREE_DISK_GB}; make room: verdict prune"]
    return []


def _existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    return folder if folder.exists() else _existing(folder.parent)


def _size_of(home: str) -> int | None:
    """Return the bytes of a folder's files, which may change meanwhile; None after DISK_SCAN_TIMEOUT_S."""
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
    """Return a version without the local path of its bundle."""
    return {key: value for key, value in version.items() if key != "bundle"} if version else None
