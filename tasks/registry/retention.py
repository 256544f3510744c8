"""Forgets what nothing needs any more: folders of jobs, snapshots, checks, and bundles that were rejected.

Something is kept while it is younger than so many days or among the newest few of its kind, and for as long as an
alias, the history of moves, a person's pending decision or a running job needs it. A job is asked by its lock, which
its process holds. What MLflow runs say (figures, settings, the verdict) is never deleted: they are the record.
"""

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

from filelock import FileLock, Timeout

from tasks.core.errors import UnknownModel, UsageError, VerdictError
from tasks.core.files import read_json
from tasks.registry import lookup
from tasks.registry import promotion as moves
from tasks.registry import retention_queries as disposal
from tasks.registry.mlflow_client import MlflowStore, is_uninitialised, locate_store

SECONDS_PER_DAY = 86_400.0  # seconds
DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")
RECORD_FILES = ("result.json", "evidence.json", "split.json", "gate.json", "export.json", "verdict.json")


class RetentionRule(NamedTuple):
    """How long things are kept that nothing needs."""

    days: float = 30.0
    """Younger ones stay."""
    keep: int = 5
    """So many of the newest stay, of each kind."""


class PrunedItem(TypedDict):
    """Something that goes."""

    kind: str
    name: str
    megabytes: float
    why: str


class PruneResult(TypedDict):
    """What went, or would go."""

    dry_run: bool
    items: list[PrunedItem]
    closed: list[str]
    megabytes: float


class References(NamedTuple):
    """What something alive needs."""

    versions: set[str]
    """By alias, history, or a decision that a person is asked for."""
    digests: set[str]
    """Of bundles and snapshots."""


def prune(home: str, rule: RetentionRule = RetentionRule(), dry_run: bool = False) -> PruneResult:  # noqa: B008 (immutable)
    """Delete what the rule gives up; return it.

    Args:
        home: folder of the stores.
        rule: how long things are kept that nothing needs.
        dry_run: only say what would go.

    Raises:
        WrongUsage: if the rule makes no sense.
        Unreachable: if the store cannot be asked: what is needed is then unknown, and nothing is deleted.
    """
    if rule.days < 0 or rule.keep < 1:
        raise UsageError(
            f"{rule.days} days and {rule.keep} to keep is no rule; expected --days 0 or more, --keep 1 or more"
        )
    store, folder = locate_store(home), Path(home)
    needed = find_references(store, folder)
    items = list(_versions(store, rule, needed, dry_run))
    items += _jobs(folder, rule, needed, dry_run)
    items += _checks(folder, rule, dry_run)
    # Last: what is left of the jobs says which snapshots are needed.
    gone = {item["name"] for item in items if item["kind"] == "job"}
    items += _snapshots(folder, rule, needed, gone, dry_run)
    closed = disposal.close_lost_runs(store, max(rule.days, 1) * SECONDS_PER_DAY, dry_run)
    return PruneResult(
        dry_run=dry_run, items=items, closed=closed, megabytes=round(sum(i["megabytes"] for i in items), 1)
    )


def find_references(store: MlflowStore, folder: Path) -> References:
    """Return what aliases, history and pending decisions need.

    Raises:
        VerdictError: if that cannot be found out.
    """
    versions: set[str] = set()
    digests: set[str] = set()
    for path in (folder / "waiting").glob("*.json"):
        versions.add(str(read_json(path)["version"]))
    if not is_uninitialised(store):
        versions |= disposal.list_aliased(store)
        for move in moves.read_changes(store):
            versions |= {version for version in (move["version"], move["from"], move["to"]) if version}
            digests.add(move["bundle"])
        for version in sorted(versions):
            with contextlib.suppress(UnknownModel):  # deleted by a person; the history still tells of it
                tags = lookup.read_tags(store, version)
                digests |= {value for value in tags.values() if DIGEST_PATTERN.fullmatch(value)}
                digests |= disposal.read_inputs(store, tags["run"])
        digests |= disposal.inputs_of_running(store)
    return References(versions, digests)


def _versions(store: MlflowStore, rule: RetentionRule, needed: References, dry_run: bool) -> Iterator[PrunedItem]:
    """Drop the bundles of rejected versions; their runs stay, and so what they were judged by."""
    if is_uninitialised(store):
        return
    rejected = disposal.list_rejected(store)  # newest first
    for version in rejected[rule.keep :]:
        age = time.time() - version["created"]
        if version["version"] in needed.versions or age < rule.days * SECONDS_PER_DAY:
            continue
        if not dry_run:
            disposal.drop_version(store, version["version"])
        yield PrunedItem(
            kind="version", name=version["version"], megabytes=version["megabytes"], why=f"rejected {_ago(age)}"
        )


