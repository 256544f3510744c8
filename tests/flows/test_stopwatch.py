"""Where the seconds of a command go: every second of the process has a name."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.stopwatch import Stopwatch, process_age

ROOT = Path(__file__).parents[2]


def test_the_age_of_a_process_counts_from_its_start() -> None:
    program = "import time; time.sleep(0.5); from flows.stopwatch import process_age; print(process_age())"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    taken = time.monotonic() - started
    assert 0.5 <= float(done.stdout) <= taken + 0.02
    assert process_age() > 0.0


def test_parts_and_rest_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("flows.stopwatch.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("flows.stopwatch.process_age", lambda: 1.5)
    stopwatch = Stopwatch()
    for seconds, name in ((0.5, "settings"), (3.0, "imports"), (1.0, "imports")):
        now[0] += seconds
        stopwatch.mark(name)
    now[0] += 10.0
    stopwatch.mark_parts({"read": 2.0, "train": 7.5}, "between")
    assert stopwatch.seconds == {
        "settings": 2.0, "imports": 4.0, "read": 2.0, "train": 7.5, "between": 0.5, "whole process": 16.0,
    }  # fmt: skip
    now[0] += 1.0
    stopwatch.mark_parts({"read": 1.25}, "between")  # rounded up: never less than nothing is left
    assert stopwatch.seconds["between"] == 0.5
