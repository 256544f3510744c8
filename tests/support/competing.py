"""Processes that promote at once or hold the lock; kill_points.py calls this in a process that has imported MLflow.

Forks of that process import nothing again, and share no connection: it has none.
"""

import json
import multiprocessing
import os
import random
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from registry_store import add_version

from tasks.inference.bundle import CHAMPION
from tasks.registry import lookup, promotion, promotion_lock
from tasks.registry.store import MlflowStore

PROCESSES = 4


def take_leases() -> None:
    """Lock as for a store that is no local file."""
    promotion_lock.database_of = lambda _store: None
    promotion_lock.POLL_RANGE_S = (0.005, 0.05)


def promote_if_better(store: MlflowStore, version: str, score: float) -> int:
    """What a run does: compare with the champion, promote, compare again where another one came first."""
    for attempt in range(100):
        champion = lookup.find_alias(store, CHAMPION, fetch=False)
        if champion and (champion["mcc"] or 0) >= score:
            return attempt
        try:
            expected = champion["version"] if champion else None
            promotion.promote(store, version, kind="promote", expected=expected, reason=f"MCC {score}")
        except promotion.ChampionChanged:
            continue
        return attempt
    raise AssertionError("100 attempts were not enough")


def compete(store: MlflowStore, folder: str, number: int, rounds: int, barrier: Barrier, answers: Any) -> None:
    for round_ in range(rounds):
        ranks = list(range(PROCESSES))
        random.Random(round_).shuffle(ranks)
        score = round_ + ranks[number] / 10
        version = add_version(store, Path(folder), f"{round_}-{number}", mcc=f"{score:.6f}")
        barrier.wait(60)
        again = promote_if_better(store, version, score)
        barrier.wait(60)
        champion = lookup.find_alias(store, CHAMPION, fetch=False)
        answers.put((round_, again, champion["mcc"] if champion else None))
        barrier.wait(60)


def run_competition(store: MlflowStore, folder: str, rounds: int, leased: bool, found: str) -> None:
    """Let four processes compete; write to the file `found` what each saw in each round."""
    if leased:
        take_leases()
    forks = multiprocessing.get_context("fork")
    barrier, answers = forks.Barrier(PROCESSES), forks.Queue()
    arguments = [(store, folder, number, rounds, barrier, answers) for number in range(PROCESSES)]
    processes = [forks.Process(target=compete, args=each) for each in arguments]
    for process in processes:
        process.start()
    seen = [answers.get(timeout=100) for _ in range(rounds * PROCESSES)]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    Path(found).write_text(json.dumps(seen))


def hold(store: MlflowStore, leased: bool, holder: str) -> None:
    """Hold the lock until killed; write the number of this process to the file `holder` once it is held."""
    if leased:
        take_leases()
    with promotion_lock.promotion_lock(store):
        Path(f"{holder}.new").write_text(str(os.getpid()))
        Path(f"{holder}.new").rename(holder)
        time.sleep(60)
