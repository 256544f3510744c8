"""The main job: from sentences to a judged, registered and, where it deserves it, promoted model.

A job is named by everything that decides its result: data, encoder, recipe, policy, device and code. What it finishes
lies in its own folder under runs/, each piece whole or absent, so a killed run is simply run again: it goes on after
the last finished piece. result.json comes last and says that nothing is left to do.
"""

import contextlib
import logging
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
from filelock import FileLock, Timeout
from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.runtime import flow_run

from flows import steps
from flows.commands.check import describe_gate, read_data, report_gate, run_gate
from flows.jobs.approval import find_waiting, wait_for_approval
from flows.jobs.judging import evaluate_and_judge
from flows.jobs.prefect_artifacts import publish_outcome
from flows.jobs.publish import publish, record_figures, write_report
from flows.notifications import alert_failure, notify_verdict
from flows.steps import retrying_task, timed_task
from tasks.core import log_format as logs
from tasks.core.errors import DataRejected, UnreachableError, VerdictError
from tasks.core.files import home_id, json_digest, read_json, write_json
from tasks.core.policy import POLICY_FILE
from tasks.core.provenance import git_commit, library_versions
from tasks.core.settings import ResolvedSettings, Settings
from tasks.data.drift import list_drifted
from tasks.data.gate import GateReport, raise_if_failed
from tasks.data.ingestion import Dataset
from tasks.data.sources import shown_addresses
from tasks.data.splitting import drop_labelled, split_snapshot
from tasks.evaluation.evidence import Evidence
from tasks.evaluation.judge import Verdict
from tasks.export.bundle_export import ExportResult, export_bundle, load_export
from tasks.export.subprocess_call import start_forkserver
from tasks.inference.bundle import Origin
from tasks.registry import audit_log as record
from tasks.registry import promotion as moves
from tasks.registry import tracking as runs
from tasks.registry import versions as registry
from tasks.registry.descriptions import NOTE, describe_failure
from tasks.registry.system_metrics import record_system_metrics
from tasks.registry.versions import MlflowStore
from tasks.reporting.report import ReportInputs
from tasks.training.device import resolve_device
from tasks.training.finetune import TrainingResult, fine_tune, load_training
from tasks.training.model import LABELS
from tasks.training.pretrained import Encoder, locate_encoder
from tasks.training.soup import SEED_STRIDE
from tasks.training.trainer import EpochRecord

DEFAULT_POLICY_NAMES = (
    "default",
    POLICY_FILE,
)  # origins of settings that nobody chose for this run; a run's page need not list them

log = logging.getLogger("tasks.retrain")

# Each step is a plain function of tasks/; the names are those that the summary shows.
read = timed_task("read data", read_data)  # a download has its own patience
find_encoder = retrying_task("find encoder", locate_encoder)
examine = timed_task("check data", run_gate)
split = timed_task("split", split_snapshot)
export = timed_task("export", export_bundle)
find_profile = retrying_task("find champion", registry.fetch_profile)
log_dataset = retrying_task("log to MLflow", runs.log_dataset)
log_series = retrying_task("log to MLflow", runs.log_series)
log_files = retrying_task("log to MLflow", runs.log_files)
open_run = retrying_task("open MLflow run", runs.open_run)
promote_version = retrying_task("promote", moves.promote)
set_challenger = retrying_task("promote", moves.set_challenger)


