"""Runs of jobs in MLflow."""

from pathlib import Path

import pytest
from registry_store import new_store

from tasks.registry import tracking
from tasks.registry.mlflow_client import connect
from tasks.registry.store import MlflowStore

JOB = "a" * 16
SETTINGS = {"finetune.epochs": 1, "finetune.device": "cpu", "judge.wait_hours": 24}


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> MlflowStore:
    return new_store(empty_store, tmp_path)


def statuses(store: MlflowStore, runs: list[str]) -> list[str]:
    with connect(store) as client:
        return [client.get_run(run).info.status for run in runs]


def params(store: MlflowStore, run: str) -> dict[str, str]:
    record = tracking.read_run_record(store, run)
    assert record is not None
    return {**record["settings"]}


def test_a_job_resumes_the_run_that_a_killed_process_left(store: MlflowStore) -> None:
    run = tracking.open_run(store, JOB, SETTINGS, {"home": "here"})
    assert tracking.open_run(store, JOB, SETTINGS, {"home": "here"}) == run
    assert tracking.open_run(store, JOB, SETTINGS, {"home": "elsewhere"}) != run
    tracking.close_run(store, run, "FINISHED")
    assert tracking.open_run(store, JOB, SETTINGS, {"home": "here"}) != run


@pytest.mark.parametrize("changed", [{"finetune.device": "auto"}, {"judge.wait_hours": 5}])
def test_a_job_whose_other_settings_changed_gets_a_run_of_its_own(
    store: MlflowStore, changed: dict[str, object]
) -> None:
    """MLflow refuses to change a parameter; the job could not be run again."""
    left = tracking.open_run(store, JOB, SETTINGS, {"home": "here"})
    run = tracking.open_run(store, JOB, SETTINGS | changed, {"home": "here"})
    assert statuses(store, [left, run]) == ["KILLED", "RUNNING"]
    assert params(store, left) == {name: str(value) for name, value in SETTINGS.items()}
    assert params(store, run) == {name: str(value) for name, value in (SETTINGS | changed).items()}
    assert tracking.open_run(store, JOB, SETTINGS | changed, {"home": "here"}) == run


def test_a_run_killed_before_its_settings_were_logged_is_resumed(store: MlflowStore) -> None:
    run = tracking.open_run(store, JOB, {}, {"home": "here"})
    assert tracking.open_run(store, JOB, SETTINGS, {"home": "here"}) == run
    assert params(store, run)["finetune.epochs"] == "1"
