"""kill -9 at every step of a promotion: the same command again ends with the right alias and a complete audit log."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kill_points import KILLED, KillableProcess
from registry_store import add_version, aliases, new_store, restore

from tasks.core.errors import VerdictError
from tasks.core.settings_loader import load_settings
from tasks.inference.bundle import MODEL_NAME
from tasks.registry import audit_log, lookup, promotion
from tasks.registry.mlflow_client import MlflowStore, connect, experiment_of
from tasks.registry.promotion import promote, set_challenger


@pytest.fixture(scope="module")
def process(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KillableProcess]:
    with KillableProcess("tasks.registry.promotion") as process:
        other = new_store(empty_store, tmp_path_factory.mktemp("other"))
        process.preload("tasks.registry.promotion.current_champion", other)
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


def is_complete(changes: list[Any]) -> bool:
    linked = [change["previous"] for change in changes] == ["", *(change["id"] for change in changes[:-1])]
    numbered = [change["number"] for change in changes] == list(range(1, len(changes) + 1))
    closed = all(change["state"] != "pending" and not change["altered"] for change in changes)
    return linked and numbered and closed


def kill_at_calls(
    process: KillableProcess,
    folder: Path,
    call: str,
    again: Callable[[MlflowStore], Any],
    every: int = 1,
    **kwargs: Any,
) -> int:
    """Kill a function after every n-th call of MLflow; after each kill repeat it and check the store.

    Returns:
        the number of MLflow calls, or up to `every` less.
    """
    for number in range(1, 100, every):
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

    assert kill_at_calls(process, folder, "tasks.registry.promotion.promote", again, **decision) > 15


def test_a_rejection_that_is_killed_at_any_call_can_be_repeated(process: KillableProcess, folder: Path) -> None:
    def again(store: MlflowStore) -> None:
        # Where only the record was left to be closed, there is no HOLD left to decide.
        with contextlib.suppress(VerdictError):
            promotion.reject(store, "2", "worse on questions")
        assert aliases(store) == {"champion": "1"}
        assert lookup.read_tags(store, "2")["verdict"] == "REJECT"

    call = "tasks.registry.promotion.reject"
    assert kill_at_calls(process, folder, call, again, every=3, reason="worse on questions") > 15


# Between "evidence written" and "result written", in the order in which a run reaches them.
POINTS = [
    ("tasks.registry.mlflow_flavor.log_model", "after"),
    ("flows.jobs.publish.register", "after"),
    ("tasks.registry.promotion.begin", "after"),
    ("tasks.registry.register.move_alias", "after"),
    ("flows.jobs.retrain.outcome_of", "after"),
]
LIBRARIES = ("great_expectations", "matplotlib.pyplot", "onnxruntime", "mlflow.pyfunc")


def test_a_run_that_is_killed_at_each_step_after_its_evidence_ends_with_one_version_and_one_record(
    tmp_path: Path, empty_store: Path, toy_data: Path, tiny_encoder: Path, prefect_server: str
) -> None:
    store = new_store(empty_store, tmp_path / "home")
    toy = {
        "data.path": str(toy_data),
        "data.validation_share": 0.2,
        "finetune.encoder": str(tiny_encoder),
        "finetune.learning_rate": 3e-3,
        "finetune.batch_size": 16,
        "finetune.epochs": 2,
        "finetune.max_length": 16,
        "finetune.device": "cpu",
        "judge.resamples": 200,
        "judge.threshold": 0.0,
        "judge.variant_difference": 1.0,
    }
    resolved = load_settings("sample", toy, {})
    arguments = (resolved.settings.model_dump(mode="json"), resolved.origins, str(tmp_path / "home"))
    with KillableProcess("flows.jobs.retrain", *LIBRARIES, PREFECT_API_URL=prefect_server) as process:
        process.preload("tasks.registry.promotion.current_champion", new_store(empty_store, tmp_path / "other"))
        for point, when in POINTS:
            ended = process.run("flows.jobs.retrain.retrain", *arguments, point=point, when=when)
            assert ended == KILLED, (point, [path.read_text() for path in tmp_path.glob("home/runs/*/result.json")])
            assert list(tmp_path.glob("home/runs/*/evidence.json"))
            assert not list(tmp_path.glob("home/runs/*/result.json"))
        assert process.run("flows.jobs.retrain.retrain", *arguments, point=None) == 0
    assert aliases(store) == {"champion": "1"}
    with connect(store) as client:
        (version,) = client.search_model_versions(f"name = '{MODEL_NAME}'")
        assert len(client.search_logged_models([experiment_of(client, store)])) == 1
    assert version.tags["verdict"] == "PROMOTE"
    records = audit_log.read_changes(store)
    assert is_complete(records)
    (move,) = (move for move in records if move["state"] == "done")
    assert (move["kind"], move["from"], move["to"]) == ("promote", None, "1")
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("home/runs/*/result.json"))
    assert (result["decision"], result["version"]) == ("PROMOTE", "1")
