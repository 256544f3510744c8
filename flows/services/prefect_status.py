"""What a lasting Prefect server knows of our deployments: what runs next, and how the latest runs ended."""

import datetime
from collections.abc import Sequence
from typing import Any, TypedDict

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings

from tasks.core.errors import UnreachableError, first_line

TAG = "verdict"  # that every deployment of ours has
REQUEST_TIMEOUT_S = 5  # seconds for each of its answers
LATE_AFTER = 60  # seconds after its time that a run is late; a worker looks every 15
RUNS_READ = 200  # runs before and after now that are looked through
FAILURES = 5  # of them that are shown
BUSY_STATES = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


class PlannedRun(TypedDict):
    """A run to come; `time` is ISO 8601, UTC.

    A run whose queue is busy `waits_for` the run that keeps it so; else, its time past, it is `late`.
    """

    run: str
    deployment: str
    time: str
    late: bool
    waits_for: str


class PastRun(TypedDict):
    """A run that was begun; `why` is what its last state says."""

    run: str
    deployment: str
    time: str
    state: str
    why: str


class Schedule(TypedDict):
    """The next run of each deployment, soonest first; the last of each and the latest that failed, newest first."""

    server: str
    next: list[PlannedRun]
    last: list[PastRun]


def ask_schedule() -> Schedule:
    """Ask the server that is configured.

    Raises:
        Unreachable: if it does not answer.
    """
    url = get_current_settings().api.url
    try:
        # Its client would try for a minute and a half, which nobody on call waits.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), _client() as client:
            names = {held.id: held.name for held in client.read_deployments() if TAG in held.tags}
            planned = _runs(client, [StateType.SCHEDULED], FlowRunSort.EXPECTED_START_TIME_ASC)
            rest = [kind for kind in StateType if kind is not StateType.SCHEDULED]
            began = _runs(client, rest, FlowRunSort.START_TIME_DESC)
    except Exception as error:  # httpx's, Prefect's and the operating system's have no common ancestor
        if isinstance(error, PrefectHTTPStatusError) and error.response.status_code == 401:
            raise UnreachableError(f"{url} refuses us (401); set PREFECT_API_AUTH_STRING=NAME:PASSWORD") from error
        raise UnreachableError(
            f"Prefect at {url} does not answer ({first_line(error, 200)}); check it: verdict doctor"
        ) from error
    busy = {run.work_queue_id: run.name for run in began if run.state and run.state.type in BUSY_STATES}
    soonest = {run.deployment_id: run for run in reversed(planned)}
    coming = [_to_planned(run, names, busy.get(run.work_queue_id, "")) for run in soonest.values()]
    return Schedule(
        server=str(url),
        next=sorted(coming, key=lambda each: each["time"]),
        last=[_to_past(run, names) for run in _select_relevant(began)],
    )


def _client() -> SyncPrefectClient:
    return get_client(sync_client=True, httpx_settings={"timeout": REQUEST_TIMEOUT_S})


def _runs(client: SyncPrefectClient, states: Sequence[StateType], sort: FlowRunSort) -> list[FlowRun]:
    wanted = filters.FlowRunFilter(
        tags=filters.FlowRunFilterTags(all_=[TAG]),
        state=filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=list(states))),
    )
    return client.read_flow_runs(flow_run_filter=wanted, sort=sort, limit=RUNS_READ)


def _select_relevant(runs: list[FlowRun]) -> list[FlowRun]:
    """Choose, newest first, the last run of each deployment and the latest failures; hourly looks would hide them."""
    real = [run for run in runs if run.state and run.state.name != "Missed"]
    last = {run.deployment_id: run.id for run in reversed(real)}
    failed = [run.id for run in real if run.state and run.state.type in (StateType.FAILED, StateType.CRASHED)]
    chosen = {*last.values(), *failed[:FAILURES]}
    return [run for run in real if run.id in chosen]


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
    began = run.start_time or run.expected_start_time or run.created
    why = (str(run.state.message or "") if run.state else "").strip()
    return PastRun(
        run=run.name,
        deployment=names.get(run.deployment_id, ""),
        time=_iso(began) if began else "",
        state=run.state.name if run.state and run.state.name else "",
        why=(why.splitlines() or [""])[0][:500],
    )


def _iso(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).isoformat(timespec="seconds")
