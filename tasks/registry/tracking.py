"""What jobs did, in MLflow: one run a job, from data to verdict, with its settings, figures, data sets and files."""

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow.data
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode

from tasks.data.snapshots import read_snapshot
from tasks.evaluation.run_diff import RunRecord
from tasks.registry.mlflow_client import MlflowStore, connect, experiment_of, search_all

BATCH_LIMIT = 1_000  # metrics in one call, MLflow's limit
REASON_TAG = {
    "KILLED": "its process died; the same data and settings go on from what it finished"
}  # ended without a word
DIGEST_LENGTH = 32  # characters; MLflow allows 36


def open_run(store: MlflowStore, job: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Start a run for a job, or go on with the one that a killed process left running; return its id.

    The caller holds the job's lock, so a run of this job and home that says RUNNING belongs to a dead process.
    """
    with connect(store) as client:
        experiment = experiment_of(client, store)
        own = {"job": job, "home": tags.get("home", "")}
        wanted = " and ".join(f"tags.{name} = '{value}'" for name, value in own.items())
        left = client.search_runs([experiment], f"{wanted} and attributes.status = 'RUNNING'")
        run = left[0] if left else client.create_run(experiment, run_name=f"retrain-{job[:8]}", tags=own)
        client.log_batch(
            run.info.run_id,
            params=[Param(key, str(value)) for key, value in params.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        return run.info.run_id


def tag_run(store: MlflowStore, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run."""
    with connect(store) as client:
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def find_page(store: MlflowStore, run_id: str) -> str:
    """Return the address of a run's page, relative to MLflow's own."""
    with connect(store) as client:
        return f"#/experiments/{client.get_run(run_id).info.experiment_id}/runs/{run_id}"


def read_run_record(store: MlflowStore, run_id: str) -> RunRecord | None:
    """Return what a run recorded of how it was made; None where the store has no such run."""
    with connect(store) as client:
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in {ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), ErrorCode.Name(INVALID_PARAMETER_VALUE)}:
                return None
            raise
        return RunRecord(settings=dict(run.data.params), tags=dict(run.data.tags))


def close_run(store: MlflowStore, run_id: str, status: str) -> None:
    """End a run as FINISHED, FAILED or KILLED."""
    with connect(store) as client:
        client.set_terminated(run_id, status)


def running_jobs(store: MlflowStore, home: str) -> dict[str, str]:
    """Return run id to job of every run that says it is running in the home with this name."""
    with connect(store) as client:
        runs = search_all(
            client.search_runs,
            [experiment_of(client, store)],
            f"tags.home = '{home}' and attributes.status = 'RUNNING'",
        )
        return {run.info.run_id: run.data.tags["job"] for run in runs if "job" in run.data.tags}


def log_metrics(store: MlflowStore, run_id: str, metrics: Mapping[str, float | None], step: int = 0) -> None:
    """Log figures of one step; None is left out."""
    log_series(store, run_id, {name: {step: value} for name, value in metrics.items()})


def log_series(store: MlflowStore, run_id: str, series: Mapping[str, Mapping[int, float | None]]) -> None:
    """Log figures by name and step; None is left out."""
    now = int(time.time() * 1_000)
    metrics = [
        Metric(name, value, now, step)
        for name, values in series.items()
        for step, value in values.items()
        if value is not None
    ]
    with connect(store) as client:
        for start in range(0, len(metrics), BATCH_LIMIT):
            client.log_batch(run_id, metrics=metrics[start : start + BATCH_LIMIT])


def log_dataset(store: MlflowStore, run_id: str, name: str, context: str, digest: str, path: str, address: str) -> None:
    """Log a snapshot as an input of a run, so that versions lead back to their rows."""
    rows = read_snapshot(path)
    with connect(store) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's hints on integer columns and ambiguous folders
        dataset = mlflow.data.from_pandas(
            # MLflow knows no addresses such as hf:...; the snapshot is where the very rows are.
            rows,
            source=path,
            targets="label",
            name=name,
            digest=digest[:DIGEST_LENGTH],
        )
        tags = [InputTag("mlflow.data.context", context), InputTag("address", address[:500])]
        entry = DatasetInput(dataset._to_mlflow_entity(), tags)
        client.log_inputs(run_id, [entry])


def log_files(store: MlflowStore, run_id: str, paths: Sequence[str], folder: str) -> None:
    """Store files with a run, in a folder of its artifacts."""
    with connect(store) as client:
        for path in paths:
            client.log_artifact(run_id, path, folder)


def recent_runs(store: MlflowStore, limit: int = 5) -> list[dict[str, Any]]:
    """Return the latest runs, newest first.

    Each with run, job, start and end (seconds since 1970; None while it runs), status, verdict, version, mcc, why it
    ended so, what drifted, and from the data of which digest (None where there was nothing to compare with).
    """
    with connect(store) as client:
        runs = client.search_runs(
            [experiment_of(client, store)], max_results=limit, order_by=["attributes.start_time DESC"]
        )
        return [
            {
                "run": run.info.run_id,
                "job": run.data.tags.get("job"),
                "start": run.info.start_time / 1_000,
                "end": run.info.end_time / 1_000 if run.info.end_time else None,
                "status": run.info.status,
                "verdict": run.data.tags.get("verdict"),
                "version": run.data.tags.get("version"),
                "mcc": run.data.metrics.get("mcc"),
                "why": _reason(run),
                "drift": run.data.tags.get("drift"),
                "drift_from": run.data.tags.get("drift_from"),
            }
            for run in runs
        ]


def _reason(run: Run) -> str:
    """Return why a run ended as it did; of one that failed after its verdict the failure."""
    tags = run.data.tags
    said = (tags.get("error"), tags.get("why")) if run.info.status == "FAILED" else (tags.get("why"), tags.get("error"))
    return said[0] or said[1] or REASON_TAG.get(run.info.status, "")


def count_holdout_uses(store: MlflowStore, holdout: str, besides: str) -> int:
    """Count the bundles that were judged on a holdout, deleted runs included: deleting one does not unsee its figures.

    Args:
        store: where.
        holdout: digest of the snapshot that judges.
        besides: digest of a bundle that does not count, the candidate's own.
    """
    with connect(store) as client:
        runs = search_all(
            client.search_runs,
            [experiment_of(client, store)],
            f"tags.holdout = '{holdout}'",
            run_view_type=ViewType.ALL,
        )
        seen = {run.data.tags.get("bundle_digest", "") for run in runs}
        return len(seen - {"", besides})
