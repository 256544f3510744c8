"""Applies infra/prefect.yaml to a Prefect server: deployments, work pool, and automations that watch over their runs.

The queue `train` of the work pool runs one job at a time. The automations mark runs as crashed whose worker is gone.
Running it again updates what is there.
"""

import contextlib
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
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
from flows.services.clock_changes import describe_clock_changes
from flows.services.deployment_file import find_template
from flows.services.prefect_status import POOL, TAG
from tasks.core.errors import UnreachableError, UsageError, VerdictError, first_line
from tasks.core.hidden_addresses import reject_secrets
from tasks.core.printable import redact, redact_address
from tasks.core.webhook import URL_VARIABLE
from tasks.inference.bundle import scoped

QUEUE = "train"
ALERT_BLOCK = scoped("verdict-alerts").replace(".", "-")  # webhook block that the automations call
HEARTBEAT_TIMEOUT = 90  # seconds; runs send a heartbeat every 30
START_TIMEOUT = 1_800  # seconds from a worker taking a run to its start: of a pod as well, whose image is fetched


def deploy(file: str = "", check: Callable[[Path], None] = lambda _: None) -> dict[str, Any]:
    """Create or update deployments and automations; return what the command prints.

    Args:
        file: path of a deployments file; empty for infra/prefect.yaml.
        check: called with the path before anything is changed; raises UsageError for wrong parameters.

    Raises:
        UsageError: if no server is configured, or there is no such file, or it has an address with a password.
        UnreachableError: if the server does not answer.
        VerdictError: if Prefect rejects the file.
    """
    url = configured_server()
    path = Path(file) if file else find_template()
    if not path.is_file():
        raise UsageError(f"{path} is not a file; expected one like infra/prefect.yaml")
    reject_secrets(path.read_text(encoding="utf-8", errors="replace"), str(path))
    check(path)
    url = redact_address(url)
    try:
        with get_client(sync_client=True) as client:
            prepare_pool(client)
            apply_file(path)
            automations = apply_automations(client)
            ours = sorted((held.name, held.id) for held in client.read_deployments() if TAG in held.tags)
            found = [client.read_deployment(held) for _, held in ours]
    except (OSError, httpx.HTTPError) as error:
        raise UnreachableError(f"Prefect at {url} failed ({first_line(error)}); check it: verdict doctor") from error
    deployments = [
        {
            "name": held.name,
            "schedules": [_describe(entry.schedule) for entry in held.schedules if entry.active],
            "paused": held.paused,
        }
        for held in found
    ]
    active = [(held.name, entry.schedule) for held in found for entry in held.schedules if entry.active]
    notices = list(filter(None, (describe_clock_changes(name, schedule) for name, schedule in active)))
    if not active:
        notices.append(
            "nothing is scheduled: the bundled sample never changes; name your data: verdict deploy --data DIR"
        )
    answer = {"server": url, "pool": POOL, "file": str(path), "deployments": deployments, "automations": automations}
    return answer | {"notices": notices}


def configured_server() -> str:
    """Return the address of the Prefect server.

    Raises:
        UsageError: if none is configured.
    """
    if url := get_current_settings().api.url:
        return url
    raise UsageError("schedules need a Prefect server; start one: make up, then set PREFECT_API_URL")


def prepare_pool(client: SyncPrefectClient) -> None:
    """Create the work pool if no worker did, and limit its queue `train` to one run at a time.

    The queue counts runs by their state, so this limit survives a restart of the server, unlike leases in its memory.
    """
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        with contextlib.suppress(ObjectAlreadyExists):  # a starting worker created it meanwhile
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    with contextlib.suppress(ObjectAlreadyExists):
        client.create_work_queue(QUEUE, work_pool_name=POOL)
    queue = client.read_work_queue_by_name(QUEUE, work_pool_name=POOL)
    client.update_work_queue(queue.id, concurrency_limit=1)


