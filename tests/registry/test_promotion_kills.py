"""kill -9 at every step of a promotion: the same command again ends with the right alias and a complete audit log."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kill_points import KILLED, KillableProcess
from registry_store import add_version, aliases, is_complete, new_store, restore, store_in

from tasks.registry import lookup, promotion
from tasks.registry.promotion import promote, set_challenger
from tasks.registry.store import MlflowStore


@pytest.fixture(scope="module")
def process(folder: Path) -> Iterator[KillableProcess]:
    with KillableProcess("tasks.registry.promotion") as process:
        process.preload("tasks.registry.promotion.current_champion", store_in(folder))
        yield process


@pytest.fixture(scope="module")
def folder(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store with a champion and a challenger on HOLD, and of a backup of its database."""
    folder = tmp_path_factory.mktemp("kills")
    store = new_store(empty_store, folder)
    first = add_version(store, folder, "first")
    second = add_version(store, folder, "second", verdict="HOLD")
    promote(store, first, kind="promote", expected=None, reason="first")
    set_challenger(store, second)
    shutil.copy(folder / "mlflow.db", folder / "backup.db")
    return folder


def kill_at_calls(
    process: KillableProcess,
    folder: Path,
    call: str,
    again: Callable[[MlflowStore], Any],
    **kwargs: Any,
) -> int:
    """Kill a function after each call of MLflow that may write; after each kill repeat it and check the store.

    Returns:
        the number of those calls.
    """
    for number in range(1, 100):
        store = restore(folder / "backup.db", folder)
        ended = process.run(call, store, "2", point=number, **kwargs)
        if ended == 0:
            return number - 1
        assert ended == KILLED
        assert aliases(store)["champion"] in {"1", "2"}  # there is one at any time
        again(store)
        entries, changes = promotion.history(store)
        assert is_complete(changes), f"call {number}"
        assert all(entry["time"] for entry in entries)  # no unexplained change
        assert sum(change["state"] == "done" for change in changes) == 2
    raise AssertionError("more than 100 calls")


def test_an_approval_that_is_killed_at_any_call_can_be_repeated(process: KillableProcess, folder: Path) -> None:
    decision: dict[str, Any] = {"kind": "approve", "expected": "1", "reason": "good enough"}

    def again(store: MlflowStore) -> None:
        assert promote(store, "2", **decision)["reason"] == "good enough"
        assert aliases(store) == {"champion": "2"}  # and no challenger
        assert lookup.read_tags(store, "2")["verdict"] == "PROMOTE"

    assert kill_at_calls(process, folder, "tasks.registry.promotion.promote", again, **decision) == 8


def test_a_rejection_that_is_killed_at_any_call_can_be_repeated(process: KillableProcess, folder: Path) -> None:
    def again(store: MlflowStore) -> None:
        assert promotion.reject(store, "2", "worse on questions")["reason"] == "worse on questions"
        assert aliases(store) == {"champion": "1"}
        assert lookup.read_tags(store, "2")["verdict"] == "REJECT"

    call = "tasks.registry.promotion.reject"
    assert kill_at_calls(process, folder, call, again, reason="worse on questions") == 6
