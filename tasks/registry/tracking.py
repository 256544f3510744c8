"""Jobs in MLflow: one run for each, with its settings, metrics, data sets and files."""

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mlflow.data
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode

from tasks.core.printable import shorten
from tasks.data.sentence_sketch import estimate_overlap
from tasks.data.snapshots import read_snapshot
from tasks.evaluation.run_diff import RunRecord
from tasks.registry.audit_log import actor
from tasks.registry.limits import MAX_ADDRESS, MAX_PARAM, MAX_TAG
from tasks.registry.mlflow_client import connect, experiment_of, search_all
from tasks.registry.store import MlflowStore

if TYPE_CHECKING:
    import pandas as pd

SKETCH_TAG = "holdout_sketch"
SAME_HOLDOUT = 0.5  # share of the smaller holdout's sentences from which on two count as one
RUN_NAME = "mlflow.runName"  # the tag that renames a run
BATCH_LIMIT = 1_000  # metrics of one call, MLflow's limit
# Why a run has a status, where it recorded no reason.
STATUS_REASONS = {"KILLED": "its process died; a run with the same data and settings resumes it"}
MAX_RECENT_RUNS = 5  # that a list of runs shows
DIGEST_LENGTH = 32  # characters of a data set's digest; MLflow allows 36


def open_run(store: MlflowStore, job: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Start a run for a job, or resume the one that a killed process left; return its id.

    Among the tags may be those that MLflow's pages show in columns of their own (`page_tags`).

    The caller holds the job's lock, so a run of this job and home in status RUNNING belongs to a dead process. If that
    had other values for settings that are not part of the job's name (device, addresses, waiting), it is closed as
    KILLED and another run is started, because MLflow does not change parameters.
    """
    logged = {key: shorten(str(value), MAX_PARAM) for key, value in params.items()}
    with connect(store) as client:
        experiment = experiment_of(client, store)
        own = {"job": job, "home": tags.get("home", "")}
        same = " and ".join(f"tags.{name} = '{value}'" for name, value in own.items())
        interrupted = client.search_runs([experiment], f"{same} and attributes.status = 'RUNNING'")
        run = None
        for left in interrupted:
            if run is None and all(logged.get(key, value) == value for key, value in left.data.params.items()):
                run = left
            else:
                client.set_terminated(left.info.run_id, "KILLED")
        shortened = {key: shorten(value, MAX_TAG) for key, value in tags.items()}
        # Some tags count only here: MLflow's name of the user.
        run = run or client.create_run(experiment, tags=shortened | own)
        client.log_batch(
            run.info.run_id,
            params=[Param(key, value) for key, value in logged.items()],
            tags=[RunTag(key, value) for key, value in shortened.items()],
        )
        return run.info.run_id


def page_tags(name: str, source: str, commit: str, deployed: bool) -> dict[str, str]:
    """Return the tags that give a run its name, user, source and commit on MLflow's pages.

    Args:
        name: of the run.
        source: what was run.
        commit: of the code, as `git_commit` returns it.
        deployed: whether a Prefect deployment runs it, not a person.
    """
    tags = {RUN_NAME: name, "mlflow.user": actor(), "mlflow.source.name": source}
    tags["mlflow.source.type"] = "JOB" if deployed else "LOCAL"
    return tags if commit == "unknown" else tags | {"mlflow.source.git.commit": commit.removesuffix("-dirty")}


def tag_run(store: MlflowStore, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run."""
    with connect(store) as client:
        client.log_batch(run_id, tags=[RunTag(key, shorten(value, MAX_TAG)) for key, value in tags.items()])


def find_page(store: MlflowStore, run_id: str) -> str:
    """Return the address of a run's page, relative to MLflow's address; PAGE_MODE may follow it."""
    with connect(store) as client:
        return f"#/experiments/{client.get_run(run_id).info.experiment_id}/runs/{run_id}"


def read_run_record(store: MlflowStore, run_id: str) -> RunRecord | None:
    """Return settings and tags of a run; None where the store has no such run."""
    with connect(store) as client:
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in {ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), ErrorCode.Name(INVALID_PARAMETER_VALUE)}:
                return None
            raise
        return RunRecord(settings=dict(run.data.params), tags=dict(run.data.tags))


def read_datasets(store: MlflowStore, run_id: str) -> dict[str, str]:
    """Return the digests of a run's data sets by name, cut to DIGEST_LENGTH characters."""
    with connect(store) as client:
        inputs = client.get_run(run_id).inputs.dataset_inputs
        return {each.dataset.name: each.dataset.digest for each in inputs}


