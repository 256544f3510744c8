"""Times calls: the fastest of several rounds, or each call alone."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


def best_of(call: Callable[[], Any], repeats: int = 3) -> float:
    """Return the seconds of the fastest of some calls, after one that warms up."""
    call()
    return min(time_each([call] * repeats)) / 1e3


def time_each(calls: list[Callable[[], Any]], warm_up: int = 0) -> list[float]:
    """Return the milliseconds of each call, after some rounds that warm up."""
    for _ in range(warm_up):
        for call in calls:
            call()
    milliseconds = []
    for call in calls:
        started = time.perf_counter()
        call()
        milliseconds.append(1e3 * (time.perf_counter() - started))
    return milliseconds


def percentiles(milliseconds: list[float], shares: Iterable[int] = (50, 95, 99)) -> dict[str, float]:
    """Return percentiles as `p50_ms` and its like."""
    return {f"p{share}_ms": round(float(np.percentile(milliseconds, share)), 3) for share in shares}
