"""What the next command makes of MLflow runs that killed processes left RUNNING."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from outcomes import make_outcome
from registry_store import add_version, new_store, set_alias
from webhook_receiver import Receiver, receiving

from flows.jobs.dead_runs import close_dead_runs
from tasks.core.files import home_id, write_json
from tasks.registry import audit_log, tracking
from tasks.registry.mlflow_client import connect
from tasks.registry.store import MlflowStore


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> MlflowStore:
    return new_store(empty_store, tmp_path)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as receiver:
        monkeypatch.setenv("VERDICT_ALERT_URL", receiver.url)
        yield receiver


def leave_run(store: MlflowStore, home: Path, job: str, **result: Any) -> str:
    """Open the run of a job as a process does that is killed; with `result`, right after it wrote that."""
    run = tracking.open_run(store, job, {}, {"home": home_id(str(home))})
    (home / "runs" / job).mkdir(parents=True)
    if result:
        write_json(home / "runs" / job / "result.json", make_outcome(run=run, **result).to_json())
    return run


def status(store: MlflowStore, run: str) -> str:
    with connect(store) as client:
        return str(client.get_run(run).info.status)


def test_the_run_of_a_finished_job_ends_finished_with_its_alert_once(
    store: MlflowStore, tmp_path: Path, receiver: Receiver
) -> None:
    run = leave_run(store, tmp_path, "a" * 16, version="7", decision="REJECT")
    for _ in range(2):
        close_dead_runs(store, str(tmp_path), "b" * 16)
    assert status(store, run) == "FINISHED"
    assert [alert["text"].partition(", MCC")[0] for alert in receiver.received] == ["REJECT: version 7"]


def test_a_run_whose_version_was_promoted_is_not_killed(store: MlflowStore, tmp_path: Path) -> None:
    run = leave_run(store, tmp_path, "a" * 16)
    version = add_version(store, tmp_path, "a", run_id=run)
    audit_log.begin(store, [], kind="promote", version=version, to=version, reason="first")
    set_alias(store, version)  # and killed before the record was closed
    close_dead_runs(store, str(tmp_path), "b" * 16)
    assert status(store, run) == "FINISHED"
    assert [change["state"] for change in audit_log.read_changes(store)] == ["done"]


def test_other_dead_runs_are_killed_and_live_or_resumed_ones_stay(store: MlflowStore, tmp_path: Path) -> None:
    dead, pruned, live, own = (leave_run(store, tmp_path, letter * 16) for letter in "abcd")
    version = add_version(store, tmp_path, "a", run_id=dead)
    (tmp_path / "runs" / ("b" * 16)).rmdir()
    (tmp_path / "runs" / ("a" * 16) / "result.json").write_text("{")
    audit_log.begin(store, [], kind="promote", version=version, to=version, reason="not moved")
    with FileLock(tmp_path / "runs" / ("c" * 16) / "lock"):
        close_dead_runs(store, str(tmp_path), "d" * 16)
    assert [status(store, run) for run in (dead, pruned, live, own)] == ["KILLED", "KILLED", "RUNNING", "RUNNING"]
    assert [change["state"] for change in audit_log.read_changes(store)] == ["withdrawn"]


def test_pruning_ends_them_too(store: MlflowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.cli import app as cli

    monkeypatch.setenv("VERDICT_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = leave_run(store, tmp_path, "a" * 16)
    for arguments, expected in ((["prune", "--dry-run"], "RUNNING"), (["prune"], "KILLED")):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert status(store, run) == expected