@flow(name="retrain", result_serializer="json", persist_result=True, on_failure=[alert_failure])
def retrain(settings: dict[str, Any], origins: dict[str, str], home: str, force: bool = False) -> dict[str, Any]:
    """Read, check, split, fine-tune, export, measure, judge, register and promote; return what the command prints.

    Args:
        settings: resolved settings, as plain values.
        origins: the layer each dotted setting came from.
        home: folder of the stores.
        force: start over even where an equal job is finished or half done.

    Raises:
        WrongUsage: if data or encoder are not there.
        DataRefused: if the gate refuses the data.
        VerdictError: if a step fails; everything finished stays for the next run.
    """
    steps.seconds.set({})
    chosen = Settings.model_validate(settings)
    if waiting := find_waiting(home):
        return wait_for_approval(waiting, chosen.judge.wait_hours, home)
    store = registry.locate_store(home)
    data = read(chosen.data, home)
    encoder = find_encoder(chosen.finetune.encoder, offline=chosen.data.offline)
    device = resolve_device(chosen.finetune.device)
    job = name_job(chosen, data, encoder, device)
    folder = Path(home) / "runs" / job
    with exclusive(folder):
        if force:
            remove_job_folder(folder)
        elif finished := load_finished(folder, store):
            return {**finished, "unchanged": True, "seconds": steps.seconds.get()}
        end_dead_runs(store, home, job)
        with tracked_run(store, job, home, chosen, origins, data) as run_id:
            gate = check_data(data, chosen, encoder, folder, store, run_id)
            training = train(data, encoder, chosen, device, folder, store, run_id)
            exported = load_export(str(folder)) or export(
                training["model"], str(folder), origin_of(chosen, data, encoder), str(folder / "validation.parquet")
            )
            logs.bind_context(digest=exported["digest"])
            carried_out = False
            while not carried_out:  # each further turn: another candidate became champion meanwhile
                evidence, verdict = evaluate_and_judge(exported, data, gate, chosen, device, folder, store, run_id)
                told = ReportInputs(training, evidence, verdict, gate, exported, settings_rows(chosen, origins))
                told = write_report(told, store, folder)
                version = publish(told, data["digest"], store, run_id)
                logs.bind_context(version=version)
                record_figures(told, folder, store, run_id)
                carried_out = promote(verdict, version, evidence, store)
            outcome = summarise(verdict, version, evidence, data, store, exported, run_id)
            write_json(folder / "result.json", outcome)
    notify_verdict(outcome)
    publish_outcome(outcome, evidence, store)
    waits = outcome["decision"] == "HOLD" and chosen.judge.wait_for_person
    return wait_for_approval(outcome, chosen.judge.wait_hours, home) if waits else outcome


def name_job(settings: Settings, data: Dataset, encoder: Encoder, device: str) -> str:
    """Name a job by what decides its result; where the data or encoder lie does not."""
    recipe = settings.model_dump(
        mode="json",
        exclude={
            "data": {"path", "train", "holdout", "text", "columns", "labels", "offline"},
            "finetune": {"encoder", "device", "checkpoint_seconds"},
            # Where the policy's file lies; what it says is there by each number. Who waits for whom changes no result.
            "judge": {"policy", "wait_for_person", "wait_hours"},
            "watch": True,
        },
    )
    return json_digest([recipe, data["digest"], encoder["digest"], device, git_commit()])[:16]


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the job's lock; the system drops it when its holder dies.

    Raises:
        VerdictError: if another process works on the same job.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout as error:
        raise VerdictError(f"the same job is running already in {folder}; wait for it, then: verdict status") from error


def remove_job_folder(folder: Path) -> None:
    """Forget what a job finished; its lock stays."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def load_finished(folder: Path, store: MlflowStore) -> dict[str, Any] | None:
    """Return the outcome of a finished job whose version is still in the registry."""
    path = folder / "result.json"
    if not path.is_file():
        return None
    outcome = read_json(path)
    return outcome if registry.find_version(store, outcome["digest"]) == outcome["version"] else None


def end_dead_runs(store: MlflowStore, home: str, job: str) -> None:
    """Close the runs that killed processes of this home left running; this job's own is gone on with."""
    for run_id, other in runs.running_jobs(store, home_id(home)).items():
        folder = Path(home) / "runs" / other
        if other == job or not folder.is_dir():
            continue
        with contextlib.suppress(Timeout), FileLock(folder / "lock", timeout=0):
            runs.close_run(store, run_id, "KILLED")


