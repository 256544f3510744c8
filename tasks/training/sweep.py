"""A sweep: trainings with different settings, compared by their validation MCC; no trial sees a holdout.

Below the sweep's folder:

trials.log              Optuna's journal: what every trial tried and reached
trials/DIGEST/          checkpoints of a trial, named by its settings; deleted when it ends

A sweep that was killed is continued by the same command: what was running is queued again and resumes from its
checkpoint. Successive halving (Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943) ends trials that are in
the worse half after half of their epochs: at equal shares of their schedules, as the learning rate falls to 0 in each.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import optuna
import torch
from filelock import FileLock
from optuna import Study, Trial
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from tasks.core.errors import VerdictError, first_line
from tasks.core.files import json_digest
from tasks.core.finetune_settings import FinetuneSettings
from tasks.training.finetune import TrainingResult, fine_tune, load_training
from tasks.training.launcher import launch
from tasks.training.process_group import ProcessGroup
from tasks.training.recipe import resolve_recipe
from tasks.training.search_space import Dimension, all_combinations, combinations
from tasks.training.trainer import EpochRecord

JOURNAL = "trials.log"
HALF = 50  # percent of its epochs after which a trial may end early
STUDY = "sweep"
TRIAL_MCCS, TRIAL_SECONDS, TRIAL_ERROR = "mccs", "seconds", "error"  # attributes of a trial

log = logging.getLogger(__name__)

State = Literal["finished", "pruned", "failed"]


class SweepPlan(NamedTuple):
    """What a sweep tries; plain values that are pickled to its processes."""

    folder: str
    space: tuple[Dimension, ...]
    base: FinetuneSettings
    """Settings of what is not varied."""
    encoders: dict[str, str]
    """Folder of each encoder, by its address in the settings."""
    train: str
    """Snapshot of the training rows."""
    validation: str
    text: str
    """Snapshot of further sentences, or empty."""
    device: str
    """cuda or cpu."""
    trials: int
    """How many at most."""
    deadline: float
    """Unix time after which no other trial starts."""


class TrialRecord(NamedTuple):
    """A trial that ended."""

    number: int
    state: State
    settings: dict[str, Any]
    """What it varied, by name in `finetune`."""
    mcc: float | None
    """Validation MCC, the mean of its seeds; of a pruned trial as far as it came, of a failed one None."""
    mccs: list[float]
    """Validation MCC of each seed that ended."""
    seconds: float
    error: str = ""
    """Why it failed."""


class TrialEpoch(NamedTuple):
    """An epoch of a trial that runs."""

    trial: int
    epoch: EpochRecord


OnRecord = Callable[[TrialRecord | TrialEpoch], None]


def run_sweep(plan: SweepPlan, workers: int, on_record: OnRecord) -> list[TrialRecord]:
    """Run trials until there are as many as planned, or the time is over; return all of them, also earlier ones.

    Args:
        plan: what to try.
        workers: processes side by side; with cuda each uses a GPU of its own.
        on_record: called with the epochs and ends of trials.

    Raises:
        UsageError: if there are fewer GPUs than workers.
        VerdictError: if all trials failed, or a process died.
    """
    study = open_study(plan.folder, plan.base.seed)
    _queue(study, plan)
    if _is_open(study, plan):
        launch(run_trials, workers, plan, device=plan.device, on_message=on_record, synchronised=False)
    records = [_to_record(trial) for trial in _counted(study) if trial.state.is_finished()]
    if not any(record.state == "finished" for record in records):
        reason = next((record.error for record in records if record.error), "the time was over before one ended")
        raise VerdictError(f"no trial of the sweep ended well ({reason}); expected one: give it more --budget")
    return records


def best_trial(records: list[TrialRecord]) -> TrialRecord:
    """Return the finished trial with the highest validation MCC; of equal ones the first."""
    finished = [record for record in records if record.state == "finished"]
    return max(finished, key=lambda record: (record.mcc or 0.0, -record.number))


def open_study(folder: str, seed: int) -> Study:
    """Return Optuna's study of a sweep; make it where there is none.

    Args:
        folder: of the sweep.
        seed: of the sampler that draws from ranges.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    Path(folder).mkdir(parents=True, exist_ok=True)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(f"{folder}/{JOURNAL}")),
        study_name=STUDY,
        direction="maximize",
        # A trial that runs counts as a bad one, so that processes do not draw the same at once.
        sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=HALF, reduction_factor=2),
        load_if_exists=True,
    )


def _queue(study: Study, plan: SweepPlan) -> None:
    """Queue again what a killed sweep left running; without ranges also untried combinations, in a random order."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state is TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
            settings = _settings_of(trial)
            if len(settings) == len(plan.space):
                study.enqueue_trial(settings)
    if not math.isinf(combinations(plan.space)):
        known = [_settings_of(trial) for trial in _counted(study)]
        untried = [settings for settings in all_combinations(plan.space, plan.base.seed) if settings not in known]
        for settings in untried[: max(0, plan.trials - len(known))]:
            study.enqueue_trial(settings)


def _settings_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return what a trial varies, also while it waits."""
    queued: dict[str, Any] = trial.system_attrs.get("fixed_params", {})
    return queued or trial.params


