"""A search over settings of fine-tuning; its winner goes the ordinary way: trained, exported, judged, registered."""

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

from prefect import flow

from flows.jobs.job import describe_end, locked
from flows.jobs.publish import log_files
from flows.jobs.retrain import examine, find_encoder, find_profile, find_teacher, read, retrain, try_encoder
from flows.jobs.teacher import pinned_teacher, teacher_of
from flows.jobs.training_rows import holdouts_of, split_into_folds
from flows.jobs.unchanged import recipe_of
from flows.notifications import alert_failure
from flows.outcome import RetrainOutcome
from flows.steps import Timer, retrying_task, timed_task
from tasks.cluster.calls import CallCluster
from tasks.core.files import json_digest
from tasks.core.progress import progress_bar, show_figures
from tasks.core.provenance import git_commit
from tasks.core.settings import Settings
from tasks.data.gate import raise_if_failed
from tasks.data.ingestion import Dataset
from tasks.registry import sweep_runs, tracking
from tasks.registry.store import MlflowStore, locate_store
from tasks.reporting.sweep_charts import draw_sweep
from tasks.training.device import resolve_device
from tasks.training.pretrained import Encoder
from tasks.training.search_space import GROUP_PREFIX, Dimension, check_folds, combinations, encoders_of
from tasks.training.sweep import best_trial, ended_trials, run_sweep
from tasks.training.trials import SweepPlan, TrialEpoch, TrialRecord

log = logging.getLogger("tasks.sweep")

open_sweep = retrying_task("log to MLflow", sweep_runs.open_sweep)
log_trials = retrying_task("log to MLflow", sweep_runs.log_trials)
close_run = retrying_task("log to MLflow", tracking.close_run)
draw = timed_task("draw", draw_sweep)


@dataclasses.dataclass(frozen=True)
class SweepOutcome:
    """What a sweep found, and the verdict on its winner."""

    name: str
    trials: list[dict[str, Any]]
    """Number, state, settings, mcc, mccs, seconds and error of each, the best first."""
    best: dict[str, Any]
    """What the winner varied, by dotted setting."""
    run: str
    """Id of the sweep's MLflow run."""
    workers: int
    folds: int
    """Of each trial; 1 for one split."""
    trial_seconds: float
    """Wall time of the trials, without the winner's run."""
    retrain: RetrainOutcome
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self) | {"retrain": self.retrain.to_json()}


@flow(name="sweep", result_serializer="json", persist_result=True, on_failure=[alert_failure])
def sweep(
    settings: dict[str, Any],
    origins: dict[str, str],
    space: list[dict[str, Any]],
    trials: int,
    budget_seconds: float,
    workers: int,
    home: str,
    ray: dict[str, Any] | None = None,
    folds: int = 1,
) -> SweepOutcome:
    """Try settings on the validation rows, then retrain with the best ones; return what the command prints.

    Args:
        settings: resolved settings of what is not varied, as plain values.
        origins: the layer each dotted setting came from.
        space: name, choices, low and high of each dimension.
        trials: how many at most, those of earlier commands included.
        budget_seconds: after which no other trial starts.
        workers: trials side by side; 0 for one on each GPU, one on a CPU, or as many as the cluster has room for.
        home: folder of the stores; with Ray on a volume that all machines mount.
        ray: address, cpus and gpus of `CallCluster`; None for processes of this machine.
        folds: of each trial; 1 for one split.

    Raises:
        UsageError: if data, an encoder or the teacher are not there, a library is missing, or folds have a teacher.
        DataRejected: if the gate rejects the data.
        VerdictError: if no trial ended well, or the winner's run fails.
    """
    chosen, timer, store = Settings.model_validate(settings), Timer(), locate_store(home)
    check_folds(folds, chosen.finetune.teacher)
    dimensions = tuple(Dimension(**each) for each in space)
    data = read(timer, chosen.data, home)
    addresses = encoders_of(dimensions, chosen.finetune.encoder)
    encoders = {address: find_encoder(timer, address, offline=chosen.data.offline) for address in addresses}
    teacher = find_teacher(timer, chosen, data, home) if chosen.finetune.teacher else None
    cluster = CallCluster(**ray) if ray else None
    device = ("cuda" if cluster.gpus else "cpu") if cluster else resolve_device(chosen.finetune.device)
    digests = [*sorted(each["digest"] for each in encoders.values()), teacher and teacher.manifest_digest]
    name = json_digest([recipe_of(chosen), space, data["digest"], digests, device, folds, git_commit()])[:16]
    folder = Path(home) / "sweeps" / name
    with locked(folder):
        _check_inputs(timer, data, chosen, list(encoders.values()), str(folder), home)
        divided, text = split_into_folds(timer, data, chosen, folder, folds)
        plan = SweepPlan(
            folder=str(folder),
            space=dimensions,
            base=chosen.finetune,
            encoders={address: encoder["folder"] for address, encoder in encoders.items()},
            teacher=teacher_of(teacher),
            folds=tuple(divided),
            text=text,
            holdouts=tuple(holdouts_of(data)),
            device=device,
            trials=trials,
            deadline=time.time() + budget_seconds,
        )
        started = time.monotonic()
        run_id, records = _try(timer, plan, workers, cluster, store, name, data)
        taken = round(time.monotonic() - started, 2)
    best = best_trial(records)
    varied = {f"{GROUP_PREFIX}{key}": value for key, value in best.settings.items()}
    log.info("the winner is trial %d, validation MCC %.3f", best.number, best.mcc or 0.0)
    winner = settings | {"finetune": settings["finetune"] | best.settings | pinned_teacher(chosen, teacher)}
    outcome = retrain(winner, origins | dict.fromkeys(varied, f"sweep {name[:8]}"), home)
    ranked = sorted(records, key=lambda record: (record.state != "finished", -(record.mcc or 0.0), record.number))
    table = [record._asdict() for record in ranked]
    return SweepOutcome(name, table, varied, run_id, workers, folds, taken, outcome, timer.seconds)