@contextlib.contextmanager
def tracked_run(
    store: MlflowStore, job: str, home: str, settings: Settings, origins: dict[str, str], data: Dataset
) -> Iterator[str]:
    """Keep an MLflow run open over the block; it ends FINISHED, or FAILED with the reason."""
    rows = settings_rows(settings, origins)
    tags = {
        f"origin.{key}": origin for key, _, origin in rows if origin not in DEFAULT_POLICY_NAMES
    } | library_versions()
    tags |= {
        "host": socket.gethostname(),
        "home": home_id(home),
        "dataset": data["digest"],
        "git_commit": git_commit(),
    }
    run_id = open_run(store, job, {key: value for key, value, _ in rows}, tags)
    places = dict.fromkeys(("train", "holdout", "secondary"), settings.data.path) | {"text": (settings.data.text,)}
    for name, addresses in places.items():
        if snapshot := data[name]:  # type: ignore[literal-required]
            log_dataset(store, run_id, name, name, snapshot["digest"], snapshot["path"], shown_addresses(addresses))
    logs.bind_context(run=run_id, flow_run=str(flow_run.id or ""), dataset=data["digest"], version="", digest="")
    try:
        with record_system_metrics(store, run_id):
            yield run_id
    except BaseException as error:
        decision = "REFUSED" if isinstance(error, DataRejected) else "FAILED"
        with contextlib.suppress(UnreachableError):  # the store may be what failed; the error to tell is the first one
            note = describe_failure(decision, str(error)[:500])
            runs.tag_run(store, run_id, {"verdict": decision, "error": str(error)[:500], NOTE: note})
            runs.close_run(store, run_id, "FAILED")
        raise
    runs.close_run(store, run_id, "FINISHED")


def check_data(
    data: Dataset, settings: Settings, encoder: Encoder, folder: Path, store: MlflowStore, run_id: str
) -> GateReport:
    """Let the gate look at the snapshots, keep its report where people look, and stop where it refuses."""
    gate = examine(data, settings, str(folder), encoder["folder"], find_profile(store))
    report_gate(gate)
    reports = [folder / name for name in ("gate.json", "gate.html", "quarantine.parquet")]
    log_files(store, run_id, [str(path) for path in reports if path.is_file()], "gate")
    if gate["reference"]:
        runs.tag_run(store, run_id, {"drift": list_drifted(gate["drift"]), "drift_from": gate["reference"]})
    create_markdown_artifact(key="data-gate", markdown=describe_gate(gate), description="What the data gate saw")
    raise_if_failed(gate)
    return gate


def train(
    data: Dataset, encoder: Encoder, settings: Settings, device: str, folder: Path, store: MlflowStore, run_id: str
) -> TrainingResult:
    """Split the training rows and fine-tune, unless this job's training is finished already."""
    if finished := load_training(str(folder / "model")):
        return finished
    start_forkserver()  # what exports later imports its libraries while this process trains
    holdouts = [snapshot["path"] for snapshot in (data["holdout"], data["secondary"]) if snapshot]
    chosen = settings.finetune
    train_rows, validation_rows, counts = split(
        data["train"]["path"], holdouts, str(folder), settings.data.validation_share, chosen.seed
    )
    write_json(folder / "split.json", counts)
    text, rows = "", dict(counts)
    if data["text"]:
        known = [train_rows, validation_rows, *holdouts]
        text, left = drop_labelled(data["text"]["path"], known, str(folder))
        rows |= {"text": data["text"]["kept"] - left, "text_left_out": left}
    log_series(store, run_id, {f"rows_{name}": {0: cast(int, count)} for name, count in rows.items()})
    return fine_tune_visibly(
        train_rows,
        validation_rows,
        encoder["folder"],
        str(folder / "model"),
        {**chosen.model_dump(exclude={"encoder"}), "text": text, "device": device},
        store,
        run_id,
    )