def _counted(study: Study) -> list[FrozenTrial]:
    """Return all trials but those whose process died: they were queued again."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state is not TrialState.FAIL or TRIAL_SECONDS in trial.user_attrs
    ]


def _is_open(study: Study, plan: SweepPlan) -> bool:
    """Return whether another trial may start."""
    started = [trial for trial in _counted(study) if trial.state is not TrialState.WAITING]
    return len(started) < min(plan.trials, combinations(plan.space)) and time.time() < plan.deadline


def run_trials(group: ProcessGroup, plan: SweepPlan) -> None:
    """Run trials as long as there are more: what each process of a sweep does; called by `launch`."""
    study = open_study(plan.folder, plan.base.seed)
    while trial := _next_trial(study, plan):
        group.notify_parent(_run_trial(study, trial, plan, group))


def _next_trial(study: Study, plan: SweepPlan) -> Trial | None:
    with FileLock(f"{plan.folder}/next.lock"):  # or two processes would both start the last one
        if not _is_open(study, plan):
            return None
        trial = study.ask()
        for dimension in plan.space:  # recorded at once, so that what a kill interrupts can be queued again
            _suggest(trial, dimension)
        return trial


def _suggest(trial: Trial, dimension: Dimension) -> None:
    if dimension.choices:
        trial.suggest_categorical(dimension.name, dimension.choices)
    elif isinstance(dimension.low, int):
        trial.suggest_int(dimension.name, dimension.low, int(dimension.high), log=dimension.is_logarithmic)
    else:
        trial.suggest_float(dimension.name, dimension.low, dimension.high, log=dimension.is_logarithmic)


def _run_trial(study: Study, trial: Trial, plan: SweepPlan, group: ProcessGroup) -> TrialRecord:
    """Train with a trial's settings, unless an earlier process did; record how it ended."""
    settings = trial.params
    epochs = settings.get("epochs", plan.base.epochs) * plan.base.seeds
    started = time.monotonic()
    best: dict[int, float] = {}  # validation MCC by seed
    done: dict[int, int] = {}  # epochs by seed

    def report(epoch: EpochRecord) -> None:
        seed, mcc = epoch["seed"], epoch["validation_mcc"]
        best[seed], done[seed] = max(mcc, best.get(seed, mcc)), epoch["epoch"]
        group.notify_parent(TrialEpoch(trial.number, epoch))
        percent = 100 * sum(done.values()) // epochs
        trial.report(sum(best.values()) / len(best), percent)
        if percent < 100 and trial.should_prune():
            raise optuna.TrialPruned

    folder = Path(plan.folder) / "trials" / json_digest(settings)[:16]
    value, state, error = None, TrialState.COMPLETE, ""
    mccs: list[float] = []
    try:
        result = _train(plan, settings, folder, report)
        mccs = [seed["validation_mcc"] for seed in result["seeds"]]
        value = sum(mccs) / len(mccs)
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except (VerdictError, torch.OutOfMemoryError) as failure:
        state, error = TrialState.FAIL, first_line(failure)
        log.warning("trial %d failed: %s", trial.number, error)
    for name, attribute in (
        (TRIAL_MCCS, mccs),
        (TRIAL_SECONDS, round(time.monotonic() - started, 2)),
        (TRIAL_ERROR, error),
    ):
        trial.set_user_attr(name, attribute)
    study.tell(trial, value, state=state)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(f"{folder}-checkpoints", ignore_errors=True)
    return _to_record(study.get_trials(deepcopy=False)[trial.number])


def _train(
    plan: SweepPlan, settings: dict[str, Any], folder: Path, on_epoch: Callable[[EpochRecord], None]
) -> TrainingResult:
    if finished := load_training(str(folder)):
        return finished
    chosen = FinetuneSettings.model_validate({**plan.base.model_dump(), **settings, "device": plan.device})
    recipe = resolve_recipe(chosen, plan.encoders[chosen.encoder])
    return fine_tune(plan.train, plan.validation, recipe, str(folder), text=plan.text, on_epoch=on_epoch)


def _to_record(trial: FrozenTrial) -> TrialRecord:
    states: dict[TrialState, State] = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned"}
    attributes = trial.user_attrs
    return TrialRecord(
        number=trial.number,
        state=states.get(trial.state, "failed"),
        settings=dict(trial.params),
        mcc=trial.value,
        mccs=attributes.get(TRIAL_MCCS, []),
        seconds=attributes.get(TRIAL_SECONDS, 0.0),
        error=attributes.get(TRIAL_ERROR, ""),
    )
