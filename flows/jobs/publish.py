"""The part of the main job that tells: report and card, the registered version, what MLflow's pages show."""

import contextlib
from pathlib import Path

from flows import steps
from flows.jobs.judging import list_figures
from flows.steps import retrying_task, timed_task
from tasks.core.files import json_digest
from tasks.evaluation.evidence import ChampionEvidence
from tasks.evaluation.run_diff import RunRecord
from tasks.registry import tracking as runs
from tasks.registry import versions as registry
from tasks.registry.descriptions import NOTE, describe_run, describe_version, version_tags
from tasks.registry.mlflow_client import MlflowStore
from tasks.reporting.charts import draw_charts
from tasks.reporting.report import ReportInputs, changes_of, write_documents
from tasks.reporting.tables import compare_figures

draw = timed_task("document", draw_charts)
document = timed_task("document", write_documents)
register = retrying_task("register", registry.register_bundle)
find_page = retrying_task("register", runs.find_page)
log_series = retrying_task("log to MLflow", runs.log_series)
log_files = retrying_task("log to MLflow", runs.log_files)
tag_run = retrying_task("log to MLflow", runs.tag_run)


def _recall(store: MlflowStore, champion: ChampionEvidence) -> RunRecord | None:
    """Return what the run of the champion recorded; None where version or run are gone."""
    with contextlib.suppress(registry.UnknownModel):
        return runs.read_run_record(store, registry.read_tags(store, champion["version"])["run"])
    return None


recall = retrying_task("find champion", _recall)


def write_report(told: ReportInputs, store: MlflowStore, folder: Path) -> ReportInputs:
    """Draw the pictures and add report, card and metrics to the bundle; return what they tell, pictures included."""
    champion = told.evidence["champion"]
    told = told._replace(
        previous_run=recall(store, champion) if champion else None,
        seconds=dict(steps.seconds.get()),
        pictures=draw(told.training, told.evidence, told.verdict["threshold"], str(folder / "pictures")),
    )
    document(told.export["bundle"], told)
    return told


def publish(told: ReportInputs, dataset: str, store: MlflowStore, run_id: str) -> str:
    """Register the bundle with its verdict; return its version."""
    evidence, verdict = told.evidence, told.verdict
    changes = changes_of(told, dataset)
    measured = evidence["candidate"]
    tags = version_tags(evidence, verdict, changes) | {
        "reasons": "; ".join(verdict["reasons"]),
        "mcc": f"{measured['interval']['mcc']:.6f}",
        "mcc_low": f"{measured['interval']['low']:.6f}",
        "mcc_high": f"{measured['interval']['high']:.6f}",
        "provider": measured["provider"],
        "variant": measured["variant"],
        "dataset": dataset,
        "holdout": evidence["holdout_digest"],
        "compared_with": verdict["champion"] or "",
        "verdict_digest": json_digest(verdict),
    }
    page = find_page(store, run_id)
    description = describe_version(evidence, verdict, compare_figures(evidence), changes, page)
    export = told.export
    version = register(store, run_id, export["bundle"], export["digest"], tags, description)
    note = describe_run(evidence, verdict, version, registry.MODEL_NAME, page)
    tag_run(store, run_id, {NOTE: note})
    return version


def record_figures(told: ReportInputs, folder: Path, store: MlflowStore, run_id: str) -> None:
    """Log losses, measurements, pictures and documents to the MLflow run."""
    evidence = told.evidence
    series: dict[str, dict[int, float | None]] = {name: {0: value} for name, value in list_figures(evidence).items()}
    series["step_loss"] = dict(enumerate(told.training["step_losses"], start=1))
    series["mcc_per_batch"] = dict(enumerate(evidence["candidate"]["mcc_per_batch"], start=1))
    log_series(store, run_id, series)
    log_files(store, run_id, list(told.pictures.values()), "pictures")
    records = [folder / "evidence.json", folder / "verdict.json", folder / "bundle" / "report.html"]
    log_files(store, run_id, [str(path) for path in [*records, folder / "bundle" / "card.md"]], "records")
