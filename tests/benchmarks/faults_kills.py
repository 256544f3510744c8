"""Commands on SQLite that are killed at random moments and run again: nothing twice, nothing stuck, nothing left.

One home serves all commands: version 2 is champion, version 1 was it before, version 3 waits for a decision, version 4
is rejected. Each command starts from a copy of it, and half of the training jobs from an empty home. A kill takes the
main process alone, at a moment that is drawn from the time that the command takes undisturbed; then the same command
runs again. Commands are forked from a process that has imported the libraries: in imports a kill can damage nothing.
"""

import argparse
import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from faults_home import CommandHome
from faults_warm import WarmProcess

RESUMES = 3  # kills of a training job before it may end
QUICK_KILLS = 3
BEYOND = 1.05  # of the undisturbed time; a command that ends earlier counts as none
LEAVING_S = 15.0  # until then children must have ended
LIMIT_S = 600.0
MUST_BE_ZERO = (
    "duplicates",
    "stuck_records",
    "runs_left_running",
    "processes_left",
    "failed_again",
    "wrong_outcomes",
    "tracebacks",
)


class Case(NamedTuple):
    """A command to kill."""

    name: str
    arguments: list[str]
    kept: str
    """name of the home that it starts in"""
    kills: int
    resumes: int = 1
    """kills before it may end"""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Kill `retrain` --kills times, and the other commands a third as often; count what must not be there."""
    return measure_kills(options, CommandHome)


def measure_kills(options: argparse.Namespace, make_home: Callable[[Path], CommandHome]) -> dict[str, Any]:
    """Return the counts of each command in homes of some kind, --workers of them side by side."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=spawn) as pool:
        shares = [pool.submit(measure_share, options, make_home, seed) for seed in range(options.workers)]
        found = [share.result() for share in shares]
    names = list(dict.fromkeys(name for share in found for name in share))
    counts = {
        name: dict.fromkeys(MUST_BE_ZERO, 0) | sum((share[name] for share in found if name in share), Counter())
        for name in names
    }
    missed = [f"{name}: {key}" for name, each in counts.items() for key in MUST_BE_ZERO if each[key]]
    return {"workers": options.workers, **counts, "aims_missed": missed}


def measure_share(
    options: argparse.Namespace, make_home: Callable[[Path], CommandHome], seed: int
) -> dict[str, Counter[str]]:
    """Return the counts of one worker, whose kills are its share of all."""
    kills = QUICK_KILLS if options.quick else options.kills
    results: dict[str, Counter[str]] = {}
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        home = make_home(folder)
        warm = WarmProcess(home.environment, folder / "stderr")
        try:
            if home.needs_tables:
                finish(warm, ["prepare"])
                home.keep("empty")
            planned = [case for case in cases(home, folder, kills, options.workers) if case.name in options.commands]
            for number, case in enumerate(planned):
                if case.kept == "full" and not home.is_kept("full"):
                    prepare(home, warm)
                now = time.monotonic()
                deadline = now + (end - now) / (len(planned) - number)
                found = Killer(home, warm, case, folder / "out.parquet", seed).measure(deadline)
                results[case.name] = results.get(case.name, Counter()) + found
                print(f"{case.name}, seed {seed}: {json.dumps(results[case.name])}", flush=True)
        finally:
            warm.close()
            home.close()
    return results


def prepare(home: CommandHome, warm: WarmProcess) -> None:
    """Keep as `full` a home with two champions, a candidate on HOLD and a rejected one."""
    home.restore("empty")
    for seed in range(4):
        finish(warm, home.retrain(seed))
        if seed == 1:
            finish(warm, ["approve", "2", "--reason", "first"])
        if seed == 3:
            finish(warm, ["reject", "4", "--reason", "worse"])
    home.keep("full")


def cases(home: CommandHome, folder: Path, kills: int, workers: int) -> list[Case]:
    """Return the commands to kill, and how often one worker does."""
    (folder / "in.txt").write_text("the cat sees\n" * 100_000)
    score = ["score", f"{folder}/in.txt", f"{folder}/out.parquet", "--device", "cpu"]
    third, half = math.ceil(kills / 3 / workers), math.ceil(kills / 2 / workers)
    return [
        Case("retrain", home.retrain(10), "empty", half, RESUMES),
        Case("retrain", home.retrain(10), "full", half, RESUMES),
        Case("approve", ["approve", "3", "--reason", "good enough"], "full", third),
        Case("rollback", ["rollback", "--reason", "complaints"], "full", third),
        Case("prune", ["prune", "--days", "0", "--keep", "1"], "full", third),
        Case("score", score, "full", third),
    ]


