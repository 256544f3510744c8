"""Ends the MLflow runs that killed processes left RUNNING.

A job's last steps are result.json, the alert of its verdict, and the end of its run. So a run that is RUNNING beside a
result.json that names it lacks at most the last two, which any later command makes up for.
"""

import contextlib
from pathlib import Path

from filelock import Timeout

from flows.jobs.unchanged import load_result
from flows.notifications import notify_verdict
from flows.outcome import RetrainOutcome
from tasks.core.errors import VerdictError
from tasks.core.files import home_id
from tasks.core.folder_locks import exclusive
from tasks.registry import promotion, tracking
from tasks.registry.store import MlflowStore, is_uninitialised

LOOK_WAIT_S = 0.2  # for a lock that others may hold for an instant to look


def close_dead_runs(store: MlflowStore, home: str, job: str = "") -> None:
    """End the runs of a home whose processes died, and recover what they left pending in the audit log.

    Args:
        store: where the runs are.
        home: folder of the stores.
        job: whose lock the caller holds; if it has no result, its run stays RUNNING, because the caller resumes it.
    """
    if is_uninitialised(store):
        return
    promotion.recover(store)
    for run_id, other in tracking.running_jobs(store, home_id(home)).items():
        folder = Path(home) / "runs" / other
        # A process takes the lock before it opens its run, so one without a folder does not live.
        free = other == job or not folder.is_dir()
        with contextlib.suppress(Timeout), contextlib.nullcontext() if free else exclusive(folder, LOOK_WAIT_S):
            outcome = _read_result(folder, store)
            if outcome and outcome.run == run_id:
                end_job(store, outcome)
            elif other != job:
                promoted = promotion.was_promoted(store, run_id)
                tracking.close_run(store, run_id, "FINISHED" if promoted else "KILLED")


def end_job(store: MlflowStore, outcome: RetrainOutcome) -> None:
    """Do the last steps of a job that has its result; may be repeated."""
    notify_verdict(outcome)
    tracking.close_run(store, outcome.run, "FINISHED")


def _read_result(folder: Path, store: MlflowStore) -> RetrainOutcome | None:
    with contextlib.suppress(VerdictError):  # that job's own next run reports it
        return load_result(folder, store)
    return None
