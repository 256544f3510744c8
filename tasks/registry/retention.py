"""Deletes what nothing needs any more: folders of jobs and sweeps, snapshots, reports of checks, rejected bundles.

An item is kept while it is younger than the rule's days or, rejected versions apart, among the newest of its kind, and
for as long as an alias, the champion's history, a pending decision or a running job references it. A job or sweep runs
while its process holds the lock in its folder. MLflow's runs, with metrics, settings and verdicts, are never deleted.

Killed processes leave logged models that were never registered, and hidden files and folders beside what they were
writing (tasks/core/files.py). These are deleted by age.
"""

import contextlib
import glob
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

from filelock import FileLock, Timeout

from tasks.core.errors import UnknownModel, UsageError, VerdictError
from tasks.core.files import read_json, walk_files
from tasks.registry import audit_log, lookup, retention_queries
from tasks.registry.store import MlflowStore, database_of, is_uninitialised, locate_store
from tasks.registry.tracking import DIGEST_LENGTH

SECONDS_PER_DAY = 86_400.0
DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")
# Hidden files and folders: what a process was writing until it was killed, by where.
SCRATCH = (
    "runs/.[!.]*", "runs/[!.]*/.[!.]*", "checks/.[!.]*", "checks/[!.]*/.[!.]*", "sweeps/.[!.]*",
    "sweeps/[!.]*/.[!.]*", "snapshots/.[!.]*",
)  # fmt: skip
RECORD_FILES = ("result.json", "evidence.json", "split.json", "gate.json", "export.json", "verdict.json")


class RetentionRule(NamedTuple):
    """How long items are kept that nothing references."""

    days: float
    """younger items stay"""
    keep: int
    """number of newest items of each kind that stay"""


class PrunedItem(TypedDict):
    """An item that was deleted, or would be."""

    kind: str
    name: str
    megabytes: float
    why: str


class PruneResult(TypedDict):
    """What was deleted, or would be."""

    dry_run: bool
    items: list[PrunedItem]
    closed: list[str]
    """ids of MLflow runs that were left RUNNING"""
    megabytes: float


class References(NamedTuple):
    """What aliases, history, pending decisions and running jobs reference."""

    versions: set[str]
    digests: set[str]
    """of bundles and snapshots; those of data sets are truncated as MLflow stores them"""


def prune(home: str, rule: RetentionRule, dry_run: bool = False) -> PruneResult:
    """Delete what nothing references and the rule does not keep.

    Args:
        home: folder of the stores.
        rule: how long items are kept that nothing references.
        dry_run: delete nothing, only return what would be deleted.

    Raises:
        UsageError: if a number of the rule is out of range.
        UnreachableError: if the store does not answer: references are then unknown, and nothing is deleted.
    """
    if rule.days < 0 or rule.keep < 1:
        raise UsageError(f"got {rule.days} days and {rule.keep} to keep; expected --days 0 or more, --keep 1 or more")
    store, folder = locate_store(home), Path(home)
    references = find_references(store, folder)
    items = list(_prune_versions(store, rule, references, dry_run))
    items += _prune_models(store, rule, dry_run)
    items += _prune_scratch(folder, dry_run)
    items += _prune_jobs(folder, rule, references, dry_run)
    items += _prune_sweeps(folder, rule, dry_run)
    items += _prune_checks(folder, rule, dry_run)
    # Last, because the jobs that are left reference snapshots.
    deleted_jobs = {item["name"] for item in items if item["kind"] == "job"}
    items += _prune_snapshots(folder, rule, references, deleted_jobs, dry_run)
    closed = retention_queries.close_lost_runs(store, _at_least_a_day(rule), dry_run)
    return PruneResult(
        dry_run=dry_run, items=items, closed=closed, megabytes=round(sum(i["megabytes"] for i in items), 1)
    )