def close_run(store: MlflowStore, run_id: str, status: str) -> None:
    """End a run as FINISHED, FAILED or KILLED."""
    with connect(store) as client:
        client.set_terminated(run_id, status)


def running_jobs(store: MlflowStore, home: str) -> dict[str, str]:
    """Return the jobs by run id of every run with status RUNNING of a home.

    Args:
        store: where.
        home: id of the folder of stores.
    """
    with connect(store) as client:
        runs = search_all(
            client.search_runs,
            [experiment_of(client, store)],
            f"tags.home = '{home}' and attributes.status = 'RUNNING'",
        )
        return {run.info.run_id: run.data.tags["job"] for run in runs if "job" in run.data.tags}


def log_metrics(store: MlflowStore, run_id: str, metrics: Mapping[str, float | None], step: int = 0) -> None:
    """Log metrics of one step; None is left out."""
    log_series(store, run_id, {name: {step: value} for name, value in metrics.items()})


def log_series(store: MlflowStore, run_id: str, series: Mapping[str, Mapping[int, float | None]]) -> None:
    """Log metrics by name and step; None is left out."""
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
    """Log a snapshot as an input of a run, so that the rows of a version can be found.

    Args:
        store: where.
        run_id: of the run.
        name: of the data set.
        context: what it is for: training, validation or holdout.
        digest: of the snapshot, shortened to what MLflow keeps.
        path: of the snapshot, which is logged as the source: MLflow has no source type for addresses such as hf:...
        address: where the rows come from, logged as a tag.
    """
    rows = read_snapshot(path)
    with connect(store) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's hints on integer columns and ambiguous folders
        dataset = mlflow.data.from_pandas(
            rows,
            source=path,
            targets="label",
            name=name,
            digest=digest[:DIGEST_LENGTH],
        )
        tags = [InputTag("mlflow.data.context", context), InputTag("address", shorten(address, MAX_ADDRESS))]
        entry = DatasetInput(dataset._to_mlflow_entity(), tags)
        client.log_inputs(run_id, [entry])


def log_files(store: MlflowStore, run_id: str, paths: Sequence[str], folder: str) -> None:
    """Store files in a folder of a run's artifacts."""
    with connect(store) as client:
        for path in paths:
            client.log_artifact(run_id, path, folder)


def log_table(store: MlflowStore, run_id: str, table: "pd.DataFrame", name: str) -> None:
    """Store a table that MLflow's pages show, unless the run has it: MLflow would append the rows once more."""
    with connect(store) as client:
        if name not in {entry.path for entry in client.list_artifacts(run_id)}:
            client.log_table(run_id, table, name)


def recent_runs(store: MlflowStore) -> list[dict[str, Any]]:
    """Return the latest MAX_RECENT_RUNS runs, newest first.

    Each has run, job, home (id of its folder of stores), start and end (Unix time in seconds; end is None while it
    runs), status, verdict, version, mcc, why (the reason of verdict or failure), drift (what drifted) and drift_from
    (digest of the data that it was compared with, None without any).
    """
    with connect(store) as client:
        runs = client.search_runs(
            [experiment_of(client, store)], max_results=MAX_RECENT_RUNS, order_by=["attributes.start_time DESC"]
        )
        return [
            {
                "run": run.info.run_id,
                "job": run.data.tags.get("job"),
                "home": run.data.tags.get("home"),
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
    """Return the reason of a run's verdict; for a run that failed, after its verdict too, that of the failure."""
    verdict, failure = run.data.tags.get("why"), run.data.tags.get("error")
    first, second = (failure, verdict) if run.info.status in ("FAILED", "KILLED") else (verdict, failure)
    return first or second or STATUS_REASONS.get(run.info.status, "")


def count_holdout_uses(store: MlflowStore, holdout: str, sketch: str, exclude: str) -> int:
    """Count the bundles that were judged on a holdout, or on one that shares at least half of its sentences with it.

    A holdout that grows with the data has a new digest each time. Deleted runs count, since their results were seen.

    Args:
        store: where.
        holdout: digest of the holdout's snapshot.
        sketch: of its sentences, from `sketch_snapshot`. Runs of earlier releases have none, and count by the digest.
        exclude: digest of a bundle that does not count, the candidate's own.
    """
    with connect(store) as client:
        runs = search_all(
            client.search_runs,
            [experiment_of(client, store)],
            "tags.holdout != ''",
            run_view_type=ViewType.ALL,
        )
    tags = [run.data.tags for run in runs]
    judged = {
        each.get("bundle_digest", "")
        for each in tags
        if each["holdout"] == holdout or estimate_overlap(each.get(SKETCH_TAG, ""), sketch) >= SAME_HOLDOUT
    }
    return len(judged - {"", exclude})
