"""Turns plain functions into the steps of a flow: Prefect tasks whose time is taken, and which the terminal shows.

A step is called like the function that it wraps, with the flow run's Timer in front: `read(timer, settings, home)`.
"""

import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from flows.stopwatch import process_age
from tasks.core.errors import UnreachableError
from tasks.core.progress import begin_step

P = ParamSpec("P")
R = TypeVar("R")


class Timer:
    """Adds up the seconds of each step of one flow run, in the order of their first call."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self.process_age = process_age()
        """Seconds from the start of this process to the start of the flow run."""

    def add(self, name: str, seconds: float) -> None:
        """Add the time of one call."""
        self._seconds[name] = round(self._seconds.get(name, 0.0) + seconds, 2)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by step, so far."""
        return dict(self._seconds)


def timed_task(name: str, function: Callable[P, R], **options: Any) -> Callable[Concatenate[Timer, P], R]:
    """Wrap a function as a Prefect task whose calls are timed under `name`.

    Prefect stores results as JSON, so steps return paths, digests and records, never models or data frames. Results
    are not used as a cache: each step looks in the job's folder for what a killed run finished.

    Args:
        name: of the task; calls of several steps with one name add up.
        function: what the step does.
        options: further options of `prefect.task`.
    """
    # Prefect passes the arguments through unchanged, which its own types do not express.
    run = cast(Callable[P, R], task(name=name, cache_policy=NO_CACHE, **options)(function))

    def timed(timer: Timer, /, *args: P.args, **kwargs: P.kwargs) -> R:
        begin_step(name)
        started = time.perf_counter()
        try:
            return run(*args, **kwargs)
        except TimeoutError as error:
            raise UnreachableError(
                f"step {name!r} exceeded its time limit ({error}); check the stores: verdict doctor"
            ) from error
        finally:
            timer.add(name, time.perf_counter() - started)

    return timed


def retrying_task(name: str, function: Callable[P, R]) -> Callable[Concatenate[Timer, P], R]:
    """Wrap a function that does I/O: two retries where a server did not answer, 900 s a try."""
    return timed_task(
        name, function, retries=2, retry_delay_seconds=[1, 5], timeout_seconds=900, retry_condition_fn=_is_transient
    )


def _is_transient(_task: Task[..., Any], _run: TaskRun, state: State) -> bool:
    """Return whether a retry can help; wrong input stays wrong."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, UnreachableError | TimeoutError | ConnectionError)
