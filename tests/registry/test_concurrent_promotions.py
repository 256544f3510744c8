"""Four real processes that promote at once: the best one reigns in the end, and the record tells it without a gap."""

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from shelves import add_version, new_store

from tasks.inference.bundle import CHAMPION
from tasks.registry import audit_log as record
from tasks.registry import lookup
from tasks.registry import promotion as moves
from tasks.registry import promotion_lock as turns
from tasks.registry.mlflow_client import MlflowStore

PROCESSES = 4
LEASED = 6  # rounds of the lease, which waits longer

# Processes that start with MLflow imported, and with no connection that a fork would share.
forks = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def _preloaded() -> None:
    forks.set_forkserver_preload(["tasks.registry.promotion", "shelves"])


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> MlflowStore:
    return new_store(empty_store, tmp_path)


def promote_if_better(store: MlflowStore, version: str, score: float) -> int:
    """What a run does: compare with the champion, promote, compare again where another one came first."""
    for attempt in range(100):
        champion = lookup.find_alias(store, CHAMPION, fetch=False)
        if champion and (champion["mcc"] or 0) >= score:
            return attempt
        try:
            expected = champion["version"] if champion else None
            moves.promote(store, version, kind="promote", expected=expected, reason=f"MCC {score}")
        except moves.ChampionChanged:
            continue
        return attempt
    raise AssertionError("no end of it")


def compete(
    store: MlflowStore, folder: Path, number: int, rounds: int, leased: bool, barrier: Barrier, answers: Any
) -> None:
    if leased:
        turns.database_of = lambda _store: None  # as for a store that is no local file
        turns.POLL_RANGE_S = (0.005, 0.05)
    for round_ in range(rounds):
        ranks = list(range(PROCESSES))
        random.Random(round_).shuffle(ranks)
        score = round_ + ranks[number] / 10
        version = add_version(store, folder, f"{round_}-{number}", mcc=f"{score:.6f}")
        barrier.wait(60)
        again = promote_if_better(store, version, score)
        barrier.wait(60)
        champion = lookup.find_alias(store, CHAMPION, fetch=False)
        answers.put((round_, again, champion["mcc"] if champion else None))
        barrier.wait(60)


@pytest.mark.parametrize(("rounds", "leased"), [(25, False), (LEASED, True)], ids=["file lock", "lease"])
def test_the_best_of_four_promoters_reigns_and_the_record_has_no_gap(
    store: MlflowStore, tmp_path: Path, rounds: int, leased: bool
) -> None:
    barrier, answers = forks.Barrier(PROCESSES), forks.Queue()
    arguments = [(store, tmp_path, number, rounds, leased, barrier, answers) for number in range(PROCESSES)]
    processes = [forks.Process(target=compete, args=each) for each in arguments]
    for process in processes:
        process.start()
    seen = [answers.get(timeout=100) for _ in range(rounds * PROCESSES)]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert {(round_, mcc) for round_, _, mcc in seen} == {
        (round_, round_ + (PROCESSES - 1) / 10) for round_ in range(rounds)
    }
    records = record.read_changes(store)
    assert [move["number"] for move in records] == list(range(1, len(records) + 1))
    assert {move["state"] for move in records} == {"done"}
    assert [move["previous"] for move in records] == ["", *(move["id"] for move in records[:-1])]
    assert [move["from"] for move in records] == [None, *(move["to"] for move in records[:-1])]
    scores = [float(move["reason"].removeprefix("MCC ")) for move in records]
    assert scores == sorted(scores)  # nobody ever replaced a better one
    assert rounds <= len(records) <= rounds * PROCESSES
    assert sum(again for _, again, _ in seen) > 0  # they did get in each other's way
    assert not any(move["altered"] for move in records)


def hold(store: MlflowStore, leased: bool, held: Any) -> None:
    if leased:
        turns.database_of = lambda _store: None
    with turns.promotion_lock(store):
        held.set()
        time.sleep(60)


@pytest.mark.parametrize("leased", [False, True], ids=["file lock", "lease"])
def test_a_killed_holder_keeps_no_turn(
    store: MlflowStore, tmp_path: Path, leased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if leased:
        monkeypatch.setattr(turns, "database_of", lambda _store: None)
        monkeypatch.setattr(turns, "LEASE_S", 2.0)
        monkeypatch.setattr(turns, "CLOCK_MARGIN_S", 0.5)
    version = add_version(store, tmp_path, "a")
    held = forks.Event()
    holder = forks.Process(target=hold, args=(store, leased, held))
    holder.start()
    assert held.wait(60)
    with pytest.raises(turns.LockTimeout), turns.promotion_lock(store, 0.5):
        pass
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    started = time.monotonic()
    moves.promote(store, version, kind="promote", expected=None, reason="first")
    assert time.monotonic() - started < (10 if leased else 1)


def test_a_lease_that_took_too_long_writes_no_more(store: MlflowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "database_of", lambda _store: None)
    monkeypatch.setattr(turns, "LEASE_S", 20.2)
    with turns.promotion_lock(store) as check:
        check()
        time.sleep(0.3)
        with pytest.raises(turns.LockTimeout, match="nothing was moved, run the same command again"):
            check()
    with turns.promotion_lock(store, 1):  # the lease that ended was given back
        pass
