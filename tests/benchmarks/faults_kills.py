"""Commands that are killed at random moments and run again: nothing twice, nothing stuck, nothing left."""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from faults_home import CommandHome

RESUMES = 3  # kills of a training job before it may end
QUICK_KILLS = 3


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Kill `retrain` --kills times, and rollback, prune and score a third as often; count what must not be there."""
    kills = QUICK_KILLS if options.quick else options.kills
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        home = CommandHome(Path(folder))
        results = {"retrain": kill_retrain(home, kills, rng)}
        (Path(folder) / "in.txt").write_text("the cat sees\n" * 50_000)
        score = ["score", f"{folder}/in.txt", f"{folder}/out.parquet", "--device", "cpu"]
        for name, command in {
            "score": score,
            "rollback": ["rollback", "--reason", "complaints"],
            "prune": ["prune", "--days", "0", "--keep", "1"],
        }.items():
            results[name] = kill_often(home, command, max(1, kills // 3), rng)
    keys = ("duplicates", "stuck_records", "runs_left_running", "processes_left", "failed_again")
    missed = [f"{name}: {key}" for name, result in results.items() for key in keys if result[key]]
    return {"kills": kills, **results, "aims_missed": missed}


def kill_retrain(home: CommandHome, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill runs at random moments; after RESUMES kills of a job let it end."""
    longest, failed, left = abs(run(home, home.retrain(0))), 0, 0
    for number in range(kills):
        seed = 1 + number // RESUMES
        left += kill(home, home.retrain(seed), rng.uniform(0, longest))
        if number % RESUMES == RESUMES - 1 or number == kills - 1:
            failed += run(home, home.retrain(seed)) < 0
    return {"kills": kills, "failed_again": failed, "processes_left": left, **home.faults()}


def kill_often(home: CommandHome, command: list[str], kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill a command at random moments, each time in a copy of the home, and run it again."""
    kept = home.home.with_name("kept")
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(home.home, kept)
    longest, failed, left = abs(run(home, command)), 0, 0
    worst: dict[str, Any] = {}
    for _ in range(kills):
        shutil.rmtree(home.home)
        shutil.copytree(kept, home.home)
        left += kill(home, command, rng.uniform(0, longest))
        failed += run(home, command) < 0
        found = home.faults()
        worst = {key: max(value, worst.get(key, 0)) for key, value in found.items()}
    shutil.rmtree(home.home)
    shutil.copytree(kept, home.home)
    return {"kills": kills, "failed_again": failed, "processes_left": left, **worst}


def run(home: CommandHome, command: list[str]) -> float:
    """Run a command to its end; return its seconds, negative where it failed."""
    began = time.monotonic()
    done = start(home, command)
    error = done.communicate()[1]
    if done.returncode:
        print(f"exit {done.returncode} of {' '.join(command[:2])}: {error[-500:]}", flush=True)
    return (time.monotonic() - began) * (-1 if done.returncode else 1)


def kill(home: CommandHome, command: list[str], seconds: float) -> int:
    """Start a command and kill its process alone; return how many processes it left two seconds later."""
    process = start(home, command)
    time.sleep(seconds)
    process.kill()
    process.wait()
    time.sleep(2)
    left = home.processes()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    return len(left)


def start(home: CommandHome, command: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli.app", *command],
        env=os.environ | home.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