def _fine_tune_visibly(
    train_rows: str,
    validation_rows: str,
    encoder: str,
    folder: str,
    recipe: dict[str, Any],
    store: MlflowStore,
    run_id: str,
) -> TrainingResult:
    """Fine-tune, and show each epoch in Prefect and MLflow as it ends."""
    bar: Any = create_progress_artifact(
        progress=0.0, key="fine-tuning", description="Share of the epochs that are done"
    )

    epochs, seeds = recipe["epochs"], recipe["seeds"]

    def show(epoch: EpochRecord) -> None:
        before = (epoch["seed"] - recipe["seed"]) % SEED_STRIDE  # seeds that came first; a restart's takes its place
        done = before * epochs + epoch["epoch"]
        with contextlib.suppress(httpx.HTTPError):  # it shows the work and is none: a server may be away for it
            update_progress_artifact(bar, progress=100 * done / (epochs * seeds))
        figures = {name: value for name, value in epoch.items() if name not in ("epoch", "seed")}
        runs.log_metrics(store, run_id, figures, step=done)  # type: ignore[arg-type]

    return fine_tune(train_rows, validation_rows, encoder, folder, **recipe, on_epoch=show)


fine_tune_visibly = timed_task("fine-tune", _fine_tune_visibly)


def origin_of(settings: Settings, data: Dataset, encoder: Encoder) -> Origin:
    """Collect what a bundle says about its origin."""
    return Origin(
        labels=LABELS,
        max_length=settings.finetune.max_length,
        encoder=encoder["name"],
        dataset=data["digest"],
        git_commit=git_commit(),
    )


def promote(verdict: Verdict, version: str, evidence: Evidence, store: MlflowStore) -> bool:
    """Move the alias that the verdict asks for, last of all.

    Returns:
        False where another champion reigns by now than the one that was compared, so that the verdict is worth nothing.
    """
    if verdict["decision"] == "PROMOTE":
        compared = evidence["champion"]["version"] if evidence["champion"] else None
        reason = "; ".join(verdict["reasons"])[: record.MAX_REASON_CHARS]
        try:
            promote_version(
                store, version, kind="promote", expected=compared, reason=reason, verdict=json_digest(verdict)
            )
        except moves.ChampionChanged as error:
            log.info("judged again: %s", str(error).partition(";")[0])
            return False
    elif verdict["decision"] == "HOLD":
        set_challenger(store, version)
    return True


def summarise(
    verdict: Verdict,
    version: str,
    evidence: Evidence,
    data: Dataset,
    store: MlflowStore,
    exported: ExportResult,
    run_id: str,
) -> dict[str, Any]:
    """Collect what the command prints."""
    measured = evidence["candidate"]
    why = "; ".join(verdict["reasons"])[:500]
    runs.tag_run(store, run_id, {"verdict": verdict["decision"], "version": version, "why": why})
    return {
        "decision": verdict["decision"],
        "rules": verdict["rules"],
        "reasons": verdict["reasons"],
        "version": version,
        "mcc": measured["interval"]["mcc"],
        "mcc_low": measured["interval"]["low"],
        "mcc_high": measured["interval"]["high"],
        "provider": measured["provider"],
        "variant": measured["variant"],
        "mcc_by_variant": {name: other["interval"]["mcc"] for name, other in evidence["variants"].items()},
        "holdout_rows": measured["rows"],
        "dataset": data["digest"],
        "digest": exported["digest"],
        "threshold": verdict["threshold"],
        "champion_before": verdict["champion"],
        "champion_mcc": verdict["champion_mcc"],
        "mcc_difference": verdict["numbers"]["difference"],
        "holdout_uses": evidence["holdout_uses"],
        "report": str(Path(exported["bundle"]) / "report.html"),
        "store": store["uri"],
        "run": run_id,
        "unchanged": False,
        "seconds": steps.seconds.get(),
    }


def settings_rows(settings: Settings, origins: dict[str, str]) -> list[tuple[str, Any, str]]:
    """Return (key, value, origin) of every setting, as they may be recorded."""
    rows = ResolvedSettings(settings, origins).rows()
    shown = {f"data.{name}": shown_addresses([getattr(settings.data, name)]) for name in ("train", "holdout", "text")}
    shown["data.path"] = shown_addresses(settings.data.path)
    return [(key, shown.get(key, value), origin) for key, value, origin in rows]
