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
from flows.commands.check import describe_gate, examine_data, read_data, report_gate
from flows.jobs.approval import await_person, find_waiting
from flows.jobs.judging import weigh
from flows.jobs.prefect_artifacts import show_outcome
from flows.jobs.publish import publish, record_figures, write_report
from flows.notifications import alert_failure, tell_verdict
from flows.steps import io_step, step
from tasks.core import log_format as logs
from tasks.core.errors import DataRefused, Unreachable, VerdictError
from tasks.core.files import digest_of, name_home, read_json, write_json
from tasks.core.policy import NAME
from tasks.core.provenance import git_commit, versions
from tasks.core.settings import Resolved, Settings
from tasks.data.drift import name_drift
from tasks.data.gate import Gate, refuse_unfit
from tasks.data.ingestion import Data
from tasks.data.sources import shown_addresses
from tasks.data.splitting import spare_known, split_snapshot
from tasks.evaluation.evidence import Evidence
from tasks.evaluation.judge import Verdict
from tasks.export.bundle_export import Export, export_bundle, load_export
from tasks.export.subprocess_call import warm_up
from tasks.inference.bundle import Origin
from tasks.registry import audit_log as record
from tasks.registry import promotion as moves
from tasks.registry import tracking as runs
from tasks.registry import versions as registry
from tasks.registry.descriptions import NOTE, describe_failure
from tasks.registry.system_metrics import watched
from tasks.registry.versions import Store
from tasks.reporting.report import Told
from tasks.training.device import resolve_device
from tasks.training.finetune import Training, fine_tune, load_training
from tasks.training.model import LABELS
from tasks.training.pretrained import Encoder, locate_encoder
from tasks.training.soup import SEED_STRIDE
from tasks.training.trainer import Epoch

USUAL = ("default", NAME)  # origins of settings that nobody chose for this run; a run's page need not list them

log = logging.getLogger("tasks.retrain")

# Each step is a plain function of tasks/; the names are those that the summary shows.
read = step("read data", read_data)  # a download has its own patience
find_encoder = io_step("find encoder", locate_encoder)
examine = step("check data", examine_data)
split = step("split", split_snapshot)
export = step("export", export_bundle)
find_profile = io_step("find champion", registry.fetch_profile)
log_dataset = io_step("log to MLflow", runs.log_dataset)
log_series = io_step("log to MLflow", runs.log_series)
log_files = io_step("log to MLflow", runs.log_files)
open_run = io_step("open MLflow run", runs.open_run)
crown = io_step("promote", moves.crown)
challenge = io_step("promote", moves.challenge)


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
        return await_person(waiting, chosen.judge.wait_hours, home)
    store = registry.locate_store(home)
    data = read(chosen.data, home)
    encoder = find_encoder(chosen.finetune.encoder, offline=chosen.data.offline)
    device = resolve_device(chosen.finetune.device)
    job = name_job(chosen, data, encoder, device)
    folder = Path(home) / "runs" / job
    with exclusive(folder):
        if force:
            clear(folder)
        elif finished := load_finished(folder, store):
            return {**finished, "unchanged": True, "seconds": steps.seconds.get()}
        end_dead_runs(store, home, job)
        with recorded_run(store, job, home, chosen, origins, data) as run_id:
            gate = check_data(data, chosen, encoder, folder, store, run_id)
            training = train(data, encoder, chosen, device, folder, store, run_id)
            exported = load_export(str(folder)) or export(
                training["model"], str(folder), origin_of(chosen, data, encoder), str(folder / "validation.parquet")
            )
            logs.bind(digest=exported["digest"])
            carried_out = False
            while not carried_out:  # each further turn: another candidate became champion meanwhile
                evidence, verdict = weigh(exported, data, gate, chosen, device, folder, store, run_id)
                told = Told(training, evidence, verdict, gate, exported, settings_rows(chosen, origins))
                told = write_report(told, store, folder)
                version = publish(told, data["digest"], store, run_id)
                logs.bind(version=version)
                record_figures(told, folder, store, run_id)
                carried_out = promote(verdict, version, evidence, store)
            outcome = summarise(verdict, version, evidence, data, store, exported, run_id)
            write_json(folder / "result.json", outcome)
    tell_verdict(outcome)
    show_outcome(outcome, evidence, store)
    waits = outcome["decision"] == "HOLD" and chosen.judge.wait_for_person
    return await_person(outcome, chosen.judge.wait_hours, home) if waits else outcome


