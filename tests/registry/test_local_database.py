"""A home's own database: one that is lost is not taken for a new one; a moved or copied one has its own artifacts."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registered import make_champion_store
from registry_store import new_store

from tasks.core.errors import UnreachableError
from tasks.core.files import write_json
from tasks.inference.bundle import CHAMPION, MODEL_NAME
from tasks.registry import local_database, lookup, promotion, retention, tracking, verification
from tasks.registry.local_database import LostDatabase
from tasks.registry.mlflow_client import connect, experiment_of
from tasks.registry.sqlite_lookup import find_local_version
from tasks.registry.store import MlflowStore, is_uninitialised, locate_store, prepare_local

Read = Callable[[MlflowStore], Any]

READERS: tuple[Read, ...] = (
    is_uninitialised,
    lookup.resolve_version,
    promotion.read_champion_state,
    promotion.history,
    lambda store: lookup.check_numbers(store, "1"),
    lambda store: promotion.promote(store, "1", kind="promote", expected=None, reason="first"),
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def leave_model(home: Path) -> Path:
    folder = home / "artifacts" / "models" / "m-1"
    folder.mkdir(parents=True)
    return folder


def leave_result(home: Path, store: str) -> Path:
    path = home / "runs" / "job" / "result.json"
    write_json(path, {"store": store})
    return path


@pytest.mark.parametrize("state", ["missing", "empty file", "empty tables"])
def test_every_command_refuses(home: Path, empty_store: Path, state: str) -> None:
    model, store = leave_model(home), locate_store(str(home))
    if state == "empty file":
        (home / "mlflow.db").touch()
    elif state == "empty tables":
        new_store(empty_store, home)
    is_so = "is missing" if state == "missing" else "is empty"
    for read in READERS:
        with pytest.raises(LostDatabase) as caught:
            read(store)
        assert f"mlflow.db {is_so}, but {model} was registered in it" in str(caught.value)
    with pytest.raises(LostDatabase):
        retention.prune(str(home), retention.RetentionRule(0, 1))
    assert model.is_dir()
    assert (home / "mlflow.db").exists() == (state != "missing")


def test_results_of_jobs_count_where_they_were_registered_locally(home: Path) -> None:
    store = locate_store(str(home))
    assert is_uninitialised(store)
    leave_result(home, "http://127.0.0.1:5000")  # elsewhere
    assert is_uninitialised(store)
    result = leave_result(home, "sqlite:////anywhere/mlflow.db")  # the home may have been moved
    with pytest.raises(LostDatabase, match=str(result)):
        is_uninitialised(store)
    result.write_text("[]")
    assert is_uninitialised(store)


def test_prepare_local_changes_nothing_in_another_store_or_an_invalid_database(home: Path, tmp_path: Path) -> None:
    (leave_model(home) / "MLmodel").write_text("a model")
    artifacts = str(home / "artifacts")
    before = files_of(home)
    for uri in (f"sqlite:///{tmp_path}/other/mlflow.db", "http://127.0.0.1:1"):
        prepare_local(MlflowStore(uri=uri, artifacts=artifacts))
        assert files_of(home) == before
    (home / "mlflow.db").write_bytes(b"no database" * 100)
    before = files_of(home)
    prepare_local(locate_store(str(home)))  # MLflow reports it
    assert files_of(home) == before


@pytest.fixture
def champion_home(home: Path, empty_store: Path, exported: Any) -> Path:
    folder = home / "first 100%"
    folder.mkdir()
    return make_champion_store(folder, empty_store, exported)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_own_artifacts(home: Path) -> None:
    """Check that what is read of the champion lies in a home, by MLflow and without it, and that runs write there."""
    store = locate_store(str(home))
    local = find_local_version(store, MODEL_NAME, CHAMPION, "")
    assert local is not None
    assert local.model.is_relative_to(home)
    found = lookup.find_alias(store, CHAMPION)
    assert found is not None
    assert Path(found["bundle"]) == local.model / "data" / "bundle"
    assert verification.verify_version(store, "1") == found["digest"]
    with connect(store) as client:
        runs = client.search_runs([experiment_of(client, store)])
    assert all(run.info.artifact_uri.startswith((home / "artifacts").as_uri()) for run in runs)
    run = tracking.open_run(store, "b" * 16, {}, {})
    tracking.log_files(store, run, [str(local.model / "MLmodel")], "notes")
    assert (home / "artifacts" / run / "artifacts" / "notes" / "MLmodel").is_file()


def test_a_copied_home_is_its_own_and_a_moved_one_has_what_it_had(champion_home: Path, tmp_path: Path) -> None:
    before = files_of(champion_home)
    copied = Path(shutil.copytree(champion_home, tmp_path / "copy"))
    check_own_artifacts(copied)
    assert files_of(champion_home) == before
    check_own_artifacts(Path(shutil.move(champion_home, tmp_path / "moved")))
    check_own_artifacts(copied)


def test_a_moved_database_that_cannot_be_changed_is_refused(
    champion_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = shutil.move(champion_home, tmp_path / "moved")
    monkeypatch.setattr(local_database, "DATABASE_TIMEOUT_S", 0)
    with sqlite3.connect(moved / "mlflow.db", isolation_level=None) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnreachableError, match=r"cannot be changed to .* \(database is locked\); make"):
            lookup.find_alias(locate_store(str(moved)), CHAMPION)
        writer.execute("ROLLBACK")
