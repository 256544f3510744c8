"""A trial of a sweep: one training, whose validation MCC decides whether its settings are the best.

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
from tasks.training.finetune import TrainingResult, fine_tune, load_training
from tasks.training.recipe import resolve_recipe
from tasks.training.search_space import Dimension
from tasks.training.trainer import EpochRecord, OnEpoch

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


class TrialStart(NamedTuple):
    """A trial that is to run."""

    number: int
    settings: dict[str, Any]
    """What it varies, by name in `finetune`."""


class TrialEpoch(NamedTuple):
    """An epoch of a trial that runs."""

    trial: int
    epoch: EpochRecord


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

    def on_epoch(epoch: EpochRecord) -> None:
        if report(TrialEpoch(start.number, epoch)):
            raise TrialPruned

    state: State = "finished"
    mccs, error = [], ""
    try:
        result = _train(plan, start.settings, on_epoch)
        mccs = [seed["validation_mcc"] for seed in result["seeds"]]
    except TrialPruned:
        state = "pruned"
    except (VerdictError, torch.OutOfMemoryError) as failure:
        state, error = "failed", first_line(failure)
    mcc = sum(mccs) / len(mccs) if mccs else None
    return TrialRecord(start.number, state, start.settings, mcc, mccs, round(time.monotonic() - started, 2), error)


def delete_files(plan: SweepPlan, settings: dict[str, Any]) -> None:
    """Delete the model and the checkpoints of a trial that was recorded."""
    folder = _folder(plan, settings)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(f"{folder}-checkpoints", ignore_errors=True)


def delete_all_files(plan: SweepPlan) -> None:
    """Delete what is left of the trials when none runs: what killed processes had half written."""
    shutil.rmtree(Path(plan.folder) / TRIALS, ignore_errors=True)


def _folder(plan: SweepPlan, settings: dict[str, Any]) -> Path:
    return Path(plan.folder) / TRIALS / json_digest(settings)[:16]


def _check_files(plan: SweepPlan) -> None:
    """Check that the machine of this process sees what the sweep's own machine wrote."""
    if not Path(plan.train).exists():
        raise UsageError(f"{plan.train} is not on this machine; expected one VERDICT_HOME that all machines mount")
    for path in plan.encoders.values():
        if not Path(path).exists():
            raise UsageError(f"{path} is not on this machine; expected the encoder in the same folder on all machines")


def _train(plan: SweepPlan, settings: dict[str, Any], on_epoch: OnEpoch) -> TrainingResult:
    folder = str(_folder(plan, settings))
    if finished := load_training(folder):
        return finished
    chosen = FinetuneSettings.model_validate({**plan.base.model_dump(), **settings, "device": plan.device, "ray": ""})
    recipe = resolve_recipe(chosen, plan.encoders[chosen.encoder])
    return fine_tune(plan.train, plan.validation, recipe, folder, text=plan.text, on_epoch=on_epoch)
