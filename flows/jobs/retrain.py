"""The main job: from sentences to a judged, registered and, where the verdict says so, promoted model.

Whatever a job finishes stays in its folder (flows/jobs/job.py). A killed run is started again with the same command
and resumes after the last finished step.
"""

import contextlib
import dataclasses
import logging
from pathlib import Path
from typing import Any, cast

import httpx
from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact

from flows.commands.check import describe_gate, log_gate, read_data, run_gate
from flows.jobs.approval import find_waiting, wait_for_approval
from flows.jobs.dead_runs import close_dead_runs, end_job
from flows.jobs.job import (
    JobContext,
    JobInputs,
    clear,
    load_finished,
    locked,
    name_job,
    name_subject,
    tracked_run,
)
from flows.jobs.judging import evaluate_and_judge
from flows.jobs.prefect_artifacts import find_run_page, name_run, publish_outcome
from flows.jobs.publish import log_files, log_series, publish, record_figures, write_report
from flows.jobs.teacher import locate_teacher, teacher_of
from flows.jobs.training_rows import TrainingRows, split_rows
from flows.jobs.unchanged import digest_inputs, hash_files, record_inputs, report_path
from flows.notifications import alert_failure
from flows.outcome import RESULT_FILE, RetrainOutcome
from flows.steps import Timer, retrying_task, timed_task
from flows.stopwatch import process_age
from tasks.core import log_format
from tasks.core.files import json_digest, write_json
from tasks.core.progress import show_figures
from tasks.core.provenance import git_commit
from tasks.core.settings import Settings
from tasks.core.settings_loader import ResolvedSettings
from tasks.core.signing import require_key
from tasks.data.drift import describe_drifted
from tasks.data.gate import GateReport, raise_if_failed
from tasks.data.token_limit import longest_input
from tasks.evaluation.evidence import Evidence
from tasks.evaluation.judge import Verdict
from tasks.export.bundle_export import EXPORT_RECORD, ExportResult, export_bundle, load_export
from tasks.export.encoder_check import check_encoder
from tasks.export.subprocess_call import start_forkserver
from tasks.inference.bundle import MODEL_NAME, Origin
from tasks.registry import promotion, tracking
from tasks.registry.audit_log import MAX_REASON_CHARS
from tasks.registry.champion_profile import fetch_profile
from tasks.registry.mlflow_client import PAGE_MODE
from tasks.registry.store import MlflowStore, locate_store
from tasks.reporting.report import ReportInputs
from tasks.training.device import resolve_device
from tasks.training.finetune import TRAINING_FILE, TrainingResult, fine_tune, load_training
from tasks.training.model import LABELS
from tasks.training.pretrained import locate_encoder
from tasks.training.recipe import TrainingRecipe, resolve_recipe
from tasks.training.seed_runs import SEED_STRIDE
from tasks.training.trainer import EpochRecord
from tasks.training.training_job import Teacher

DECIDED = {"approve": "approved", "reject": "rejected"}  # by a person
MAX_WHY_CHARS = 500  # of the reasons that a run is tagged with

log = logging.getLogger("tasks.retrain")

# Each step is a plain function of tasks/; the names are those that the summary shows.
read = timed_task("read data", read_data)  # downloads have retries of their own
find_encoder = retrying_task("find encoder", locate_encoder)
examine = timed_task("check data", run_gate)
find_teacher = retrying_task("find teacher", locate_teacher)
try_encoder = timed_task("check encoder", check_encoder)
export = timed_task("export", export_bundle)
find_profile = retrying_task("find champion", fetch_profile)
promote_version = retrying_task("promote", promotion.promote)
set_challenger = retrying_task("promote", promotion.set_challenger)


