"""What a lasting Prefect server knows of our deployments: what runs next, and how the latest runs ended."""

import datetime
from collections.abc import Sequence
from typing import Any, TypedDict

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import get_current_settings

from tasks.errors import Unreachable

TAG = "verdict"  # that every deployment of ours has
PATIENCE = 5  # seconds for an answer
LATE = 60  # seconds after its time that a run is late; a worker looks every 15
SHOWN = 5  # of the latest runs
AHEAD = 200  # runs to come that are looked through for the next one of each deployment


class Planned(TypedDict):
    """A run to come; times are ISO 8601, UTC."""

    run: str
    deployment: str
    time: str
    late: bool


class Ended(TypedDict):
    """A run that began; `why` is what its last state says."""

    run: str
    deployment: str
    time: str
    state: str
    why: str


class Schedule(TypedDict):
    """The next run of each deployment, soonest first, and what ran, newest first."""

    server: str
    next: list[Planned]
    last: list[Ended]


def ask_schedule() -> Schedule | None:
    """Ask the server that is configured; None where runs have no lasting one.

    Raises:
        Unreachable: if it does not answer.
    """
    url = get_current_settings().api.url
    if not url:
        return None
    try:
        with get_client(sync_client=True, httpx_settings={"timeout": PATIENCE}) as client:
            names = {held.id: held.name for held in client.read_deployments() if TAG in held.tags}
            planned = _runs(client, [StateType.SCHEDULED], FlowRunSort.EXPECTED_START_TIME_ASC, AHEAD)
            rest = [kind for kind in StateType if kind is not StateType.SCHEDULED]
            began = _runs(client, rest, FlowRunSort.START_TIME_DESC, SHOWN)
    except Exception as error:  # httpx's, Prefect's and the operating system's have no common ancestor
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unreachable(f"Prefect at {url} does not answer ({first[:200]}); check it: verdict doctor") from error
    soonest = {run.deployment_id: run for run in reversed(planned)}
    coming = sorted((_planned(run, names) for run in soonest.values()), key=lambda each: each["time"])
    return Schedule(server=url, next=coming, last=[_ended(run, names) for run in began])


def _runs(client: SyncPrefectClient, states: Sequence[StateType], sort: FlowRunSort, limit: int) -> list[FlowRun]:
    wanted = filters.FlowRunFilter(
        tags=filters.FlowRunFilterTags(all_=[TAG]),
        state=filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=list(states))),
    )
    return client.read_flow_runs(flow_run_filter=wanted, sort=sort, limit=limit)


def _planned(run: FlowRun, names: dict[Any, str]) -> Planned:
    due = run.next_scheduled_start_time or run.expected_start_time or datetime.datetime.now(datetime.UTC)
    waited = (datetime.datetime.now(datetime.UTC) - due).total_seconds()
    return Planned(run=run.name, deployment=names.get(run.deployment_id, ""), time=_iso(due), late=waited > LATE)


def _ended(run: FlowRun, names: dict[Any, str]) -> Ended:
    began = run.start_time or run.expected_start_time or run.created
    why = (str(run.state.message or "") if run.state else "").strip()
    return Ended(
        run=run.name,
        deployment=names.get(run.deployment_id, ""),
        time=_iso(began) if began else "",
        state=run.state.name if run.state and run.state.name else "",
        why=(why.splitlines() or [""])[0][:500],
    )


def _iso(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).isoformat(timespec="seconds")
