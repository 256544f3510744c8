"""Runs of jobs in MLflow."""

from pathlib import Path

import pandas as pd
import pytest
from registry_store import new_store

from tasks.core.files import read_json
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


def test_pages_show_whose_run_it_is_what_it_ran_and_what_of(
    store: MlflowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERDICT_ACTOR", "ann")
    tags = tracking.page_tags("sample 3f2a", "verdict retrain", f"{'c' * 40}-dirty", deployed=False)
    run = tracking.open_run(store, JOB, SETTINGS, {"home": "here"} | tags)
    tracking.tag_run(store, run, {tracking.RUN_NAME: "acceptability 3 PROMOTE, sample 3f2a"})
    with connect(store) as client:
        held = client.get_run(run)
        experiment = client.get_experiment(held.info.experiment_id)
    assert (held.info.run_name, held.info.user_id) == ("acceptability 3 PROMOTE, sample 3f2a", "ann")
    sources = {name: value for name, value in held.data.tags.items() if name.startswith("mlflow.source.")}
    assert sources == {
        "mlflow.source.name": "verdict retrain",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "c" * 40,
    }
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert experiment.tags["mlflow.note.content"].startswith("One run for each retraining")
    assert tracking.page_tags("", "", "unknown", deployed=True)["mlflow.source.type"] == "JOB"


def test_a_table_is_logged_once(store: MlflowStore) -> None:
    """MLflow appends rows to a table that is there: a run that resumes would repeat them."""
    run = tracking.open_run(store, JOB, SETTINGS, {"home": "here"})
    for _ in range(2):
        tracking.log_table(store, run, pd.DataFrame({"sentence": ["A cat."], "correct": [True]}), "predictions.json")
    with connect(store) as client:
        table = read_json(Path(client.download_artifacts(run, "predictions.json")))
        tagged = client.get_run(run).data.tags["mlflow.loggedArtifacts"]
    assert table == {"columns": ["sentence", "correct"], "data": [["A cat.", True]]}
    assert tagged == '[{"path": "predictions.json", "type": "table"}]'


def test_a_run_killed_before_its_settings_were_logged_is_resumed(store: MlflowStore) -> None:
    run = tracking.open_run(store, JOB, {}, {"home": "here"})
    assert tracking.open_run(store, JOB, SETTINGS, {"home": "here"}) == run
    assert params(store, run)["finetune.epochs"] == "1"