@flow(name="retrain", result_serializer="json", persist_result=True, on_failure=[alert_failure])
def retrain(settings: dict[str, Any], origins: dict[str, str], home: str, force: bool = False) -> RetrainOutcome:
    """Read, check, split, fine-tune, export, measure, judge, register and promote; return what the command prints.

    Args:
        settings: resolved settings, as plain values.
        origins: the layer each dotted setting came from.
        home: folder of the stores.
        force: start over even where an equal job is finished or half done.

    Raises:
        UsageError: if data, encoder or teacher are not there, the encoder cannot be trained or exported, or a signature
            is required and there is no key.
        DataRejected: if the gate rejects the data.
        VerdictError: if a step fails; everything finished stays for the next run.
    """
    chosen = Settings.model_validate(settings)
    require_key()
    if waiting := find_waiting(home):
        return name_after(wait_for_approval(waiting, chosen.judge.wait_hours, home), chosen)
    timer, store = Timer(), locate_store(home)
    files = hash_files(chosen.data, home)
    data = read(timer, chosen.data, home)
    encoder = find_encoder(timer, chosen.finetune.encoder, offline=chosen.data.offline)
    teacher = find_teacher(timer, chosen, data, home) if chosen.finetune.teacher else None
    inputs = JobInputs(data, encoder, teacher, resolve_device(chosen.finetune.device))
    name_run(name_subject(chosen, data["digest"]))
    job = name_job(chosen, inputs)
    folder, known = Path(home) / "runs" / job, digest_inputs(chosen, files, encoder)
    with locked(folder):
        if force:
            clear(folder)
        close_dead_runs(store, home, job)
        if finished := load_finished(folder, store):
            record_inputs(folder, known, files)
            return dataclasses.replace(name_after(finished, chosen), seconds=timer.seconds)
        (folder / RESULT_FILE).unlink(missing_ok=True)  # of a version that was deleted
        if not (folder / EXPORT_RECORD).is_file():
            start_forkserver()  # the export's process imports its libraries while the gate runs on another core
        with tracked_run(ResolvedSettings(chosen, origins), store, home, job, inputs, timer) as context:
            gate = check_data(context)
            if not (folder / "model" / TRAINING_FILE).is_file():
                try_encoder(timer, encoder, chosen.finetune.max_length, home, chosen.finetune.allow_new_weights)
            training = train(context)
            exported = export_model(context)
            report, version = judge_and_register(context, gate, training, exported)
            outcome = outcome_of(context, report, version, data["digest"])
            record_outcome(context, outcome)
        end_job(store, outcome)
        record_inputs(folder, known, files)
    publish_outcome(name_after(outcome, chosen), report.evidence, store)
    waits = outcome.decision == "HOLD" and chosen.judge.wait_for_person
    return name_after(wait_for_approval(outcome, chosen.judge.wait_hours, home), chosen) if waits else outcome


def name_after(outcome: RetrainOutcome, settings: Settings) -> RetrainOutcome:
    """Name the flow run after its outcome, as the MLflow run is; return the outcome."""
    decision = DECIDED[outcome.decided["kind"]] if outcome.decided else outcome.decision
    name_run(f"{MODEL_NAME} {outcome.version} {decision}, {name_subject(settings, outcome.dataset)}")
    return outcome


def check_data(context: JobContext) -> GateReport:
    """Run the gate on the snapshots and keep its report in MLflow and Prefect.

    Raises:
        DataRejected: if the gate rejects the data.
    """
    timer, store, folder = context.timer, context.store, context.folder
    data, encoder = context.inputs.data, context.inputs.encoder["folder"]
    gate = examine(timer, data, context.settings, str(folder), encoder, find_profile(timer, store))
    log_gate(gate)
    reports = [folder / name for name in ("gate.json", "gate.html", "quarantine.parquet", "quarantine.csv")]
    log_files(timer, store, context.run_id, [str(path) for path in reports if path.is_file()], "gate")
    if gate["reference"]:
        drift = {"drift": describe_drifted(gate["drift"]), "drift_from": gate["reference"]}
        tracking.tag_run(store, context.run_id, drift)
    page = find_run_page(store, context.run_id)
    markdown = describe_gate(gate, page and f"{page}/artifacts/gate/gate.html{PAGE_MODE}")
    create_markdown_artifact(key="data-gate", markdown=markdown, description="Result of the data gate")
    raise_if_failed(gate)
    return gate


def train(context: JobContext) -> TrainingResult:
    """Split the training rows and fine-tune, unless this job's training is finished already."""
    folder, chosen = context.folder, context.settings.finetune
    if finished := load_training(str(folder / "model")):
        return finished
    rows = split_rows(context.timer, context.inputs.data, context.settings, folder)
    write_json(folder / "split.json", rows.split)
    series = {f"rows_{name}": {0: cast(int, count)} for name, count in {**rows.split, **rows.text_counts}.items()}
    log_series(context.timer, context.store, context.run_id, series)
    recipe = resolve_recipe(chosen, context.inputs.encoder["folder"])
    model = str(folder / "model")
    return fine_tune_visibly(
        context.timer, rows, recipe, teacher_of(context.inputs.teacher), model, context.store, context.run_id
    )


def _fine_tune_visibly(
    rows: TrainingRows,
    recipe: TrainingRecipe,
    teacher: Teacher | None,
    folder: str,
    store: MlflowStore,
    run_id: str,
) -> TrainingResult:
    """Fine-tune; each epoch is shown in Prefect and logged to MLflow as it ends."""
    bar: Any = create_progress_artifact(progress=0.0, key="fine-tuning", description="Finished epochs, in percent")
    finished: dict[int, int] = {}  # epochs, by number of the seed

    def show(epoch: EpochRecord) -> None:
        show_figures(_describe_epoch(epoch, recipe.epochs))
        before = (epoch["seed"] - recipe.seed) % SEED_STRIDE  # seeds before this one; a restart adds k * SEED_STRIDE
        finished[before] = epoch["epoch"]
        done = min(finished) * recipe.epochs + sum(finished.values())  # seeds may be trained side by side
        with contextlib.suppress(httpx.HTTPError):  # best effort: training continues while the server is down
            update_progress_artifact(bar, progress=100 * done / (recipe.epochs * recipe.seeds))
        figures = {name: value for name, value in epoch.items() if name not in ("epoch", "seed")}
        step = before * recipe.epochs + epoch["epoch"]
        tracking.log_metrics(store, run_id, figures, step=step)  # type: ignore[arg-type]

    train, validation, text, holdouts = rows.train, rows.validation, rows.text, rows.holdouts
    return fine_tune(train, validation, recipe, folder, text=text, teacher=teacher, holdouts=holdouts, on_epoch=show)