def apply_file(path: Path) -> None:
    """Apply a deployments file with `prefect deploy`.

    Raises:
        VerdictError: if Prefect rejects it.
    """
    command = ["--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
    done = subprocess.run([sys.executable, "-m", "prefect", *command], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no message"]
        raise VerdictError(f"Prefect rejects {path}: {redact(said[-1])[:300]}")


def apply_automations(client: SyncPrefectClient) -> list[str]:
    """Create or update the automations; return their names.

    A worker reports runs whose process died. The automations are for runs whose worker died.
    """
    alerts = _alert_actions(client)
    names = []
    for automation in (_heartbeat_lost(alerts), _not_started(alerts)):
        existing = client.read_automations_by_name(automation.name)
        if existing:
            client.update_automation(existing[0].id, automation)
        else:
            client.create_automation(automation)
        names.append(automation.name)
    return names


def _heartbeat_lost(alerts: list[ActionTypes]) -> AutomationCore:
    return AutomationCore(
        name=f"{TAG}: worker gone",
        description=f"Marks a run as crashed after {HEARTBEAT_TIMEOUT} s without heartbeat; the next run resumes it.",
        trigger=_trigger({"prefect.flow-run.heartbeat"}, {"prefect.flow-run.*"}, HEARTBEAT_TIMEOUT),
        actions=[
            _crash(f"no heartbeat for {HEARTBEAT_TIMEOUT} s; the next run resumes from its checkpoints"),
            *alerts,
        ],
    )


def _not_started(alerts: list[ActionTypes]) -> AutomationCore:
    later = ("Running", "heartbeat", "Scheduled", "Late", "AwaitingRetry", "AwaitingConcurrencySlot", "Paused")
    ended = ("Completed", "NothingNew", "Failed", "Crashed", "Cancelled", "Cancelling", "Suspended")
    return AutomationCore(
        name=f"{TAG}: never started",
        description=f"Marks a run as crashed that a worker took and did not start within {START_TIMEOUT} s.",
        trigger=_trigger(
            {"prefect.flow-run.Pending"}, {f"prefect.flow-run.{name}" for name in (*later, *ended)}, START_TIMEOUT
        ),
        actions=[_crash(f"its worker took it and did not start it within {START_TIMEOUT} s"), *alerts],
    )


def _trigger(after: set[str], expect: set[str], seconds: int) -> EventTrigger:
    """Fire for each of our runs that emits an event of `after` and none of `expect` for that many seconds."""
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


def _alert_actions(client: SyncPrefectClient) -> list[ActionTypes]:
    """Return the actions by which the server itself alerts people, because no process of the run is left to do it."""
    text = "{{ flow.name }} run {{ flow_run.name }} crashed: its worker is gone"
    actions: list[ActionTypes] = []
    if slug := os.environ.get(BLOCK_VARIABLE, "").strip():
        actions.append(SendNotification(block_document_id=_find_block(client, slug), subject="Verdict", body=text))
    if url := os.environ.get(URL_VARIABLE, "").strip():
        # Prefect stores the address encrypted and does not show it.
        block: Any = Webhook(method="POST", url=SecretStr(url))
        block_id = UUID(str(block.save(ALERT_BLOCK, overwrite=True)))
        payload = json.dumps({"text": text, "verdict": {"event": "crash", "run": "{{ flow_run.id }}"}})
        actions.append(CallWebhook(block_document_id=block_id, payload=payload))
    return actions


def _find_block(client: SyncPrefectClient, slug: str) -> UUID:
    kind, _, name = slug.partition("/")
    try:
        return client.read_block_document_by_name(name, kind).id
    except ObjectNotFound as error:
        raise UsageError(f"{BLOCK_VARIABLE} {slug!r} is not a block of this server; see: prefect block ls") from error


def _describe(schedule: Any) -> str:
    if cron := getattr(schedule, "cron", ""):
        return f"{cron} {schedule.timezone or 'UTC'}"
    return f"every {schedule.interval}" if hasattr(schedule, "interval") else str(schedule)