def finish(warm: WarmProcess, arguments: list[str]) -> None:
    """Run a command that has to succeed."""
    if (code := warm.start(arguments).wait(LIMIT_S)) != 0:
        raise RuntimeError(f"exit {code} of {arguments[:2]}: {warm.log.read_text()[-500:]}")


class Killer:
    """Kills one command until it was hit as often as its case says."""

    def __init__(self, home: CommandHome, warm: WarmProcess, case: Case, out: Path, seed: int) -> None:
        self.home, self.warm, self.case, self.out = home, warm, case, out
        self.rng = random.Random(f"{seed}/{case.name}/{case.kept}")
        self.counts: Counter[str] = Counter()

    def measure(self, deadline: float) -> Counter[str]:
        """Return the counts; after the deadline, a monotonic time, no other kill begins."""
        self._restore()
        undisturbed = self._run_to_end()
        expected = self._state()
        while self.counts["kills"] < self.case.kills and time.monotonic() < deadline:
            self._restore()
            hits = self.counts["kills"]
            for _ in range(min(self.case.resumes, self.case.kills - hits)):
                self._kill(self.rng.uniform(0, BEYOND * undisturbed))
            if self.counts["kills"] > hits:
                self._run_to_end()
                self._compare(expected)
        return self.counts

    def _restore(self) -> None:
        self.home.restore(self.case.kept)
        self.out.unlink(missing_ok=True)
        shutil.rmtree(f"{self.out}.parts", ignore_errors=True)

    def _run_to_end(self) -> float:
        """Run the command undisturbed; return its seconds."""
        began = time.monotonic()
        command = self.warm.start(self.case.arguments)
        code = command.wait(LIMIT_S)
        if code is None:
            os.kill(command.pid, signal.SIGKILL)
            command.wait(LIMIT_S)
        said = self.warm.log.read_text(errors="replace")
        self.counts["failed_again"] += code != 0
        self.counts["tracebacks"] += "Traceback" in said
        if code != 0 or "Traceback" in said:
            print(f"exit {code} of {self.case.name}: {said[-2_000:]}", flush=True)
        return time.monotonic() - began

    def _kill(self, seconds: float) -> None:
        """Start the command, and kill its main process after some seconds."""
        command = self.warm.start(self.case.arguments)
        self.counts["starts"] += 1
        if command.wait(seconds) is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(command.pid, signal.SIGKILL)
            command.wait(LIMIT_S)
            self.counts["kills"] += 1
        left, deadline = self._left(), time.monotonic() + LEAVING_S
        while left and time.monotonic() < deadline:
            time.sleep(0.1)
            left = self._left()
        for pid in left:
            with contextlib.suppress(OSError):
                print(f"left by {self.case.name}: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}", flush=True)
                os.kill(pid, signal.SIGKILL)
        self.counts["processes_left"] += len(left)

    def _left(self) -> list[int]:
        return [pid for pid in self.home.processes() if pid != self.warm.pid]

    def _state(self) -> dict[str, Any]:
        file = self.home.home.with_name("state.json")
        finish(self.warm, ["state", str(file)])
        state: dict[str, Any] = json.loads(file.read_text())
        state["out"] = hashlib.sha256(self.out.read_bytes()).hexdigest() if self.out.exists() else ""
        state["parts"] = Path(f"{self.out}.parts").exists()
        return state

    def _compare(self, expected: dict[str, Any]) -> None:
        """Count the faults of the home, and a state that is not that after an undisturbed command."""
        state = self._state()
        self.counts += Counter(state["faults"])
        self.counts += Counter({key: count for key, count in state["left_over"].items() if count > 0})
        decided = ("aliases", "versions", "changes", "runs", "out", "parts")
        if differing := [key for key in decided if state[key] != expected[key]]:
            self.counts["wrong_outcomes"] += 1
            print(f"{self.case.name}: {[(key, state[key], expected[key]) for key in differing]}", flush=True)
