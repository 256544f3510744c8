"""The sweep flow on a real Prefect server and a real SQLite store."""

from pathlib import Path

import pytest
from job_cache import Choose, JobCache

from tasks.core.errors import UsageError


def test_the_winner_of_a_sweep_is_judged_and_each_trial_is_a_run(
    prefect_server: str,
    home: Path,
    choose: Choose,
    job_cache: JobCache,
    copied_pictures: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from flows.jobs.sweep import sweep
    from tasks.registry.mlflow_client import connect, experiment_of
    from tasks.registry.store import locate_store

    resolved = choose()  # of which a finished training and export are kept: the winner's
    epochs = resolved.settings.finetune.epochs
    space = [{"name": "epochs", "choices": (1, epochs), "low": 0.0, "high": 0.0}]
    arguments = (resolved.settings.model_dump(), resolved.origins, space, 5, 600.0, 1, str(home), None, 2)
    with job_cache.resumed(home, resolved), caplog.at_level("INFO", "tasks"):
        outcome = sweep(*arguments)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("tasks.")]
    assert any(line.startswith("validation keeps equal sentences together: ") for line in said)
    assert outcome.best == {"finetune.epochs": epochs}
    assert outcome.retrain.decision == "PROMOTE"
    assert [(trial["settings"]["epochs"], len(trial["mccs"])) for trial in outcome.trials] == [(epochs, 2), (1, 2)]
    store = locate_store(str(home))
    with connect(store) as client:
        runs = client.search_runs([experiment_of(client, store, "verdict-sweeps")])
        trials = {run.data.params["finetune.epochs"]: run for run in runs if run.data.tags["kind"] == "trial"}
        assert trials.keys() == {"1", str(epochs)}
        assert trials[str(epochs)].data.metrics["validation_mcc"] == outcome.trials[0]["mcc"]
        assert client.get_run(outcome.run).data.params["folds"] == "2"
        assert {run.data.tags["mlflow.parentRunId"] for run in trials.values()} == {outcome.run}
        assert [file.path for file in client.list_artifacts(outcome.run, "sweep")] == ["sweep/trials.png"]
        assert client.get_run(outcome.retrain.run).data.tags["origin.finetune.epochs"].startswith("sweep ")
    again = sweep(*arguments)
    assert (again.trials, again.run, again.retrain.unchanged) == (outcome.trials, outcome.run, True)


def test_folds_with_a_teacher_are_refused_before_anything_is_read(choose: Choose, tmp_path: Path) -> None:
    from flows.jobs.sweep import sweep

    settings = choose(finetune__teacher="1").settings.model_dump()
    with pytest.raises(UsageError, match=r"^--folds 5 with finetune.teacher: .*; expected --folds 1$"):
        sweep.fn(settings, {}, [], 1, 60.0, 1, str(tmp_path / "stores"), None, 5)
    assert not (tmp_path / "stores").exists()


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("30m", 1_800.0), ("1.5h", 5_400.0)])
def test_a_budget_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    from flows.cli.sweep import parse_budget

    assert parse_budget(text) == seconds
    with pytest.raises(UsageError, match="--budget '30' is no time; expected a number and s, m or h, for example 30m"):
        parse_budget("30")
