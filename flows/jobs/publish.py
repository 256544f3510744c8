"""The part of the main job that tells: report and card, the registered version, what MLflow's pages show."""

import contextlib
from pathlib import Path

from flows import steps
from flows.jobs.judging import list_figures
from flows.steps import io_step, step
from tasks.core.files import digest_of
from tasks.evaluation.evidence import Champion
from tasks.evaluation.run_diff import Past
from tasks.registry import tracking as runs
from tasks.registry import versions as registry
from tasks.registry.descriptions import NOTE, describe_run, describe_version, version_tags
from tasks.registry.mlflow_client import Store
from tasks.reporting.charts import draw_charts
from tasks.reporting.report import Told, changes_of, write_documents
from tasks.reporting.tables import list_figures_of_both

draw = step("document", draw_charts)
document = step("document", write_documents)
register = io_step("register", registry.register_bundle)
find_page = io_step("register", runs.find_page)
log_series = io_step("log to MLflow", runs.log_series)
log_files = io_step("log to MLflow", runs.log_files)
tag_run = io_step("log to MLflow", runs.tag_run)


def _recall(store: Store, champion: Champion) -> Past | None:
    """Return what the run of the champion recorded; None where version or run are gone."""
    with contextlib.suppress(registry.UnknownModel):
        return runs.read_past(store, registry.read_tags(store, champion["version"])["run"])
    return None


recall = io_step("find champion", _recall)


def write_report(told: Told, store: Store, folder: Path) -> Told:
    """Draw the pictures and add report, card and metrics to the bundle; return what they tell, pictures included."""
    champion = told.evidence["champion"]
    told = told._replace(
        past=recall(store, champion) if champion else None,
        seconds=dict(steps.seconds.get()),
        pictures=draw(told.training, told.evidence, told.verdict["threshold"], str(folder / "pictures")),
    )
    document(told.export["bundle"], told)
    return told


def publish(told: Told, dataset: str, store: Store, run_id: str) -> str:
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
        "holdout": evidence["holdout"],
        "compared_with": verdict["champion"] or "",
        "verdict_digest": digest_of(verdict),
    }
    page = find_page(store, run_id)
    description = describe_version(evidence, verdict, list_figures_of_both(evidence), changes, page)
    export = told.export
    version = register(store, run_id, export["bundle"], export["digest"], tags, description)
    note = describe_run(evidence, verdict, version, registry.MODEL_NAME, page)
    tag_run(store, run_id, {NOTE: note})
    return version


def record_figures(told: Told, folder: Path, store: Store, run_id: str) -> None:
    """Log losses, measurements, pictures and documents to the MLflow run."""
    evidence = told.evidence
    series: dict[str, dict[int, float | None]] = {name: {0: value} for name, value in list_figures(evidence).items()}
    series["step_loss"] = dict(enumerate(told.training["step_losses"], start=1))
    series["mcc_per_batch"] = dict(enumerate(evidence["candidate"]["mcc_per_batch"], start=1))
    log_series(store, run_id, series)
    log_files(store, run_id, list(told.pictures.values()), "pictures")
    records = [folder / "evidence.json", folder / "verdict.json", folder / "bundle" / "report.html"]
    log_files(store, run_id, [str(path) for path in [*records, folder / "bundle" / "card.md"]], "records")
