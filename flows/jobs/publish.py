"""Writes report and model card, registers the version and logs figures to MLflow; part of the main job."""

import contextlib
from pathlib import Path

from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from flows.jobs.data_changes import compare_rows
from flows.jobs.job import JobContext
from flows.jobs.judging import list_figures
from flows.jobs.prefect_artifacts import find_base
from flows.steps import retrying_task, timed_task
from tasks.core.errors import UnknownModel
from tasks.core.files import json_digest
from tasks.data.ingestion import Dataset
from tasks.data.row_changes import RowChanges
from tasks.data.snapshots import read_snapshot
from tasks.evaluation.evidence import ChampionEvidence
from tasks.evaluation.run_diff import RunRecord
from tasks.inference.bundle import CARD_FILE, MODEL_NAME
from tasks.registry import lookup, tracking
from tasks.registry.champion_figures import list_champions
from tasks.registry.descriptions import describe_run, describe_version, version_tags
from tasks.registry.mlflow_client import NOTE
from tasks.registry.register import register_bundle
from tasks.registry.store import MlflowStore
from tasks.reporting.charts import draw_charts
from tasks.reporting.error_table import list_errors
from tasks.reporting.predictions import list_predictions
from tasks.reporting.report import Registration, ReportInputs, changes_of, write_documents, write_run_report
from tasks.reporting.tables import compare_figures
from tasks.training.model import LABELS

GATE_PAGE = "gate.html"  # in the job's folder
PREDICTIONS_FILE = "predictions.json"  # table of a run's artifacts

draw = timed_task("document", draw_charts)
document = timed_task("document", write_documents)
document_run = timed_task("document", write_run_report)
register = retrying_task("register", register_bundle)
find_page = retrying_task("register", tracking.find_page)
log_series = retrying_task("log to MLflow", tracking.log_series)
log_table = retrying_task("log to MLflow", tracking.log_table)
log_files = retrying_task("log to MLflow", tracking.log_files)
tag_run = retrying_task("log to MLflow", tracking.tag_run)


def _read_champions_run(
    store: MlflowStore, champion: ChampionEvidence, data: Dataset, home: str
) -> tuple[RunRecord | None, dict[str, RowChanges | None] | None]:
    """Return what the champion's run recorded, and how its rows differ; None where its version or run was deleted."""
    with contextlib.suppress(UnknownModel):
        run_id = lookup.read_tags(store, champion["version"])["run"]
        if run := tracking.read_run_record(store, run_id):
            return run, compare_rows(store, run_id, data, home)
    return None, None


read_champions_run = retrying_task("find champion", _read_champions_run)
find_champions = retrying_task("find champion", list_champions)


def write_report(context: JobContext, report: ReportInputs) -> ReportInputs:
    """Draw the pictures and add report, card and metrics to the bundle; return the inputs, completed."""
    champion, timer, data = report.evidence["champion"], context.timer, context.inputs.data
    threshold, folder = report.verdict["threshold"], str(context.folder / "pictures")
    home = str(context.folder.parents[1])
    found = read_champions_run(timer, context.store, champion, data, home) if champion else (None, None)
    champions = find_champions(timer, context.store)
    report = report._replace(
        champions=champions,
        errors=list_errors(report.evidence, LABELS, read_snapshot(data["holdout"]["path"])),
        previous_run=found[0],
        row_changes=found[1],
        seconds=timer.seconds,
        pictures=draw(timer, report.training, report.evidence, threshold, folder, champions),
    )
    document(timer, report.export["bundle"], report)
    return report


def publish(context: JobContext, report: ReportInputs, dataset: str) -> str:
    """Register the bundle with its verdict; return its version."""
    timer, store, run_id = context.timer, context.store, context.run_id
    evidence, verdict = report.evidence, report.verdict
    changes = changes_of(report, dataset)
    tags = version_tags(evidence, verdict, changes) | {
        "dataset": dataset,
        "holdout": evidence["holdout_digest"],
        "compared_with": verdict["champion"] or "",
        "verdict_digest": json_digest(verdict),
    }
    page = find_page(timer, store, run_id)
    description = describe_version(evidence, verdict, compare_figures(evidence), changes, page)
    export = report.export
    version = register(timer, store, run_id, export["bundle"], export["digest"], tags, description)
    note = describe_run(evidence, verdict, version, MODEL_NAME, page)
    tag_run(timer, store, run_id, {NOTE: note})
    return version


def describe_registration(context: JobContext, version: str) -> Registration:
    """Return a version with the addresses of the pages about it; without servers that is the gate's page alone."""
    links = {}
    if base := find_base(context.store):
        page = f"{base}/{find_page(context.timer, context.store, context.run_id)}"
        links = {
            f"version {version} in MLflow": f"{base}/#/models/{MODEL_NAME}/versions/{version}",
            "run in MLflow": page,
            "page of the data gate": f"{page}/artifacts/gate/gate.html",
        }
    if flow_run.id and (run := url_for("flow-run", obj_id=flow_run.id)):  # an embedded server has no pages
        links["run in Prefect"] = run
    return Registration(version, {"page of the data gate": GATE_PAGE} | links)


def record_figures(context: JobContext, report: ReportInputs, version: str, holdout: str) -> None:
    """Log losses, measurements, predictions of the holdout (path of its snapshot), pictures and documents."""
    timer, store, run_id, folder = context.timer, context.store, context.run_id, context.folder
    evidence = report.evidence
    series: dict[str, dict[int, float | None]] = {name: {0: value} for name, value in list_figures(evidence).items()}
    series["step_loss"] = dict(enumerate(report.training["step_losses"], start=1))
    series["mcc_per_batch"] = dict(enumerate(evidence["candidate"]["mcc_per_batch"], start=1))
    log_series(timer, store, run_id, series)
    log_table(timer, store, run_id, list_predictions(evidence, read_snapshot(holdout)), PREDICTIONS_FILE)
    log_files(timer, store, run_id, list(report.pictures.values()), "pictures")
    bundle = report.export["bundle"]
    pages = document_run(timer, str(folder), bundle, report, describe_registration(context, version))
    records = [str(path) for path in (folder / "evidence.json", folder / "verdict.json", Path(bundle) / CARD_FILE)]
    log_files(timer, store, run_id, [*records, *pages], "records")