def _check_inputs(
    timer: Timer, data: Dataset, settings: Settings, encoders: list[Encoder], folder: str, home: str
) -> None:
    """Run the gate, then the check of every encoder, which takes longer."""
    profile = find_profile(timer, locate_store(home))
    raise_if_failed(examine(timer, data, settings, folder, encoders[0]["folder"], profile))
    for encoder in encoders:
        try_encoder(timer, encoder, settings.finetune.max_length, home, settings.finetune.allow_new_weights)


def _try(
    timer: Timer,
    plan: SweepPlan,
    workers: int,
    cluster: CallCluster | None,
    store: MlflowStore,
    name: str,
    data: Dataset,
) -> tuple[str, list[TrialRecord]]:
    """Run the trials and keep them in MLflow; return the id of the sweep's run, and all trials."""
    params = {f"{GROUP_PREFIX}{each.name}": each.text for each in plan.space} | {"folds": str(len(plan.folds))}
    run_id = open_sweep(timer, store, name, params, {"dataset": data["digest"], "git_commit": git_commit()})
    try:
        records = _run(timer, plan, workers, cluster, store, run_id, name)
        log_trials(timer, store, run_id, name, records)
        log_files(timer, store, run_id, draw(timer, plan.folder, f"{plan.folder}/pictures"), "sweep")
    except BaseException as error:
        _, status = describe_end(error)
        close_run(timer, store, run_id, status)
        raise
    close_run(timer, store, run_id, "FINISHED")
    return run_id, records


def _run_visibly(
    plan: SweepPlan, workers: int, cluster: CallCluster | None, store: MlflowStore, run_id: str, name: str
) -> list[TrialRecord]:
    """Run the trials; each is logged to MLflow as it ends, and the terminal shows the latest and the best."""
    earlier = ended_trials(plan)
    best = [record.mcc for record in earlier if record.state == "finished" and record.mcc is not None]
    with progress_bar("trials", int(min(plan.trials, combinations(plan.space))), len(earlier)) as advance:

        def show(record: TrialRecord | TrialEpoch) -> None:
            if isinstance(record, TrialEpoch):
                mcc = record.epoch["validation_mcc"]
                fold = f"fold {record.fold}, " if len(plan.folds) > 1 else ""
                latest = f"trial {record.trial}, {fold}epoch {record.epoch['epoch']}: validation MCC {mcc:.3f}"
                show_figures(latest + (f"; best {max(best):.3f}" if best else ""))
                return
            sweep_runs.log_trials(store, run_id, name, [record])
            if record.state == "finished" and record.mcc is not None:
                best.append(record.mcc)
            advance()

        return run_sweep(plan, workers, show, cluster)


_run = timed_task("trials", _run_visibly)
