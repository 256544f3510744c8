"""Four real processes that promote at once: the best one is champion in the end, and the audit log has no gap."""

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from registry_store import add_version, new_store

from tasks.inference.bundle import CHAMPION
from tasks.registry import audit_log, lookup, promotion, promotion_lock
from tasks.registry.store import MlflowStore

PROCESSES = 4
ROUNDS = 5
LEASE_ROUNDS = 3  # the lease waits longer than a file lock

# Processes that start with MLflow imported, and with no connection that a fork would share.
forks = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def _preloaded() -> None:
    forks.set_forkserver_preload(["tasks.registry.promotion", "registry_store"])


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
            promotion.promote(store, version, kind="promote", expected=expected, reason=f"MCC {score}")
        except promotion.ChampionChanged:
            continue
        return attempt
    raise AssertionError("100 attempts were not enough")


def compete(
    store: MlflowStore, folder: Path, number: int, rounds: int, leased: bool, barrier: Barrier, answers: Any
) -> None:
    if leased:
        promotion_lock.database_of = lambda _store: None  # as for a store that is no local file
        promotion_lock.POLL_RANGE_S = (0.005, 0.05)
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


@pytest.mark.parametrize(("rounds", "leased"), [(ROUNDS, False), (LEASE_ROUNDS, True)], ids=["file lock", "lease"])
def test_the_best_of_four_promoters_is_champion_and_the_audit_log_has_no_gap(
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
    records = audit_log.read_changes(store)
    assert [move["number"] for move in records] == list(range(1, len(records) + 1))
    assert {move["state"] for move in records} == {"done"}
    assert [move["previous"] for move in records] == ["", *(move["id"] for move in records[:-1])]
    assert [move["from"] for move in records] == [None, *(move["to"] for move in records[:-1])]
    scores = [float(move["reason"].removeprefix("MCC ")) for move in records]
    assert scores == sorted(scores)  # no better champion was ever replaced
    assert rounds <= len(records) <= rounds * PROCESSES
    assert sum(again for _, again, _ in seen) > 0  # they did compete
    assert not any(move["altered"] for move in records)


def hold(store: MlflowStore, leased: bool, held: Any) -> None:
    if leased:
        promotion_lock.database_of = lambda _store: None
    with promotion_lock.promotion_lock(store):
        held.set()
        time.sleep(60)


@pytest.mark.parametrize("leased", [False, True], ids=["file lock", "lease"])
def test_a_killed_holder_keeps_no_lock(
    store: MlflowStore, tmp_path: Path, leased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if leased:
        monkeypatch.setattr(promotion_lock, "database_of", lambda _store: None)
        monkeypatch.setattr(promotion_lock, "LEASE_S", 2.0)
        monkeypatch.setattr(promotion_lock, "CLOCK_MARGIN_S", 0.5)
    version = add_version(store, tmp_path, "a")
    held = forks.Event()
    holder = forks.Process(target=hold, args=(store, leased, held))
    holder.start()
    assert held.wait(60)
    with pytest.raises(promotion_lock.LockTimeout), promotion_lock.promotion_lock(store, 0.5):
        pass
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    started = time.monotonic()
    promotion.promote(store, version, kind="promote", expected=None, reason="first")
    assert time.monotonic() - started < (10 if leased else 1)


def test_a_holder_of_an_expired_lease_stops_writing(store: MlflowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promotion_lock, "database_of", lambda _store: None)
    monkeypatch.setattr(promotion_lock, "LEASE_S", 21.5)
    with promotion_lock.promotion_lock(store) as check:
        check()
        time.sleep(1.6)
        with pytest.raises(promotion_lock.LockTimeout, match="nothing was moved, run the same command again"):
            check()
    with promotion_lock.promotion_lock(store, 1):  # the lease that ended was given back
        pass
