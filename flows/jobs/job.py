"""A job: its name, its folder with the lock, its MLflow run, and the context that its steps share.

A job is named by everything that decides its result: data, encoder, teacher, recipe, policy, device and code. Its
folder runs/NAME holds what is finished, each file written atomically; result.json comes last.
"""

import contextlib
import dataclasses
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import Timeout
from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment, flow_run

from flows.commands.predict import FoundModel
from flows.jobs.unchanged import load_result, recipe_of
from flows.outcome import RetrainOutcome
from flows.steps import Timer, retrying_task
from tasks.core import log_format
from tasks.core.errors import DataRejected, UnreachableError, VerdictError
from tasks.core.files import home_id, json_digest
from tasks.core.folder_locks import LOCK_FILE, exclusive
from tasks.core.policy import POLICY_FILE
from tasks.core.printable import redact
from tasks.core.provenance import git_commit, library_versions
from tasks.core.settings import Settings
from tasks.core.settings_loader import ResolvedSettings, SettingRow
from tasks.data.ingestion import Dataset
from tasks.data.sources import name_data, shown_addresses
from tasks.registry import lookup, tracking
from tasks.registry.descriptions import describe_failure
from tasks.registry.mlflow_client import NOTE
from tasks.registry.store import MlflowStore
from tasks.registry.system_metrics import record_system_metrics
from tasks.training.pretrained import Encoder

NAME_DIGITS = 8  # of the data's digest in the names of runs
ENCODER_TAG, TEACHER_TAG = "encoder_digest", "teacher_digest"  # of an MLflow run
START_WAIT_S = 1.0  # for the lock of a folder, which other commands hold for an instant to look
DEFAULT_ORIGINS = ("default", POLICY_FILE)  # of settings that nobody chose for this run; they are not tagged

log_dataset = retrying_task("log to MLflow", tracking.log_dataset)
open_run = retrying_task("open MLflow run", tracking.open_run)


class JobInputs(NamedTuple):
    """What a job starts from, beside its settings."""

    data: Dataset
    encoder: Encoder
    teacher: FoundModel | None
    """Whose answers training learns; None without one."""
    device: str
    """cuda or cpu, resolved."""

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the models, by the name of the run's tag."""
        teacher = {TEACHER_TAG: self.teacher.manifest_digest} if self.teacher else {}
        return {ENCODER_TAG: self.encoder["digest"]} | teacher


@dataclasses.dataclass(frozen=True)
class JobContext:
    """What every step of one job needs."""

    settings: Settings
    origins: dict[str, str]
    """The layer that each dotted setting came from."""
    store: MlflowStore
    folder: Path
    """Folder of the job: runs/NAME."""
    run_id: str
    """Of the MLflow run."""
    inputs: JobInputs
    timer: Timer
    subject: str
    """What it is about: name and digest of the data, for names of runs."""

    @property
    def setting_rows(self) -> list[SettingRow]:
        """All settings as they may be recorded."""
        return recordable_rows(self.settings, self.origins, self.inputs.teacher)


def name_job(settings: Settings, inputs: JobInputs) -> str:
    """Return 16 hex digits of everything that decides the result; where data and models lie is not part of it."""
    parts = [recipe_of(settings), inputs.data["digest"], inputs.digests, inputs.device, git_commit()]
    return json_digest(parts)[:16]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the job's lock over the block; the operating system releases it when the process dies.

    Raises:
        VerdictError: if another process works on the same job.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(exclusive(folder, START_WAIT_S))
        except Timeout:
            raise VerdictError(
                f"the same job is running already in {folder}; wait for it, then: verdict status"
            ) from None
        yield


def clear(folder: Path) -> None:
    """Delete everything in a job's folder but its lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()


def load_finished(folder: Path, store: MlflowStore) -> RetrainOutcome | None:
    """Return the outcome of a finished job whose version is still in the registry; None where there is none."""
    outcome = load_result(folder, store)
    return outcome if outcome and lookup.find_version(store, outcome.digest) == outcome.version else None


@contextlib.contextmanager
def tracked_run(
    resolved: ResolvedSettings,
    store: MlflowStore,
    home: str,
    job: str,
    inputs: JobInputs,
    timer: Timer,
) -> Iterator[JobContext]:
    """Keep the job's MLflow run open over the block: `end_job` ends it.

    On an error it ends FAILED, where it was stopped KILLED, in either case with the reason.
    """
    settings, origins = resolved
    data = inputs.data
    rows = recordable_rows(settings, origins, inputs.teacher)
    tags = {f"origin.{row.key}": row.origin for row in rows if row.origin not in DEFAULT_ORIGINS} | library_versions()
    commit, subject = git_commit(), name_subject(settings, data["digest"])
    tags |= {
        "host": socket.gethostname(),
        "home": home_id(home),
        "dataset": data["digest"],
        "git_commit": commit,
        **inputs.digests,
        **tracking.page_tags(subject, "verdict retrain", commit, deployed=bool(deployment.id)),
    }
    run_id = open_run(timer, store, job, {row.key: row.value for row in rows}, tags)
    addresses = dict.fromkeys(("train", "holdout", "secondary"), settings.data.path) | {"text": (settings.data.text,)}
    for name, path in addresses.items():
        if snapshot := data[name]:  # type: ignore[literal-required]
            log_dataset(timer, store, run_id, name, name, snapshot["digest"], snapshot["path"], shown_addresses(path))
    log_format.bind_context(run=run_id, flow_run=str(flow_run.id or ""), dataset=data["digest"], version="", digest="")
    try:
        with record_system_metrics(store, run_id):
            yield JobContext(settings, origins, store, Path(home) / "runs" / job, run_id, inputs, timer, subject)
    except BaseException as error:
        decision, status = describe_end(error)
        with contextlib.suppress(UnreachableError):  # if the store is what failed, the first error is the one to report
            reason = redact(_describe_stop(error) or str(error) or type(error).__name__)[:500]
            note = describe_failure(decision, reason)
            title = {tracking.RUN_NAME: f"{decision}, {subject}"}
            tracking.tag_run(store, run_id, {"verdict": decision, "error": reason, NOTE: note} | title)
            tracking.close_run(store, run_id, status)
        raise


def describe_end(error: BaseException) -> tuple[str, str]:
    """Return the verdict and the MLflow status of a run that an error ended."""
    if isinstance(error, KeyboardInterrupt | TerminationSignal):
        return "STOPPED", "KILLED"
    return "REFUSED" if isinstance(error, DataRejected) else "FAILED", "FAILED"


def _describe_stop(error: BaseException) -> str:
    """Return by which signal Prefect stopped a flow, of which its exception says nothing; empty for other errors."""
    return f"stopped by {signal.Signals(error.signal).name}" if isinstance(error, TerminationSignal) else ""


def name_subject(settings: Settings, dataset: str) -> str:
    """Return what a run with these settings is about: name of the data and the first digits of its digest."""
    return f"{name_data(settings.data.path)} {dataset[:NAME_DIGITS]}"


def recordable_rows(settings: Settings, origins: dict[str, str], teacher: FoundModel | None = None) -> list[SettingRow]:
    """Return a row of every setting: the addresses of the data in one line, that of the teacher with its digest."""
    rows = ResolvedSettings(settings, origins).rows()
    changed: dict[str, Callable[[Any], str]] = {"data.path": shown_addresses}
    if teacher:
        changed["finetune.teacher"] = lambda address: f"{address} (manifest {teacher.manifest_digest[:12]})"
    return [row._replace(value=changed[row.key](row.value)) if row.key in changed else row for row in rows]
