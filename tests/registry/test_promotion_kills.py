"""kill -9 at every step of a promotion: the same command again ends with the right alias and a whole record."""

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dying import Dying
from shelves import add_version, aliases, new_store

from tasks.core.errors import VerdictError
from tasks.core.settings_loader import load_settings
from tasks.inference.bundle import MODEL_NAME
from tasks.registry import audit_log as record
from tasks.registry import lookup
from tasks.registry import promotion as moves
from tasks.registry.mlflow_client import MlflowStore, connect, experiment_of
from tasks.registry.promotion import promote, set_challenger

KILLED = -9


@pytest.fixture(scope="module")
def dying(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dying]:
    with Dying("tasks.registry.promotion") as process:
        elsewhere = new_store(empty_store, tmp_path_factory.mktemp("elsewhere"))
        process.order("tasks.registry.promotion.current_champion", elsewhere, point="nowhere")
        yield process


@pytest.fixture(scope="module")
def shelf(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a champion and a challenger on HOLD; each point starts from a copy of its database."""
    folder = tmp_path_factory.mktemp("kills")
    store = new_store(empty_store, folder)
    first = add_version(store, folder, "first")
    second = add_version(store, folder, "second", verdict="HOLD")
    promote(store, first, kind="promote", expected=None, reason="first")
    set_challenger(store, second)
    shutil.copy(folder / "mlflow.db", folder / "before.db")
    return folder


def restore(shelf: Path) -> None:
    """Put the database back as it was, in the file that connections have open."""
    with sqlite3.connect(shelf / "before.db") as before, sqlite3.connect(shelf / "mlflow.db") as now:
        before.backup(now)


def whole(records: list[Any]) -> bool:
    chain = [move["previous"] for move in records] == ["", *(move["id"] for move in records[:-1])]
    numbers = [move["number"] for move in records] == list(range(1, len(records) + 1))
    kept = all(move["state"] != "pending" and not move["altered"] for move in records)
    return chain and numbers and kept


def die_everywhere(dying: Dying, shelf: Path, call: str, again: Callable[[MlflowStore], Any], **kwargs: Any) -> int:
    """Kill a call after each thing it asks of MLflow; after each death do it again and check what is there."""
    store = MlflowStore(uri=f"sqlite:///{shelf}/mlflow.db", artifacts=str(shelf / "artifacts"))
    for number in range(1, 100):
        restore(shelf)
        ended = dying.order(call, store, "2", point=number, when="after", **kwargs)
        if ended == 0:
            return number - 1
        assert ended == KILLED
        assert aliases(store)["champion"] in {"1", "2"}  # at no time is there none
        again(store)
        entries, records = moves.history(store)
        assert whole(records), f"call {number}"
        assert all(entry["time"] for entry in entries)  # nothing that no record explains
        assert sum(move["state"] == "done" for move in records) == 2
    raise AssertionError("it never ended")


def test_an_approval_that_is_killed_anywhere_is_simply_repeated(dying: Dying, shelf: Path) -> None:
    decision: dict[str, Any] = {"kind": "approve", "expected": "1", "reason": "good enough"}

    def again(store: MlflowStore) -> None:
        assert promote(store, "2", **decision)["reason"] == "good enough"
        assert aliases(store) == {"champion": "2"}  # and no challenger
        assert lookup.read_tags(store, "2")["verdict"] == "PROMOTE"

    assert die_everywhere(dying, shelf, "tasks.registry.promotion.promote", again, **decision) > 15


def test_a_rejection_that_is_killed_anywhere_is_simply_repeated(dying: Dying, shelf: Path) -> None:
    def again(store: MlflowStore) -> None:
        # Where everything but the last word was done, there is no HOLD left to decide.
        with contextlib.suppress(VerdictError):
            moves.reject(store, "2", "worse on questions")
        assert aliases(store) == {"champion": "1"}
        assert lookup.read_tags(store, "2")["verdict"] == "REJECT"

    assert die_everywhere(dying, shelf, "tasks.registry.promotion.reject", again, reason="worse on questions") > 15


# Between "evidence written" and "result written", in the order in which a run comes along.
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
    with Dying("flows.jobs.retrain", *LIBRARIES, PREFECT_API_URL=prefect_server) as process:
        elsewhere = new_store(empty_store, tmp_path / "elsewhere")
        process.order("tasks.registry.promotion.current_champion", elsewhere, point="nowhere")
        for point, when in POINTS:
            ended = process.order("flows.jobs.retrain.retrain", *arguments, point=point, when=when)
            assert ended == KILLED, (point, [path.read_text() for path in tmp_path.glob("home/runs/*/result.json")])
            assert list(tmp_path.glob("home/runs/*/evidence.json"))
            assert not list(tmp_path.glob("home/runs/*/result.json"))
        assert process.order("flows.jobs.retrain.retrain", *arguments, point=None) == 0
    assert aliases(store) == {"champion": "1"}
    with connect(store) as client:
        (version,) = client.search_model_versions(f"name = '{MODEL_NAME}'")
        assert len(client.search_logged_models([experiment_of(client, store)])) == 1
    assert version.tags["verdict"] == "PROMOTE"
    records = record.read_changes(store)
    assert whole(records)
    (move,) = (move for move in records if move["state"] == "done")
    assert (move["kind"], move["from"], move["to"]) == ("promote", None, "1")
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("home/runs/*/result.json"))
    assert (result["decision"], result["version"]) == ("PROMOTE", "1")
