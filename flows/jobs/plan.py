"""Says what a retraining run would do and why, and starts nothing.

Data are read and examined as in a run, in a temporary folder; downloads alone stay in the stores' folder. The run of
the champion says what was different then.
"""

import tempfile
from pathlib import Path
from typing import Any, Literal, TypedDict

from flows.commands.check import read_data, run_gate, summarise
from flows.jobs.data_changes import compare_rows
from flows.jobs.job import ENCODER_TAG, JobInputs, load_finished, name_job, recordable_rows
from flows.jobs.teacher import locate_teacher
from tasks.core.folder_locks import is_locked
from tasks.core.printable import counted
from tasks.core.provenance import git_commit, library_versions
from tasks.core.settings_loader import ResolvedSettings
from tasks.data.row_changes import RowChanges
from tasks.evaluation.run_diff import CODE_TAG, DATA_TAG, RunRecord, diff_runs
from tasks.export.bundle_export import EXPORT_RECORD
from tasks.inference.bundle import CHAMPION
from tasks.registry import lookup, tracking
from tasks.registry.champion_profile import fetch_profile
from tasks.registry.store import MlflowStore, is_uninitialised, locate_store
from tasks.training.device import resolve_device
from tasks.training.finetune import TRAINING_FILE
from tasks.training.pretrained import locate_encoder

# What an interrupted job has in its folder, in the order in which it is made.
FINISHED_STEPS = {"training": f"model/{TRAINING_FILE}", "export": EXPORT_RECORD, "measurement": "evidence.json"}


class RetrainPlan(TypedDict):
    """What `verdict retrain` would do with the same arguments.

    `changes` lists what differs from the champion's run (name, value then, value now), None where there is no champion
    or its run was deleted; `rows` what differs in its data, by role, None where its snapshot is gone; `finished` the
    steps of an interrupted job that would not be repeated; `gate` what `verdict check` prints.
    """

    action: Literal["train", "resume", "nothing", "refused", "busy"]
    why: str
    job: str
    dataset: str
    encoder: str
    device: str
    finished: list[str]
    champion: dict[str, Any] | None
    changes: list[dict[str, str]] | None
    rows: dict[str, RowChanges | None]
    gate: dict[str, Any]


def plan_retraining(resolved: ResolvedSettings, home: str, force: bool) -> RetrainPlan:
    """Return what a run with these settings would do.

    Args:
        resolved: settings and the layer each came from.
        home: folder of the stores.
        force: as --force: finished work counts for nothing.

    Raises:
        UsageError: if data or encoder are not there.
        UnreachableError: if a server or the store does not answer.
        DataRejected: if a file does not have the digest of its address.
    """
    settings, store = resolved.settings, locate_store(home)
    device = resolve_device(settings.finetune.device)
    encoder = locate_encoder(settings.finetune.encoder, offline=settings.data.offline)
    with tempfile.TemporaryDirectory(prefix="verdict-plan-") as scratch:
        data = read_data(settings.data, home, scratch)
        gate = summarise(run_gate(data, settings, scratch, encoder["folder"], fetch_profile(store)))
        del gate["report"]  # goes with the folder
        teacher = locate_teacher(settings, data, home) if settings.finetune.teacher else None
        inputs = JobInputs(data, encoder, teacher, device)
        job = name_job(settings, inputs)
        champion, run = _read_champion(store)
        plan = RetrainPlan(
            action="train",
            why="",
            job=job,
            dataset=data["digest"],
            encoder=encoder["name"],
            device=device,
            finished=[],
            champion=champion,
            changes=None if run is None else _list_changes(run, resolved, inputs),
            rows=compare_rows(store, champion["run"], data, home) if champion and run else {},
            gate=gate,
        )
    return _decide(plan, Path(home) / "runs" / job, store, force)


def _decide(plan: RetrainPlan, folder: Path, store: MlflowStore, force: bool) -> RetrainPlan:
    """Fill in what would be done, and why."""
    done = [] if force else [name for name, path in FINISHED_STEPS.items() if (folder / path).is_file()]
    finished = None if force or is_uninitialised(store) else load_finished(folder, store)
    if not plan["gate"]["passed"]:
        return {**plan, "action": "refused", "why": "the gate refuses the data"}
    if is_locked(folder):
        return {**plan, "action": "busy", "why": f"the same job is running already in {folder}"}
    if finished:
        why = f"version {finished.version} was made of the same data, settings, encoder and code: {finished.decision}"
        return {**plan, "action": "nothing", "why": why}
    if done or (not force and (folder / "model-checkpoints").is_dir()):
        return {**plan, "action": "resume", "why": f"job {plan['job']} was stopped", "finished": done}
    return {**plan, "why": _why_train(plan, force)}


def _why_train(plan: RetrainPlan, force: bool) -> str:
    champion, changes = plan["champion"], plan["changes"]
    if champion is None:
        return "there is no champion"
    since = f"since champion {champion['version']}"
    if changes is None:
        return f"what changed {since} is unknown: its run was deleted"
    if not changes:
        return f"nothing changed {since}" + (
            ", and --force starts over" if force else "; its job is not in this folder"
        )
    return f"{counted(len(changes), 'thing')} changed {since}"


def _read_champion(store: MlflowStore) -> tuple[dict[str, Any] | None, RunRecord | None]:
    """Return version, MCC and run of the champion, and what its run recorded; None for what is not there."""
    champion = None if is_uninitialised(store) else lookup.find_alias(store, CHAMPION, fetch=False)
    if champion is None:
        return None, None
    run = lookup.read_tags(store, champion["version"])["run"]
    known = {"version": champion["version"], "mcc": champion["mcc"], "run": run}
    return known, tracking.read_run_record(store, run)


def _list_changes(run: RunRecord, resolved: ResolvedSettings, inputs: JobInputs) -> list[dict[str, str]]:
    # A run without the encoder's tag is of an earlier release; of a teacher the settings say it.
    models = {tag: digest for tag, digest in inputs.digests.items() if tag == ENCODER_TAG and tag in run["tags"]}
    facts = {DATA_TAG: inputs.data["digest"], **models, CODE_TAG: git_commit()} | library_versions()
    rows = recordable_rows(*resolved, inputs.teacher)
    return [change._asdict() for change in diff_runs(run, rows, facts)]
