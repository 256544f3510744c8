"""Reads from a Prefect server what runs next, how the latest runs ended, and whether workers are online."""

import contextlib
import datetime
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings

from tasks.core.errors import UnreachableError, VerdictError, first_line
from tasks.core.printable import counted, redact_address
from tasks.inference.bundle import scoped

TAG = scoped("verdict")  # of all our deployments
POOL = scoped("verdict")  # work pool of all our deployments
REQUEST_TIMEOUT_S = 5
LATE_AFTER = 60  # seconds after its scheduled time that a run counts as late; workers poll every 15
RUNS_READ = 200  # most runs read, before now and after now
FAILURES = 5  # latest failed runs that are shown
BUSY_STATES = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


class PlannedRun(TypedDict):
    """A scheduled run; `time` is ISO 8601, UTC.

    If its queue is busy, `waits_for` names the run that occupies it; if not and its time is past, it is `late`.
    """

    run: str
    deployment: str
    time: str
    late: bool
    waits_for: str


class PastRun(TypedDict):
    """A run that was started; `why` is the message of its last state."""

    run: str
    deployment: str
    time: str
    state: str
    why: str


class Schedule(TypedDict):
    """The next run of each deployment, soonest first; the last of each and the latest failures, newest first."""

    server: str
    next: list[PlannedRun]
    last: list[PastRun]


@contextlib.contextmanager
def connect_prefect(remedy: str = "check it: verdict doctor") -> Iterator[SyncPrefectClient]:
    """Connect to the configured server for the block; one try, because nobody on call waits for retries.

    Args:
        remedy: what the message advises where the server does not answer.

    Raises:
        UnreachableError: if the server does not answer, refuses the credentials or fails.
    """
    url = _server_address()
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True, httpx_settings={"timeout": REQUEST_TIMEOUT_S}) as client,
        ):
            yield client
    except VerdictError:
        raise
    except Exception as error:  # httpx, Prefect and the operating system share no base class
        status = error.response.status_code if isinstance(error, PrefectHTTPStatusError) else None
        if status == 401:
            raise UnreachableError(f"{url} refuses us (401); set PREFECT_API_AUTH_STRING=NAME:PASSWORD") from error
        reason = first_line(error, 200)
        raise UnreachableError(f"Prefect at {url} does not answer ({reason}); {remedy}") from error


def read_schedule() -> Schedule:
    """Return what the configured server ran and will run.

    Raises:
        UnreachableError: if it does not answer.
    """
    with connect_prefect() as client:
        names = {deployment.id: deployment.name for deployment in client.read_deployments() if TAG in deployment.tags}
        planned = _runs(client, [StateType.SCHEDULED], FlowRunSort.EXPECTED_START_TIME_ASC)
        others = [kind for kind in StateType if kind is not StateType.SCHEDULED]
        begun = _runs(client, others, FlowRunSort.START_TIME_DESC)
    busy = {run.work_queue_id: run.name for run in begun if run.state and run.state.type in BUSY_STATES}
    soonest = {run.deployment_id: run for run in reversed(planned)}
    coming = [_to_planned(run, names, busy.get(run.work_queue_id, "")) for run in soonest.values()]
    return Schedule(
        server=_server_address(),
        next=sorted(coming, key=lambda each: each["time"]),
        last=[_to_past(run, names) for run in _select_relevant(begun)],
    )


def check_workers(client: SyncPrefectClient) -> str:
    """Return a line on the workers of our pool.

    Raises:
        VerdictError: if the pool is there and no worker is online.
    """
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        return "no work pool; create it and the schedules: verdict deploy"
    online = sum(worker.status == WorkerStatus.ONLINE for worker in client.read_workers_for_work_pool(POOL))
    if not online:
        raise VerdictError(f"no worker takes runs from the pool {POOL}; start one: make up")
    return f"{counted(online, 'worker')} online"


def _server_address() -> str:
    """Return the configured server's address without its secrets."""
    return redact_address(str(get_current_settings().api.url))


def _runs(client: SyncPrefectClient, states: Sequence[StateType], sort: FlowRunSort) -> list[FlowRun]:
    ours = filters.FlowRunFilter(
        tags=filters.FlowRunFilterTags(all_=[TAG]),
        state=filters.FlowRunFilterState(
            type=filters.FlowRunFilterStateType(any_=list(states)),
            name=filters.FlowRunFilterStateName(not_any_=["Missed"]),  # hundreds after an outage
        ),
    )
    return client.read_flow_runs(flow_run_filter=ours, sort=sort, limit=RUNS_READ)


def _select_relevant(runs: list[FlowRun]) -> list[FlowRun]:
    """Return, newest first, the last run of each deployment and the latest failures, which hourly runs would hide."""
    last = {run.deployment_id: run.id for run in reversed(runs)}
    failed = [run.id for run in runs if run.state and run.state.type in (StateType.FAILED, StateType.CRASHED)]
    chosen = {*last.values(), *failed[:FAILURES]}
    return [run for run in runs if run.id in chosen]


def _to_planned(run: FlowRun, names: dict[Any, str], before: str) -> PlannedRun:
    due = run.next_scheduled_start_time or run.expected_start_time or datetime.datetime.now(datetime.UTC)
    waited = (datetime.datetime.now(datetime.UTC) - due).total_seconds()
    return PlannedRun(
        run=run.name,
        deployment=names.get(run.deployment_id, ""),
        time=_iso(due),
        late=waited > LATE_AFTER and not before,
        waits_for=before if waited > 0 else "",
    )


def _to_past(run: FlowRun, names: dict[Any, str]) -> PastRun:
    started = run.start_time or run.expected_start_time or run.created
    why = (str(run.state.message or "") if run.state else "").strip()
    return PastRun(
        run=run.name,
        deployment=names.get(run.deployment_id, ""),
        time=_iso(started) if started else "",
        state=run.state.name if run.state and run.state.name else "",
        why=(why.splitlines() or [""])[0][:500],
    )


def _iso(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).isoformat(timespec="seconds")