def name_job(settings: Settings, data: Data, encoder: Encoder, device: str) -> str:
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
    return digest_of([recipe, data["digest"], encoder["digest"], device, git_commit()])[:16]


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


def clear(folder: Path) -> None:
    """Forget what a job finished; its lock stays."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def load_finished(folder: Path, store: Store) -> dict[str, Any] | None:
    """Return the outcome of a finished job whose version is still in the registry."""
    path = folder / "result.json"
    if not path.is_file():
        return None
    outcome = read_json(path)
    return outcome if registry.find_version(store, outcome["digest"]) == outcome["version"] else None


def end_dead_runs(store: Store, home: str, job: str) -> None:
    """Close the runs that killed processes of this home left running; this job's own is gone on with."""
    for run_id, other in runs.running_jobs(store, name_home(home)).items():
        folder = Path(home) / "runs" / other
        if other == job or not folder.is_dir():
            continue
        with contextlib.suppress(Timeout), FileLock(folder / "lock", timeout=0):
            runs.close_run(store, run_id, "KILLED")


@contextlib.contextmanager
def recorded_run(
    store: Store, job: str, home: str, settings: Settings, origins: dict[str, str], data: Data
) -> Iterator[str]:
    """Keep an MLflow run open over the block; it ends FINISHED, or FAILED with the reason."""
    rows = settings_rows(settings, origins)
    tags = {f"origin.{key}": origin for key, _, origin in rows if origin not in USUAL} | versions()
    tags |= {
        "host": socket.gethostname(),
        "home": name_home(home),
        "dataset": data["digest"],
        "git_commit": git_commit(),
    }
    run_id = open_run(store, job, {key: value for key, value, _ in rows}, tags)
    places = dict.fromkeys(("train", "holdout", "reported"), settings.data.path) | {"text": (settings.data.text,)}
    for name, addresses in places.items():
        if snapshot := data[name]:  # type: ignore[literal-required]
            log_dataset(store, run_id, name, name, snapshot["digest"], snapshot["path"], shown_addresses(addresses))
    logs.bind(run=run_id, flow_run=str(flow_run.id or ""), dataset=data["digest"], version="", digest="")
    try:
        with watched(store, run_id):
            yield run_id
    except BaseException as error:
        decision = "REFUSED" if isinstance(error, DataRefused) else "FAILED"
        with contextlib.suppress(Unreachable):  # the store may be what failed; the error to tell is the first one
            note = describe_failure(decision, str(error)[:500])
            runs.tag_run(store, run_id, {"verdict": decision, "error": str(error)[:500], NOTE: note})
            runs.close_run(store, run_id, "FAILED")
        raise
    runs.close_run(store, run_id, "FINISHED")


def check_data(data: Data, settings: Settings, encoder: Encoder, folder: Path, store: Store, run_id: str) -> Gate:
    """Let the gate look at the snapshots, keep its report where people look, and stop where it refuses."""
    gate = examine(data, settings, str(folder), encoder["folder"], find_profile(store))
    report_gate(gate)
    reports = [folder / name for name in ("gate.json", "gate.html", "quarantine.parquet")]
    log_files(store, run_id, [str(path) for path in reports if path.is_file()], "gate")
    if gate["reference"]:
        runs.tag_run(store, run_id, {"drift": name_drift(gate["drift"]), "drift_from": gate["reference"]})
    create_markdown_artifact(key="data-gate", markdown=describe_gate(gate), description="What the data gate saw")
    refuse_unfit(gate)
    return gate