def find_references(store: MlflowStore, folder: Path) -> References:
    """Return what aliases, history, pending decisions and running jobs reference.

    Raises:
        VerdictError: if that cannot be determined.
    """
    numbers: set[str] = set()
    digests: set[str] = set()
    for path in (folder / "waiting").glob("*.json"):
        try:
            numbers.add(str(read_json(path)["version"]))
        except VerdictError:
            if path.exists():  # else it was decided meanwhile: aliases and history, which are read next, say how
                raise
    if not is_uninitialised(store):
        numbers |= retention_queries.list_aliased(store)
        for change in audit_log.read_changes(store):
            numbers |= {version for version in (change["version"], change["from"], change["to"]) if version}
            digests.add(change["bundle"])
        for version in sorted(numbers):
            with contextlib.suppress(UnknownModel):  # deleted by a person, still in the history
                tags = lookup.read_tags(store, version)
                digests |= {value for value in tags.values() if DIGEST_PATTERN.fullmatch(value)}
                digests |= retention_queries.read_inputs(store, tags["run"])
        digests |= retention_queries.inputs_of_running(store)
    return References(numbers, digests)


def _prune_versions(
    store: MlflowStore, rule: RetentionRule, references: References, dry_run: bool
) -> Iterator[PrunedItem]:
    """Delete rejected versions with their bundles; their runs stay."""
    if is_uninitialised(store):
        return
    for version in retention_queries.list_rejected(store):
        age = time.time() - version["created"]
        if version["version"] in references.versions or age < rule.days * SECONDS_PER_DAY:
            continue
        if not dry_run:
            retention_queries.drop_version(store, version["version"])
        yield PrunedItem(
            kind="version", name=version["version"], megabytes=version["megabytes"], why=f"rejected {_ago(age)}"
        )


def _prune_models(store: MlflowStore, rule: RetentionRule, dry_run: bool) -> Iterator[PrunedItem]:
    """Delete models that were logged and never registered, and folders of a local store that no model names."""
    if is_uninitialised(store):
        return
    for model in retention_queries.list_unregistered(store):
        age, megabytes = time.time() - model.changed, retention_queries.size_mb(model.location)
        if age >= _at_least_a_day(rule) and (dry_run or retention_queries.drop_model(store, model)):
            yield PrunedItem(kind="model", name=model.id, megabytes=megabytes, why=f"never registered, {_ago(age)}")
    database, artifacts = database_of(store), Path(store["artifacts"])
    if database is None or database.parent != artifacts.parent:  # the artifacts are not those of this store
        return
    known = retention_queries.known_models(store)
    for path in artifacts.glob("models/*/"):
        if path.name in known or not any(walk_files(path)):
            continue
        age, megabytes = time.time() - _changed(path), _size_mb(path)
        if age >= _at_least_a_day(rule):
            if not dry_run:
                _delete(path)
            yield PrunedItem(kind="model", name=path.name, megabytes=megabytes, why=f"no model of MLflow, {_ago(age)}")


def _prune_scratch(folder: Path, dry_run: bool) -> Iterator[PrunedItem]:
    """Delete what killed processes were writing more than a day ago, except in jobs that run."""
    # Unlike Path.glob, this passes over folders that vanish.
    found = (name for pattern in SCRATCH for name in glob.glob(pattern, root_dir=folder))  # noqa: PTH207
    for path in (folder / name for name in found):
        age = time.time() - _touched(path)
        if age < SECONDS_PER_DAY:
            continue
        lock = path.parent / "lock"  # of a job
        with contextlib.suppress(Timeout), FileLock(lock, timeout=0) if lock.is_file() else contextlib.nullcontext():
            name = str(path.relative_to(folder))
            yield PrunedItem(kind="scratch", name=name, megabytes=_size_mb(path), why=f"left {_ago(age)}")
            if not dry_run:
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _prune_jobs(folder: Path, rule: RetentionRule, references: References, dry_run: bool) -> Iterator[PrunedItem]:
    """Delete folders of finished jobs that nothing references, and of interrupted jobs that were not resumed."""
    for path, age in _old_ones((folder / "runs").glob("[!.]*/"), rule):
        if not _is_referenced(path, references):
            finished = (path / "result.json").is_file()
            yield from _prune_idle("job", path, f"{'finished' if finished else 'interrupted'} {_ago(age)}", dry_run)


def _prune_sweeps(folder: Path, rule: RetentionRule, dry_run: bool) -> Iterator[PrunedItem]:
    """Delete folders of sweeps, with rows and checkpoints; their winners are jobs, their trials MLflow's runs."""
    for path, age in _old_ones((folder / "sweeps").glob("[!.]*/"), rule):
        yield from _prune_idle("sweep", path, f"changed {_ago(age)}", dry_run)


