"""Sends verdicts, failures and alias changes to a webhook and to a Prefect notification block.

VERDICT_ALERT_URL names the webhook (tasks/core/webhook.py), VERDICT_ALERT_BLOCK a notification block by its slug, for
example slack-webhook/ops: anything that Prefect can notify.
"""

import os
from typing import Any

from flows.outcome import RetrainOutcome
from tasks.core.errors import first_line
from tasks.core.webhook import post, send_with_timeout

BLOCK_VARIABLE = "VERDICT_ALERT_BLOCK"
SENT_KEYS = (
    "decision",
    "reasons",
    "version",
    "mcc",
    "mcc_low",
    "mcc_high",
    "dataset",
    "champion_before",
    "store",
    "run",
)


def notify_verdict(outcome: RetrainOutcome) -> None:
    """Report the verdict on a candidate."""
    reasons = "; ".join(outcome.reasons)
    text = f"{outcome.decision}: version {outcome.version}, MCC {outcome.mcc:.3f}: {reasons}"
    _send(text, {"event": "verdict"} | {key: getattr(outcome, key) for key in SENT_KEYS})


def alert_failure(flow: Any, flow_run: Any, state: Any) -> None:
    """Report a failed flow; Prefect calls this. Of a flow that is part of another that one's failure is reported."""
    if flow_run.parent_task_run_id:
        return
    error = state.result(raise_on_failure=False)
    reason = first_line(error)
    _send(f"{flow.name} failed: {reason}", {"event": "failure", "flow": flow.name, "reason": reason})


def alert_crash(flow: Any, flow_run: Any, state: Any) -> None:
    """Report a flow whose process died; Prefect's worker calls this."""
    reason = (str(state.message or "").strip().splitlines() or ["its process died"])[0][:500]
    text = f"{flow.name} run {flow_run.name} crashed: {reason}"
    _send(text, {"event": "crash", "flow": flow.name, "run": str(flow_run.id), "reason": reason})


def notify_alias_change(move: dict[str, Any]) -> None:
    """Report an approval, a rejection or a rollback."""
    change = f"champion {move['from'] or 'none'} to {move['to'] or 'none'}"
    text = f"{move['kind']} of version {move['version']} by {move['actor']}: {move['reason']} ({change})"
    keys = ("kind", "version", "from", "to", "actor", "reason", "time")
    _send(text, {"event": "move"} | {key: move[key] for key in keys})


def _send(text: str, payload: dict[str, Any]) -> None:
    post(text, payload)
    if slug := os.environ.get(BLOCK_VARIABLE, "").strip():
        send_with_timeout(f"block {slug}", lambda: _notify(slug, text))


def _notify(slug: str, text: str) -> None:
    from prefect.blocks import notifications  # noqa: F401  (registers the blocks that a slug may name)
    from prefect.blocks.core import Block

    block: Any = Block.load(slug)
    with block.raise_on_failure():
        block.notify(text, subject="Verdict")