def train(
    data: Data, encoder: Encoder, settings: Settings, device: str, folder: Path, store: Store, run_id: str
) -> Training:
    """Split the training rows and fine-tune, unless this job's training is finished already."""
    if finished := load_training(str(folder / "model")):
        return finished
    warm_up()  # what exports later imports its libraries while this process trains
    holdouts = [snapshot["path"] for snapshot in (data["holdout"], data["reported"]) if snapshot]
    chosen = settings.finetune
    train_rows, validation_rows, counts = split(
        data["train"]["path"], holdouts, str(folder), settings.data.validation_share, chosen.seed
    )
    write_json(folder / "split.json", counts)
    text, rows = "", dict(counts)
    if data["text"]:
        known = [train_rows, validation_rows, *holdouts]
        text, left = spare_known(data["text"]["path"], known, str(folder))
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
    store: Store,
    run_id: str,
) -> Training:
    """Fine-tune, and show each epoch in Prefect and MLflow as it ends."""
    bar: Any = create_progress_artifact(
        progress=0.0, key="fine-tuning", description="Share of the epochs that are done"
    )

    epochs, seeds = recipe["epochs"], recipe["seeds"]

    def show(epoch: Epoch) -> None:
        before = (epoch["seed"] - recipe["seed"]) % SEED_STRIDE  # seeds that came first; a restart's takes its place
        done = before * epochs + epoch["epoch"]
        with contextlib.suppress(httpx.HTTPError):  # it shows the work and is none: a server may be away for it
            update_progress_artifact(bar, progress=100 * done / (epochs * seeds))
        figures = {name: value for name, value in epoch.items() if name not in ("epoch", "seed")}
        runs.log_metrics(store, run_id, figures, step=done)  # type: ignore[arg-type]

    return fine_tune(train_rows, validation_rows, encoder, folder, **recipe, on_epoch=show)


fine_tune_visibly = step("fine-tune", _fine_tune_visibly)


def origin_of(settings: Settings, data: Data, encoder: Encoder) -> Origin:
    """Collect what a bundle says about its origin."""
    return Origin(
        labels=LABELS,
        max_length=settings.finetune.max_length,
        encoder=encoder["name"],
        dataset=data["digest"],
        git_commit=git_commit(),
    )


def promote(verdict: Verdict, version: str, evidence: Evidence, store: Store) -> bool:
    """Move the alias that the verdict asks for, last of all.

    Returns:
        False where another champion reigns by now than the one that was compared, so that the verdict is worth nothing.
    """
    if verdict["decision"] == "PROMOTE":
        compared = evidence["champion"]["version"] if evidence["champion"] else None
        reason = "; ".join(verdict["reasons"])[: record.LONGEST]
        try:
            crown(store, version, kind="promote", expected=compared, reason=reason, verdict=digest_of(verdict))
        except moves.ChampionChanged as error:
            log.info("judged again: %s", str(error).partition(";")[0])
            return False
    elif verdict["decision"] == "HOLD":
        challenge(store, version)
    return True


def summarise(
    verdict: Verdict, version: str, evidence: Evidence, data: Data, store: Store, exported: Export, run_id: str
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
        "looks": evidence["looks"],
        "report": str(Path(exported["bundle"]) / "report.html"),
        "store": store["uri"],
        "run": run_id,
        "unchanged": False,
        "seconds": steps.seconds.get(),
    }


def settings_rows(settings: Settings, origins: dict[str, str]) -> list[tuple[str, Any, str]]:
    """Return (key, value, origin) of every setting, as they may be recorded."""
    rows = Resolved(settings, origins).rows()
    shown = {f"data.{name}": shown_addresses([getattr(settings.data, name)]) for name in ("train", "holdout", "text")}
    shown["data.path"] = shown_addresses(settings.data.path)
    return [(key, shown.get(key, value), origin) for key, value, origin in rows]
