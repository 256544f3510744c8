"""Puts the deployments of infra/prefect.yaml, and what keeps watch over their runs, onto a lasting Prefect server.

Beside the deployments: the work pool, one run at a time in its queue `train`, and automations that end what no worker
ends any more. Doing it again changes what is there.
"""

import contextlib
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, CallWebhook, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import get_current_settings
from pydantic import SecretStr

from flows.notifications import BLOCK_VARIABLE
from flows.services.prefect_status import POOL, TAG
from tasks.core.errors import UnreachableError, UsageError, VerdictError
from tasks.core.webhook import URL_VARIABLE

QUEUE = "train"
ALERTS = "verdict-alerts"  # the block that automations call
HEARTBEAT_TIMEOUT = 90  # seconds without a heartbeat, which comes every 30
START_TIMEOUT = 600  # seconds in which a run that a worker took must have begun


def deploy(file: str = "") -> dict[str, Any]:
    """Apply deployments and automations; return what the command prints.

    Args:
        file: another file of deployments than the project's.

    Raises:
        WrongUsage: if no lasting server is configured, or there is no such file.
        Unreachable: if the server does not answer.
        VerdictError: if Prefect refuses the file.
    """
    url = get_current_settings().api.url
    if not url:
        raise UsageError("schedules need a lasting Prefect server; start one: make up, then set PREFECT_API_URL")
    path = Path(file) if file else find_file()
    if not path.is_file():
        raise UsageError(f"{path} is no file; expected one like infra/prefect.yaml")
    try:
        with get_client(sync_client=True) as client:
            prepare_pool(client)
            apply_file(path)
            automations = apply_automations(client)
            found = [client.read_deployment(held.id) for held in client.read_deployments() if TAG in held.tags]
    except OSError as error:
        raise UnreachableError(f"Prefect at {url} failed ({error}); check it: verdict doctor") from error
    deployments = [
        {
            "name": held.name,
            "schedules": [_describe(entry.schedule) for entry in held.schedules if entry.active],
            "paused": held.paused,
        }
        for held in sorted(found, key=lambda held: held.name)
    ]
    return {"server": url, "pool": POOL, "file": str(path), "deployments": deployments, "automations": automations}


def find_file() -> Path:
    """Return the project's deployments: in a checkout, or beside this module where it is installed."""
    here = Path(__file__).parent
    return next(
        (path for path in (here.parents[1] / "infra" / "prefect.yaml",) if path.is_file()), here / "prefect.yaml"
    )


def prepare_pool(client: SyncPrefectClient) -> None:
    """Make the work pool, for processes where no worker has made it yet; its queue `train` runs one at a time.

    The queue counts runs by their state, so unlike a lease this limit cannot be lost with a server.
    """
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        with contextlib.suppress(ObjectAlreadyExists):  # a worker that starts right now was first
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    with contextlib.suppress(ObjectAlreadyExists):
        client.create_work_queue(QUEUE, work_pool_name=POOL)
    queue = client.read_work_queue_by_name(QUEUE, work_pool_name=POOL)
    client.update_work_queue(queue.id, concurrency_limit=1)


def apply_file(path: Path) -> None:
    """Let Prefect's own command apply a file.

    Raises:
        VerdictError: if it refuses.
    """
    command = ["--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
    done = subprocess.run([sys.executable, "-m", "prefect", *command], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no word"]
        raise VerdictError(f"Prefect refuses {path}: {said[-1][:300]}")


def apply_automations(client: SyncPrefectClient) -> list[str]:
    """Make or change the automations; return their names.

    A worker reports the runs whose process died under it. What these are for is a worker that is gone itself.
    """
    told = _notify_action(client)
    names = []
    for automation in (_heartbeat_lost(told), _never_begun(told)):
        existing = client.read_automations_by_name(automation.name)
        if existing:
            client.update_automation(existing[0].id, automation)
        else:
            client.create_automation(automation)
        names.append(automation.name)
    return names


def _heartbeat_lost(told: list[ActionTypes]) -> AutomationCore:
    return AutomationCore(
        name="verdict: worker gone",
        description=f"Marks a run crashed that gave no sign for {HEARTBEAT_TIMEOUT} s; the next one resumes it.",
        trigger=_trigger({"prefect.flow-run.heartbeat"}, {"prefect.flow-run.*"}, HEARTBEAT_TIMEOUT),
        actions=[
            _crash(f"its worker gave no sign for {HEARTBEAT_TIMEOUT} s; the next run goes on from its checkpoints"),
            *told,
        ],
    )


def _never_begun(told: list[ActionTypes]) -> AutomationCore:
    later = ("Running", "heartbeat", "Scheduled", "Late", "AwaitingRetry", "AwaitingConcurrencySlot", "Paused")
    ended = ("Completed", "NothingNew", "Failed", "Crashed", "Cancelled", "Cancelling", "Suspended")
    return AutomationCore(
        name="verdict: never begun",
        description=f"Marks a run crashed that a worker took and did not begin within {START_TIMEOUT} s.",
        trigger=_trigger(
            {"prefect.flow-run.Pending"}, {f"prefect.flow-run.{name}" for name in (*later, *ended)}, START_TIMEOUT
        ),
        actions=[_crash(f"its worker took it and did not begin within {START_TIMEOUT} s"), *told],
    )


def _trigger(after: set[str], expect: set[str], seconds: int) -> EventTrigger:
    """Fire for each of our runs of which nothing was heard for so long."""
    return EventTrigger(
        posture=Posture.Proactive,
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related={"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"},
        for_each={"prefect.resource.id"},
        after=after,
        expect=expect,
        threshold=1,
        within=datetime.timedelta(seconds=seconds),
    )


def _crash(message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message, force=False)


def _notify_action(client: SyncPrefectClient) -> list[ActionTypes]:
    """Return how people are told by the server, where no process of the run is left that could."""
    text = "{{ flow.name }} run {{ flow_run.name }} crashed: its worker is gone"
    told: list[ActionTypes] = []
    if slug := os.environ.get(BLOCK_VARIABLE, "").strip():
        told.append(SendNotification(block_document_id=_document(client, slug), subject="Verdict", body=text))
    if url := os.environ.get(URL_VARIABLE, "").strip():
        # Prefect keeps the address encrypted, and hides it in its page.
        block: Any = Webhook(method="POST", url=SecretStr(url))
        document = UUID(str(block.save(ALERTS, overwrite=True)))
        payload = json.dumps({"text": text, "verdict": {"event": "crash", "run": "{{ flow_run.id }}"}})
        told.append(CallWebhook(block_document_id=document, payload=payload))
    return told


def _document(client: SyncPrefectClient, slug: str) -> UUID:
    kind, _, name = slug.partition("/")
    try:
        return client.read_block_document_by_name(name, kind).id
    except ObjectNotFound as error:
        raise UsageError(f"{BLOCK_VARIABLE} {slug!r} is no block of this server; see: prefect block ls") from error


def _describe(schedule: Any) -> str:
    if cron := getattr(schedule, "cron", ""):
        return f"{cron} {schedule.timezone or 'UTC'}"
    return f"every {schedule.interval}" if hasattr(schedule, "interval") else str(schedule)
