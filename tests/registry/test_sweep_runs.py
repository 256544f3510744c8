"""Trials of a sweep in MLflow: each is one run, also where the command was killed while it logged one."""

from pathlib import Path

import pytest
from registry_store import new_store

from tasks.registry import sweep_runs
from tasks.registry.local_database import SWEEP_EXPERIMENT
from tasks.registry.mlflow_client import connect, experiment_of
from tasks.registry.store import MlflowStore
from tasks.training.trials import TrialRecord

NAME = "a" * 16
TRIALS = [
    TrialRecord(0, "finished", {"epochs": 2}, 0.5, [0.5], 3.0),
    TrialRecord(1, "failed", {"epochs": 3}, None, [], 1.0, "memory ran out"),
]


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> MlflowStore:
    return new_store(empty_store, tmp_path)


def test_a_trial_is_one_run_wherever_the_command_was_killed(
    store: MlflowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = sweep_runs.open_sweep(store, NAME, {"finetune.epochs": (2, 3)}, {})
    with connect(store) as client:
        experiment = experiment_of(client, store, SWEEP_EXPERIMENT)
        for killed_at in ("log_batch", "set_terminated"):
            with monkeypatch.context() as patch:
                patch.setattr(type(client), killed_at, interrupt)
                with pytest.raises(KeyboardInterrupt):
                    sweep_runs.log_trials(store, sweep, NAME, TRIALS[:1])
        for _ in range(2):
            sweep_runs.log_trials(store, sweep, NAME, TRIALS)
        assert sweep_runs.open_sweep(store, NAME, {"finetune.epochs": (2, 3)}, {}) == sweep
        runs = {run.info.run_name: run for run in client.search_runs([experiment], "tags.kind = 'trial'")}
        assert len(client.search_runs([experiment])) == 3
    assert {name: run.info.status for name, run in runs.items()} == {"trial 0": "FINISHED", "trial 1": "FAILED"}
    assert runs["trial 0"].data.metrics == {"validation_mcc": 0.5, "seconds": 3.0}
    assert (runs["trial 1"].data.params, runs["trial 1"].data.tags["error"]) == (
        {"finetune.epochs": "3"},
        "memory ran out",
    )


def interrupt(*_given: object, **_named: object) -> None:
    raise KeyboardInterrupt