def _describe_epoch(epoch: EpochRecord, epochs: int) -> str:
    loss = "NaN" if epoch["train_loss"] is None else f"{epoch['train_loss']:.4f}"
    return (
        f"epoch {epoch['epoch']} of {epochs}: loss {loss}, accuracy {epoch['train_accuracy']:.3f}, "
        f"validation MCC {epoch['validation_mcc']:.3f}"
    )


fine_tune_visibly = timed_task("fine-tune", _fine_tune_visibly)


def export_model(context: JobContext) -> ExportResult:
    """Export the model to ONNX, unless this job's export is finished already."""
    folder, encoder = context.folder, context.inputs.encoder
    origin = Origin(
        labels=LABELS,
        max_length=longest_input(encoder["folder"], context.settings.finetune.max_length),
        encoder=encoder["name"],
        dataset=context.inputs.data["digest"],
        git_commit=git_commit(),
    )
    exported = load_export(str(folder)) or export(
        context.timer,
        str(folder / "model"),
        str(folder),
        origin,
        str(folder / "validation.parquet"),
        context.inputs.device,
        context.settings.export.decision_threshold == "validation",
    )
    log_format.bind_context(digest=exported["digest"])
    return exported


def judge_and_register(
    context: JobContext, gate: GateReport, training: TrainingResult, exported: ExportResult
) -> tuple[ReportInputs, str]:
    """Measure, judge, document, register and carry the verdict out; repeat if the champion changed meanwhile.

    Returns:
        What the report of the last verdict is made of, and the registered version.
    """
    data = context.inputs.data
    while True:
        evidence, verdict = evaluate_and_judge(context, exported, gate, training)
        report = ReportInputs(training, evidence, verdict, gate, exported, context.setting_rows, errors=())
        report = write_report(context, report)
        version = publish(context, report, data["digest"])
        log_format.bind_context(version=version)
        record_figures(context, report, version, data["holdout"]["path"])
        if carry_out(context, verdict, version, evidence):
            return report, version


def carry_out(context: JobContext, verdict: Verdict, version: str, evidence: Evidence) -> bool:
    """Move the alias as the verdict says: the last change of a job in the registry.

    Returns:
        False where the champion is no longer the one that was compared, so that the verdict is void.
    """
    if verdict["decision"] == "PROMOTE":
        compared = evidence["champion"]["version"] if evidence["champion"] else None
        reason = "; ".join(verdict["reasons"])[:MAX_REASON_CHARS]
        digest = json_digest(verdict)
        try:
            promote_version(
                context.timer, context.store, version, kind="promote", expected=compared, reason=reason, verdict=digest
            )
        except promotion.ChampionChanged as error:
            log.info("judged again: %s", str(error).partition(";")[0])
            return False
    elif verdict["decision"] == "HOLD":
        set_challenger(context.timer, context.store, version)
    return True


def outcome_of(context: JobContext, report: ReportInputs, version: str, dataset: str) -> RetrainOutcome:
    """Return the outcome of a job whose verdict was carried out."""
    evidence, verdict = report.evidence, report.verdict
    measured = evidence["candidate"]
    return RetrainOutcome(
        decision=verdict["decision"],
        rules=verdict["rules"],
        reasons=verdict["reasons"],
        version=version,
        mcc=measured["interval"]["mcc"],
        mcc_low=measured["interval"]["low"],
        mcc_high=measured["interval"]["high"],
        provider=measured["provider"],
        variant=measured["variant"],
        mcc_by_variant={name: other["interval"]["mcc"] for name, other in evidence["variants"].items()},
        holdout_rows=measured["rows"],
        dataset=dataset,
        digest=report.export["digest"],
        threshold=verdict["threshold"],
        champion_before=verdict["champion"],
        champion_mcc=verdict["champion_mcc"],
        mcc_difference=verdict["numbers"]["difference"],
        holdout_uses=evidence["holdout_uses"],
        report=report_path(context.folder),
        store=context.store["uri"],
        run=context.run_id,
        seconds=context.timer.seconds,
    )


def record_outcome(context: JobContext, outcome: RetrainOutcome) -> None:
    """Log outcome and seconds to the MLflow run, then write result.json, which marks the job as finished."""
    why = "; ".join(outcome.reasons)[:MAX_WHY_CHARS]
    name = f"{MODEL_NAME} {outcome.version} {outcome.decision}, {context.subject}"
    tags = {"verdict": outcome.decision, "version": outcome.version, "why": why, tracking.RUN_NAME: name}
    tracking.tag_run(context.store, context.run_id, tags)
    seconds = {"before the flow": context.timer.process_age, **context.timer.seconds, "so far": process_age()}
    tracking.log_metrics(context.store, context.run_id, {f"seconds/{name}": taken for name, taken in seconds.items()})
    write_json(context.folder / RESULT_FILE, outcome.to_json())
