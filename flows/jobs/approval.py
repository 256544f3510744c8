"""A person decides a HOLD inside the flow, without a machine that waits.

The run of a deployment is suspended when everything is finished: its process ends and its GPU is free. Prefect shows a
form (approve or reject, why, who). The answer starts the run again, which finds its outcome beside the stores and goes
straight to the answer. Where nobody answers in time the flow run fails in Prefect, and the HOLD stays: `verdict
approve` and `verdict reject` decide it at any time, as they do for a run that the command line started.
"""

from pathlib import Path
from typing import Any, Literal

from prefect.context import FlowRunContext
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from flows.commands import review
from tasks.core.files import read_json, write_json

INPUT_KEY = "hold"  # one question a run


class ApprovalForm(RunInput):
    """The form that Prefect shows."""

    decision: Literal["approve", "reject"]
    reason: str = Field(min_length=1, description="Why; it stays in the history.")
    name: str = Field(default="", description="Who decides; it stays in the history.")


def find_waiting(home: str) -> dict[str, Any] | None:
    """Return the outcome that this flow run was suspended with; None for a run that begins."""
    path = _store_address(home)
    return read_json(path) if path and path.is_file() else None


def wait_for_approval(outcome: dict[str, Any], hours: float, home: str) -> dict[str, Any]:
    """Suspend this run until a person decided its HOLD, and carry the decision out; return the outcome with it.

    A run that no deployment started cannot be suspended: it ends with its HOLD.

    Raises:
        VerdictError: if the decision cannot be carried out, for example because another champion reigns by now.
    """
    path = _store_address(home)
    if path is None:
        return outcome
    write_json(path, outcome)
    form = ApprovalForm.with_initial_data(description=_describe(outcome))
    answer = suspend_flow_run(wait_for_input=form, timeout=int(hours * 3_600), key=INPUT_KEY)
    decide = review.approve if answer.decision == "approve" else review.reject
    move = decide(outcome["version"], answer.reason, home, answer.name)
    path.unlink()
    return {**outcome, "decided": {key: move[key] for key in ("kind", "actor", "reason", "time", "from", "to")}}


def _store_address(home: str) -> Path | None:
    """Return where a run of a deployment keeps its outcome while it waits."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    return Path(home) / "waiting" / f"{run.id}.json" if run and run.deployment_id else None


def _describe(outcome: dict[str, Any]) -> str:
    reasons = "\n".join(f"- {reason}" for reason in outcome["reasons"])
    return (
        f"# Version {outcome['version']} is on HOLD\n\n{reasons}\n\n"
        f"Holdout MCC {outcome['mcc']:.3f} ({outcome['mcc_low']:.3f} to {outcome['mcc_high']:.3f}), "
        f"champion {outcome['champion_before'] or 'none'}. Report: `{outcome['report']}`\n"
    )