def _jobs(folder: Path, rule: RetentionRule, needed: References, dry_run: bool) -> Iterator[PrunedItem]:
    """Delete folders of jobs: finished ones that no version needs, and killed ones that nobody went on with."""
    jobs = sorted((path for path in (folder / "runs").glob("*") if path.is_dir()), key=_changed, reverse=True)
    for path in jobs[rule.keep :]:
        age = time.time() - _changed(path)
        if age < rule.days * SECONDS_PER_DAY or _is_referenced(path, needed):
            continue
        finished = (path / "result.json").is_file()
        why = f"{'finished' if finished else 'given up'} {_ago(age)}"
        item = PrunedItem(kind="job", name=path.name, megabytes=_size(path), why=why)
        with contextlib.suppress(Timeout), FileLock(path / "lock", timeout=0):
            if not dry_run:
                _delete(path)
            yield item


def _checks(folder: Path, rule: RetentionRule, dry_run: bool) -> Iterator[PrunedItem]:
    checks = sorted((path for path in (folder / "checks").glob("*") if path.is_dir()), key=_changed, reverse=True)
    for path in checks[rule.keep :]:
        age = time.time() - _changed(path)
        if age >= rule.days * SECONDS_PER_DAY:
            yield PrunedItem(kind="check", name=path.name, megabytes=_size(path), why=f"made {_ago(age)}")
            if not dry_run:
                _delete(path)


def _snapshots(
    folder: Path, rule: RetentionRule, needed: References, gone: set[str], dry_run: bool
) -> Iterator[PrunedItem]:
    """Delete snapshots that nothing names; a run that reads its data again renews its snapshots first."""
    named = set(needed.digests)
    for job in (folder / "runs").glob("*"):
        if job.name not in gone:
            named |= _digests_in(job)
    shortened = {digest[: disposal.SHORT_DIGEST_CHARS] for digest in named}
    paths = sorted((folder / "snapshots").glob("*.parquet"), key=_changed, reverse=True)
    for path in paths[rule.keep :]:
        age = time.time() - _changed(path)
        digest = path.stem.removeprefix("quarantine-")
        # A job that begins right now has read its data and told nobody yet.
        if age < max(rule.days, 1) * SECONDS_PER_DAY or digest[: disposal.SHORT_DIGEST_CHARS] in shortened:
            continue
        yield PrunedItem(kind="snapshot", name=path.stem, megabytes=_size(path), why=f"last read {_ago(age)}")
        if not dry_run:
            path.unlink(missing_ok=True)


def _is_referenced(job: Path, needed: References) -> bool:
    """Tell whether a job's folder belongs to something alive; one that cannot be read stays."""
    path = job / "result.json"
    if not path.is_file():
        return False
    try:
        outcome = read_json(path)
        return str(outcome["version"]) in needed.versions or outcome["digest"] in needed.digests
    except (VerdictError, KeyError, TypeError):
        return True


def _digests_in(job: Path) -> set[str]:
    found: set[str] = set()
    for name in RECORD_FILES:
        with contextlib.suppress(OSError):
            found |= set(DIGEST_PATTERN.findall((job / name).read_text(encoding="utf-8")))
    return found


def _delete(path: Path) -> None:
    """Delete a folder that others find whole or not at all."""
    with tempfile.TemporaryDirectory(prefix=".pruned-", dir=path.parent, ignore_cleanup_errors=True) as scratch:
        path.rename(Path(scratch) / path.name)
        shutil.rmtree(Path(scratch) / path.name, ignore_errors=True)


def _changed(path: Path) -> float:
    """Return when anything in a folder, or a file, last changed: seconds since 1970."""
    times = [0.0]
    for found in (path, *(path.rglob("*") if path.is_dir() else ())):
        with contextlib.suppress(OSError):
            if found.is_file() and found.name != "lock":
                times.append(found.stat().st_mtime)
    return max(times)


def _size(path: Path) -> float:
    files = path.rglob("*") if path.is_dir() else (path,)
    return round(sum(file.stat().st_size for file in files if file.is_file()) / 1e6, 3)


def _ago(seconds: float) -> str:
    return f"{seconds / SECONDS_PER_DAY:.0f} days ago"
