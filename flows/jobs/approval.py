"""Lets a person decide a HOLD from Prefect's page, while no process waits.

When the run of a deployment has finished everything else it is suspended: its process ends and its GPU is free. Prefect
shows a form (approve or reject, reason, name). Submitting it starts the run again, which reads its outcome from
`waiting/` in the stores' folder and carries the decision out. If nobody answers in time, the flow run fails in Prefect
and the HOLD stays; `verdict approve` and `verdict reject` can decide it at any time.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from prefect.context import FlowRunContext
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from flows.commands import review
from flows.outcome import RetrainOutcome
from tasks.core.files import read_json, write_json

INPUT_KEY = "hold"  # Prefect's key of the form's input, one a run


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
        return outcome
    write_json(path, outcome.to_json())
    form = ApprovalForm.with_initial_data(description=_describe(outcome))
    answer = suspend_flow_run(wait_for_input=form, timeout=int(hours * 3_600), key=INPUT_KEY)
    decide = review.approve if answer.decision == "approve" else review.reject
    change = decide(outcome.version, answer.reason, home, answer.name)
    path.unlink()
    decided = {key: change[key] for key in ("kind", "actor", "reason", "time", "from", "to")}
    return dataclasses.replace(outcome, decided=decided)


def _waiting_path(home: str) -> Path | None:
    """Return the file that keeps the outcome of a suspended run; None where no deployment started this run."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    return Path(home) / "waiting" / f"{run.id}.json" if run and run.deployment_id else None


def _describe(outcome: RetrainOutcome) -> str:
    reasons = "\n".join(f"- {reason}" for reason in outcome.reasons)
    return (
        f"# Version {outcome.version} is on HOLD\n\n{reasons}\n\n"
        f"Holdout MCC {outcome.mcc:.3f} ({outcome.mcc_low:.3f} to {outcome.mcc_high:.3f}), "
        f"champion {outcome.champion_before or 'none'}. Report: `{outcome.report}`\n"
    )
