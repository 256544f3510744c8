"""Lets a person decide a HOLD from Prefect's page, while no process waits.

When the run of a deployment has finished everything else it is suspended: its process ends and its GPU is free. Prefect
shows a form (approve or reject, reason, name). Submitting it starts the run again, which reads its outcome from
`waiting/` in the stores' folder and carries the decision out. If nobody answers in time, the flow run fails in Prefect
and the HOLD stays; `verdict approve` and `verdict reject` can decide it at any time.

A suspended run has given its place under the deployment's limit back. If another run has it when the form is submitted,
Prefect accepts the answer and cancels the answered run. So each run of a deployment looks for such answers when it
starts and when it ends, and carries them out.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from filelock import FileLock, Timeout
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput, keyset_from_base_key
from prefect.input.actions import read_flow_run_input
from pydantic import Field

from flows.commands import review
from flows.jobs.prefect_artifacts import link_report
from flows.outcome import RetrainOutcome
from tasks.core.errors import UnreachableError, VerdictError
from tasks.core.files import read_json, write_json
from tasks.registry.store import locate_store

INPUT_KEY = "hold"  # Prefect's key of the form's input, one a run
ANSWERS_LOCK_TIMEOUT_S = 600.0  # longer than an approval takes that judges the version again

log = logging.getLogger("tasks.approval")


class ApprovalForm(RunInput):
    """The form that Prefect shows."""

    decision: Literal["approve", "reject"]
    reason: str = Field(min_length=1, description="Reason; recorded in the history.")
    name: str = Field(default="", description="Name of the person; recorded in the history.")


def find_waiting(home: str) -> RetrainOutcome | None:
    """Return the outcome that this flow run was suspended with; None for a run that starts."""
    path = _waiting_path(home)
    return RetrainOutcome.from_json(read_json(path)) if path and path.is_file() else None


def wait_for_approval(outcome: RetrainOutcome, hours: float, home: str) -> RetrainOutcome:
    """Suspend this run until a person decided its HOLD, then carry the decision out; return the outcome with it.

    A run that no deployment started cannot be suspended and ends with its HOLD.

    Raises:
        VerdictError: if the decision cannot be carried out, for example because the champion is another one now.
    """
    path = _waiting_path(home)
    if path is None:
        log.warning(
            "version %s stays on HOLD: judge.wait_for_person suspends runs of the deployment retrain alone; decide "
            "with: verdict approve %s",
            *(outcome.version, outcome.version),
        )
        return outcome
    write_json(path, outcome.to_json())
    form = ApprovalForm.with_initial_data(description=_describe(outcome, link_report(outcome, locate_store(home))))
    answer = suspend_flow_run(wait_for_input=form, timeout=int(hours * 3_600), key=INPUT_KEY)
    try:
        with _answers_lock(home):
            change = _decide(outcome.version, answer, home)
            path.unlink(missing_ok=True)
    except Timeout as error:
        raise VerdictError(f"another process holds {error.lock_file}; the next run carries the answer out") from None
    decided = {key: change[key] for key in ("kind", "actor", "reason", "time", "from", "to")}
    return dataclasses.replace(outcome, decided=decided)


def carry_out_answers(home: str) -> list[str]:
    """Carry out the answers to suspended runs that Prefect cancelled when they were to start again, and log each.

    So are those of runs that failed or crashed with an answer. A run that ended without one, by a person or because the
    time was over, keeps its HOLD and waits no longer.

    Returns:
        a line on each answer.
    """
    if not _waiting_files(home):
        return []
    try:
        with _answers_lock(home):
            return [line for path in _waiting_files(home) for line in _carry_out(path, home)]
    except Timeout as error:
        log.warning("another process holds %s; the next run carries the answers out", error.lock_file)
        return []


def _waiting_files(home: str) -> list[Path]:
    return sorted((Path(home) / "waiting").glob("*.json"))


def _answers_lock(home: str) -> FileLock:
    """Return the lock under which answers are carried out: runs of two deployments find the same answer."""
    return FileLock(Path(home) / "waiting.lock", timeout=ANSWERS_LOCK_TIMEOUT_S)


def _carry_out(path: Path, home: str) -> list[str]:
    """Carry out the answer to one run, if it has ended with one; return a line on it."""
    run = _read_ended(UUID(path.stem))
    if run is None:
        return []
    try:
        outcome, answer = RetrainOutcome.from_json(read_json(path)), _answer_of(run)
    except VerdictError as error:
        if path.exists():  # else the run itself has carried its answer out meanwhile
            log.warning("%s", error)  # the run that looks for answers is not at fault
        return []
    if not outcome or not answer:
        path.unlink(missing_ok=True)
        return []
    line = _carry_out_late(outcome.version, answer, path, home)
    log.warning("%s (flow run %s, which ended before it carried that out)", line, path.stem)
    return [line]


def _carry_out_late(version: str, answer: ApprovalForm, path: Path, home: str) -> str:
    """Carry out an answer; return a line on it. Where the store does not answer, the next run tries again."""
    what = f"{answer.decision} of version {version}"
    try:
        _decide(version, answer, home)
        line = f"{what} carried out"
    except UnreachableError as error:
        return f"{what} waits: {error}"
    except VerdictError as error:
        line = f"{what} was not carried out: {error}"
    path.unlink(missing_ok=True)
    return line


def _read_ended(run_id: UUID) -> FlowRun | None:
    """Return a flow run that has ended; None for one that waits or runs, or is another server's."""
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(run_id)
        except ObjectNotFound:
            return None
    return run if run.state and run.state.is_final() else None


def _answer_of(run: FlowRun) -> ApprovalForm | None:
    """Return the answer that was given to a suspended run; None if there is none."""
    answer = read_flow_run_input(keyset_from_base_key(f"suspended-{INPUT_KEY}")["response"], run.id)
    return ApprovalForm.model_validate(answer) if answer else None


def _decide(version: str, answer: ApprovalForm, home: str) -> dict[str, Any]:
    decide = review.approve if answer.decision == "approve" else review.reject
    return decide(version, answer.reason, home, answer.name)


def _waiting_path(home: str) -> Path | None:
    """Return the file that keeps the outcome of a suspended run; None where no deployment started this run."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    return Path(home) / "waiting" / f"{run.id}.json" if run and run.deployment_id else None


def _describe(outcome: RetrainOutcome, report: str) -> str:
    reasons = "\n".join(f"- {reason}" for reason in outcome.reasons)
    return (
        f"# Version {outcome.version} is on HOLD\n\n{reasons}\n\n"
        f"Holdout MCC {outcome.mcc:.3f} ({outcome.mcc_low:.3f} to {outcome.mcc_high:.3f}), "
        f"champion {outcome.champion_before or 'none'}.\n\n{report}\n"
    )
