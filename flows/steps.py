"""Turns plain functions into steps of a flow: Prefect tasks that are timed."""

import contextvars
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from tasks.core.errors import UnreachableError

P = ParamSpec("P")
R = TypeVar("R")

# Seconds of each step of the flow run in this context, in the order of their first call.
seconds: contextvars.ContextVar[dict[str, float]] = contextvars.ContextVar("seconds")


def timed_task(name: str, function: Callable[P, R], **options: Any) -> Callable[P, R]:
    """Wrap a function as a timed task; calls of one name add up.

    Results are kept as JSON for the record, so steps hand on paths and digests and no models or frames. They are never
    reused as a cache: what a killed run finished is found by the steps themselves, in the job's folder.
    """
    # Prefect passes its arguments through unchanged; its own type for that is not expressible here.
    run = cast(Callable[P, R], task(name=name, cache_policy=NO_CACHE, **options)(function))

    def timed(*args: P.args, **kwargs: P.kwargs) -> R:
        started = time.perf_counter()
        try:
            return run(*args, **kwargs)
        except TimeoutError as error:
            raise UnreachableError(
                f"step {name!r} did not end in time ({error}); check the stores: verdict doctor"
            ) from error
        finally:
            total = seconds.get()
            total[name] = round(total.get(name, 0.0) + time.perf_counter() - started, 2)

    return timed


def retrying_task(name: str, function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function that talks to disks and servers: tried again when they do not answer, and limited in time."""
    return timed_task(
        name, function, retries=2, retry_delay_seconds=[1, 5], timeout_seconds=900, retry_condition_fn=_is_transient
    )


def _is_transient(_task: Task[..., Any], _run: TaskRun, state: State) -> bool:
    """Tell whether trying again can help; wrong input stays wrong."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, UnreachableError | TimeoutError | ConnectionError)