def _prune_checks(folder: Path, rule: RetentionRule, dry_run: bool) -> Iterator[PrunedItem]:
    for path, age in _old_ones((folder / "checks").glob("[!.]*/"), rule):
        yield PrunedItem(kind="check", name=path.name, megabytes=_size_mb(path), why=f"made {_ago(age)}")
        if not dry_run:
            _delete(path)


def _old_ones(paths: Iterable[Path], rule: RetentionRule) -> Iterator[tuple[Path, float]]:
    """Yield what is neither young nor among the newest, each with its age in seconds."""
    for path in sorted(paths, key=_changed, reverse=True)[rule.keep :]:
        age = time.time() - _changed(path)
        if age >= rule.days * SECONDS_PER_DAY:
            yield path, age


def _prune_idle(kind: str, path: Path, why: str, dry_run: bool) -> Iterator[PrunedItem]:
    """Delete the folder of a job or sweep, unless a process works there."""
    item = PrunedItem(kind=kind, name=path.name, megabytes=_size_mb(path), why=why)
    with contextlib.suppress(Timeout), FileLock(path / "lock", timeout=0):
        if not dry_run:
            _delete(path)
        yield item


def _prune_snapshots(
    folder: Path, rule: RetentionRule, references: References, deleted_jobs: set[str], dry_run: bool
) -> Iterator[PrunedItem]:
    """Delete snapshots that nothing references: a later run that needs one writes it again."""
    digests = set(references.digests)
    for job in (folder / "runs").glob("*"):
        if job.name not in deleted_jobs:
            digests |= _digests_in(job)
    referenced = {digest[:DIGEST_LENGTH] for digest in digests}
    paths = sorted((folder / "snapshots").glob("*.parquet"), key=_changed, reverse=True)
    for path in paths[rule.keep :]:
        age = time.time() - _changed(path)
        digest = path.stem.removeprefix("quarantine-")
        # A job that starts now has snapshots that nothing references yet: keep those of the last day at least.
        if age < _at_least_a_day(rule) or digest[:DIGEST_LENGTH] in referenced:
            continue
        yield PrunedItem(kind="snapshot", name=path.stem, megabytes=_size_mb(path), why=f"last read {_ago(age)}")
        if not dry_run:
            path.unlink(missing_ok=True)


def _at_least_a_day(rule: RetentionRule) -> float:
    """Return the rule's age in seconds, for what a live process may be writing."""
    return max(rule.days, 1) * SECONDS_PER_DAY


def _is_referenced(job: Path, references: References) -> bool:
    """Check whether the version or bundle of a job is referenced; true where its result cannot be read."""
    path = job / "result.json"
    if not path.is_file():
        return False
    try:
        result = read_json(path)
        return str(result["version"]) in references.versions or result["digest"] in references.digests
    except (VerdictError, KeyError, TypeError):
        return True


def _digests_in(job: Path) -> set[str]:
    """Return every digest that the records of a job hold."""
    found: set[str] = set()
    for name in RECORD_FILES:
        with contextlib.suppress(OSError):
            found |= set(DIGEST_PATTERN.findall((job / name).read_text(encoding="utf-8")))
    return found


def _delete(path: Path) -> None:
    """Delete a folder atomically: a rename removes it before its files are deleted."""
    with tempfile.TemporaryDirectory(prefix=".pruned-", dir=path.parent, ignore_cleanup_errors=True) as scratch:
        with contextlib.suppress(FileNotFoundError):  # another process has deleted it
            path.rename(Path(scratch) / path.name)
        shutil.rmtree(Path(scratch) / path.name, ignore_errors=True)


def _changed(path: Path) -> float:
    """Return when a file, or anything in a folder, last changed: Unix time in seconds."""
    return max((status.st_mtime for file, status in walk_files(path) if file.name != "lock"), default=0.0)


def _touched(path: Path) -> float:
    """Return when a file or folder, or anything in it, last changed; an empty folder may be in use as well."""
    changed = _changed(path)
    try:
        return max(changed, path.stat().st_mtime)
    except FileNotFoundError:  # its writer has just renamed it
        return time.time()


def _size_mb(path: Path) -> float:
    return round(sum(status.st_size for _, status in walk_files(path)) / 1e6, 3)


def _ago(seconds: float) -> str:
    return f"{seconds / SECONDS_PER_DAY:.0f} days ago"
