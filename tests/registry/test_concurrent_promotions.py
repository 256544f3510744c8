"""Four real processes that promote at once: the best one is champion in the end, and the audit log has no gap."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest
from competing import PROCESSES
from http_server import wait_until
from kill_points import KILLED, KillableProcess
from registry_store import add_version, new_store

from tasks.registry import audit_log, promotion, promotion_lock
from tasks.registry.local_database import AUDIT_EXPERIMENT
from tasks.registry.mlflow_client import connect, experiment_of
from tasks.registry.promotion_lock import LEASE_TAG_PREFIX
from tasks.registry.store import MlflowStore

ROUNDS = 5
LEASE_ROUNDS = 3  # the lease waits longer than a file lock


@pytest.fixture(scope="module")
def process() -> Iterator[KillableProcess]:
    with KillableProcess("competing") as process:
        yield process


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> MlflowStore:
    return new_store(empty_store, tmp_path)


@pytest.mark.parametrize(("rounds", "leased"), [(ROUNDS, False), (LEASE_ROUNDS, True)], ids=["file lock", "lease"])
def test_the_best_of_four_promoters_is_champion_and_the_audit_log_has_no_gap(
    process: KillableProcess, store: MlflowStore, tmp_path: Path, rounds: int, leased: bool
) -> None:
    found = tmp_path / "seen.json"
    assert process.run("competing.run_competition", store, str(tmp_path), rounds, leased, str(found), point=None) == 0
    seen = json.loads(found.read_text())
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


@pytest.mark.parametrize("leased", [False, True], ids=["file lock", "lease"])
def test_a_killed_holder_keeps_no_lock(
    process: KillableProcess, store: MlflowStore, tmp_path: Path, leased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if leased:
        monkeypatch.setattr(promotion_lock, "database_of", lambda _store: None)
        monkeypatch.setattr(promotion_lock, "LEASE_S", 2.0)
        monkeypatch.setattr(promotion_lock, "CLOCK_MARGIN_S", 0.5)
    version = add_version(store, tmp_path, "a")
    holder = tmp_path / "holder"
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(process.run, "competing.hold", store, leased, str(holder), point=None)
        wait_until(holder.exists, 60)
        with pytest.raises(promotion_lock.LockTimeout), promotion_lock.promotion_lock(store, 0.5):
            pass
        os.kill(int(holder.read_text()), signal.SIGKILL)
        assert ended.result() == KILLED
    started = time.monotonic()
    promotion.promote(store, version, kind="promote", expected=None, reason="first")
    assert time.monotonic() - started < 10


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


def test_a_dead_lease_that_two_processes_remove_at_once_stops_neither(
    store: MlflowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(store) as client:
        client.set_experiment_tag(experiment_of(client, store, AUDIT_EXPERIMENT), f"{LEASE_TAG_PREFIX}dead", "held")
    delete, removed = mlflow.MlflowClient.delete_experiment_tag, []

    def delete_twice(client: mlflow.MlflowClient, experiment: str, key: str) -> None:
        removed.append(key)
        delete(client, experiment, key)  # by the other process that waits
        delete(client, experiment, key)

    monkeypatch.setattr(mlflow.MlflowClient, "delete_experiment_tag", delete_twice)
    monkeypatch.setattr(promotion_lock, "database_of", lambda _store: None)
    monkeypatch.setattr(promotion_lock, "LEASE_S", 0.5)
    monkeypatch.setattr(promotion_lock, "CLOCK_MARGIN_S", 0.0)
    with promotion_lock.promotion_lock(store, 60):
        assert removed[0] == f"{LEASE_TAG_PREFIX}dead"
