"""Where the seconds of a command go, from the start of its process on; for `--timings` and the run in MLflow."""

import os
import time
from pathlib import Path


def process_age() -> float:
    """Return the seconds since this process was started; those since this module's import where Linux does not say."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), in ticks since the machine's start
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, ValueError, IndexError, AttributeError):
        return time.perf_counter() - _imported


class Stopwatch:
    """Adds up the seconds between marks; the first of them counts from the start of the process."""

    def __init__(self) -> None:
        self._last = time.perf_counter() - process_age()
        self._seconds: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Name the time since the last mark."""
        self.mark_parts({}, name)

    def mark_parts(self, parts: dict[str, float], rest: str) -> None:
        """Name the parts of the time since the last mark, and what is left of it."""
        now = time.perf_counter()
        left, self._last = now - self._last - sum(parts.values()), now
        for name, seconds in {**parts, rest: max(0.0, left)}.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by name, in the order of their first mark, and their sum."""
        shown = {name: round(seconds, 2) for name, seconds in self._seconds.items()}
        return {**shown, "whole process": round(sum(self._seconds.values()), 2)}


_imported = time.perf_counter()
