"""Sweeps in MLflow: a run for each sweep, with a child run for each trial, in an experiment of their own."""

from collections.abc import Mapping
from typing import Any

from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from tasks.core.printable import shorten
from tasks.registry.limits import MAX_PARAM, MAX_TAG
from tasks.registry.local_database import SWEEP_EXPERIMENT
from tasks.registry.mlflow_client import connect, experiment_of, search_all
from tasks.registry.store import MlflowStore
from tasks.training.trials import TrialRecord

STATUS = {"finished": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


def open_sweep(store: MlflowStore, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Start the run of a sweep, or take up the one of an earlier command with the same name; return its id."""
    with connect(store) as client:
        experiment = experiment_of(client, store, SWEEP_EXPERIMENT)
        found = client.search_runs([experiment], f"tags.sweep = '{name}' and tags.kind = 'sweep'", ViewType.ACTIVE_ONLY)
        run = found[0] if found else client.create_run(experiment, run_name=f"sweep {name[:8]}")
        run_id = str(run.info.run_id)
        client.update_run(run_id, "RUNNING")
        known = run.data.params
        client.log_batch(
            run_id,
            params=[Param(key, shorten(str(value), MAX_PARAM)) for key, value in params.items() if key not in known],
            tags=[
                RunTag(key, shorten(value, MAX_TAG)) for key, value in {**tags, "sweep": name, "kind": "sweep"}.items()
            ],
        )
        return run_id


def log_trials(store: MlflowStore, sweep: str, name: str, trials: list[TrialRecord]) -> None:
    """Log trials as child runs, each once.

    Args:
        store: where.
        sweep: id of the sweep's run.
        name: of the sweep.
        trials: that ended.
    """
    with connect(store) as client:
        experiment = experiment_of(client, store, SWEEP_EXPERIMENT)
        logged = search_all(client.search_runs, [experiment], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{sweep}'")
        known = {run.data.tags.get("trial"): run for run in logged}
        for trial in trials:
            run = known.get(str(trial.number))
            if run and run.info.status != "RUNNING":  # a command that was killed leaves one that runs
                continue
            tags = {MLFLOW_PARENT_RUN_ID: sweep, "sweep": name, "kind": "trial", "trial": str(trial.number)}
            run = run or client.create_run(experiment, run_name=f"trial {trial.number}", tags=tags)
            figures = {"validation_mcc": trial.mcc, "seconds": trial.seconds}
            now = run.info.start_time
            client.log_batch(
                run.info.run_id,
                metrics=[Metric(key, value, now, 0) for key, value in figures.items() if value is not None],
                params=[
                    Param(f"finetune.{key}", shorten(str(value), MAX_PARAM)) for key, value in trial.settings.items()
                ],
            )
            if trial.error:
                client.set_tag(run.info.run_id, "error", shorten(trial.error, MAX_TAG))
            client.set_terminated(run.info.run_id, STATUS[trial.state])
