"""A trial of a sweep: a training on each fold, whose mean validation MCC decides whether its settings are the best.

A trial runs in a process of this host or as a task of a Ray cluster. It knows nothing of the other trials: the sweep
decides what is tried and which trial ends early.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from tasks.core.errors import UsageError, VerdictError, first_line
from tasks.core.files import json_digest
from tasks.core.finetune_settings import FinetuneSettings
from tasks.data.folds import Fold
from tasks.training.finetune import TrainingResult, fine_tune, load_training
from tasks.training.recipe import resolve_recipe
from tasks.training.search_space import Dimension
from tasks.training.trainer import EpochRecord, OnEpoch
from tasks.training.training_job import Teacher

TRIALS = "trials"  # folder below the sweep's
State = Literal["finished", "pruned", "failed"]


class SweepPlan(NamedTuple):
    """What a sweep tries; plain values that are pickled to its trials."""

    folder: str
    space: tuple[Dimension, ...]
    base: FinetuneSettings
    """Settings of what is not varied."""
    encoders: dict[str, str]
    """Folder of each encoder, by its address in the settings."""
    teacher: Teacher | None
    """Of all trials; None without one."""
    folds: tuple[Fold, ...]
    """On which each trial trains; one where it validates by one split."""
    text: str
    """Snapshot of further sentences, or empty."""
    holdouts: tuple[str, ...]
    """Snapshots of sentences that no corrupted copy may be; trials are not measured on them."""
    device: str
    """cuda or cpu."""
    trials: int
    """How many at most."""
    deadline: float
    """Unix time after which no other trial starts."""


class TrialStart(NamedTuple):
    """A trial that is to run."""

    number: int
    settings: dict[str, Any]
    """What it varies, by name in `finetune`."""


class TrialEpoch(NamedTuple):
    """An epoch of a trial that runs, and on which fold, from 1."""

    trial: int
    fold: int
    epoch: EpochRecord


class TrialRecord(NamedTuple):
    """A trial that ended."""

    number: int
    state: State
    settings: dict[str, Any]
    """What it varied, by name in `finetune`."""
    mcc: float | None
    """Validation MCC, the mean of its folds and seeds; of a pruned trial as far as it came, of a failed one None."""
    mccs: list[float]
    """Validation MCC of each seed that ended, of one fold after the other."""
    seconds: float
    error: str = ""
    """Why it failed."""


class TrialPruned(Exception):
    """Ends a trial early, because it is among the worse ones."""


def run_trial(plan: SweepPlan, start: TrialStart, report: Callable[[TrialEpoch], bool]) -> TrialRecord:
    """Train with a trial's settings, from its checkpoint where an earlier process left one.

    Args:
        plan: of the sweep.
        start: the trial.
        report: called after each epoch; returns whether the trial ends early.

    Raises:
        UsageError: if this machine does not see the files of the sweep.
    """
    _check_files(plan)
    started = time.monotonic()
    state: State = "finished"
    mccs: list[float] = []
    error = ""
    try:
        for number in range(1, len(plan.folds) + 1):
            result = _train(plan, start.settings, number, _report_epochs(report, start.number, number))
            mccs += [seed["validation_mcc"] for seed in result["seeds"]]
    except TrialPruned:
        state = "pruned"
    except (VerdictError, torch.OutOfMemoryError) as failure:
        state, error = "failed", first_line(failure)
    mcc = sum(mccs) / len(mccs) if mccs else None
    return TrialRecord(start.number, state, start.settings, mcc, mccs, round(time.monotonic() - started, 2), error)


def delete_files(plan: SweepPlan, settings: dict[str, Any]) -> None:
    """Delete the model and the checkpoints of a trial that was recorded."""
    shutil.rmtree(_folder(plan, settings), ignore_errors=True)


def delete_all_files(plan: SweepPlan) -> None:
    """Delete what is left of the trials when none runs: what killed processes had half written."""
    shutil.rmtree(Path(plan.folder) / TRIALS, ignore_errors=True)


def _folder(plan: SweepPlan, settings: dict[str, Any]) -> Path:
    return Path(plan.folder) / TRIALS / json_digest(settings)[:16]


def _check_files(plan: SweepPlan) -> None:
    """Check that the machine of this process sees what the sweep's own machine wrote."""
    train = plan.folds[0].train
    if not Path(train).exists():
        raise UsageError(f"{train} is not on this machine; expected one VERDICT_HOME that all machines mount")
    for path in (*plan.encoders.values(), *([plan.teacher.bundle] if plan.teacher else [])):
        if not Path(path).exists():
            raise UsageError(f"{path} is not on this machine; expected the model in the same folder on all machines")


def _report_epochs(report: Callable[[TrialEpoch], bool], trial: int, fold: int) -> OnEpoch:
    """Return what reports the epochs of a fold, and ends the trial where the sweep says so."""

    def on_epoch(epoch: EpochRecord) -> None:
        if report(TrialEpoch(trial, fold, epoch)):
            raise TrialPruned

    return on_epoch


def _train(plan: SweepPlan, settings: dict[str, Any], number: int, on_epoch: OnEpoch) -> TrainingResult:
    """Train on a fold, from 1, or report again what an earlier process did of one that others follow."""
    folder = str(_folder(plan, settings) / str(number))
    if finished := load_training(folder):
        for epoch in finished["epochs"] if number < len(plan.folds) else ():
            on_epoch(epoch)
        return finished
    fold = plan.folds[number - 1]
    chosen = FinetuneSettings.model_validate(
        {**plan.base.model_dump(), **settings, "device": plan.device, "ray": "", "processes": 1}
    )
    recipe = resolve_recipe(chosen, plan.encoders[chosen.encoder])
    return fine_tune(
        fold.train,
        fold.validation,
        recipe,
        folder,
        text=plan.text,
        teacher=plan.teacher,
        holdouts=plan.holdouts,
        on_epoch=on_epoch,
    )
