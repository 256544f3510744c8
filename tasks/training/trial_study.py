"""Optuna's study of a sweep: which settings are tried, which trials end early, and what all of them reached.

The process that runs the sweep is the only one that writes to the study's journal. Successive halving (Jamieson and
Talwalkar 2016, https://arxiv.org/abs/1502.07943) ends trials that are in the worse half after half of their epochs: at
equal shares of their schedules, as the learning rate falls to 0 in each.
"""

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import optuna
from optuna import Study, Trial
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from tasks.training.search_space import MAX_COMBINATIONS, Dimension, all_combinations, combinations, has_range
from tasks.training.seed_runs import SEED_STRIDE
from tasks.training.trials import State, SweepPlan, TrialEpoch, TrialRecord, TrialStart, delete_files

JOURNAL = "trials.log"
HALF = 50  # percent of its epochs after which a trial may end early
LOCK_SECONDS = 3  # after which the journal's lock counts as that of a killed process
STUDY = "sweep"
TRIAL_MCCS, TRIAL_SECONDS, TRIAL_ERROR = "mccs", "seconds", "error"  # attributes of a trial
TRIAL_PARTS = "parts"  # of one that runs
TRIAL_STATES: dict[TrialState, State] = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned"}  # others: failed
OPTUNA_STATE_OF = {state: optuna_state for optuna_state, state in TRIAL_STATES.items()} | {"failed": TrialState.FAIL}

log = logging.getLogger(__name__)


class _Part(TypedDict):
    """One training of a trial: its seed, which another replaced if it learned nothing, best MCC, and epochs."""

    seed: int
    best: float
    done: int


@dataclass
class _Running:
    """A trial that runs, and how far it came."""

    trial: Trial
    parts: dict[str, _Part] = field(default_factory=dict)
    """By fold and place among its seeds, "1/0" the first; kept in the journal, for the process that resumes it."""
    percent: int = 0
    """Of all its epochs, as last reported."""


class TrialStudy:
    """The trials of a sweep, as the process that runs it sees them."""

    def __init__(self, plan: SweepPlan) -> None:
        """Open the study of a sweep; what a killed process left running is resumed first."""
        self._plan, self._study = plan, open_study(plan.folder, plan.base.seed)
        self._running: dict[int, _Running] = {}
        self._interrupted = self._find_interrupted()
        self._queue()

    @property
    def is_open(self) -> bool:
        """Whether another trial may start."""
        started = [trial for trial in self._counted() if trial.state is not TrialState.WAITING]
        most = min(self._plan.trials, combinations(self._plan.space))
        return len(started) - len(self._interrupted) < most and time.time() < self._plan.deadline

    @property
    def has_interrupted(self) -> bool:
        """Whether a trial waits to be resumed from its files."""
        return bool(self._interrupted)

    def start(self) -> TrialStart | None:
        """Begin the next trial; return None where there are as many as planned, or the time is over."""
        if not self.is_open:
            return None
        if self._interrupted:
            running = self._interrupted.pop(0)
            self._running[running.trial.number] = running
            return TrialStart(running.trial.number, dict(running.trial.params))
        trial = self._ask()
        while self._is_repeated(trial):  # integers of a range are few
            self._study.tell(trial, state=TrialState.FAIL)
            if combinations(self._plan.space) <= MAX_COMBINATIONS:
                self._study.enqueue_trial(self._untried()[0])
            trial = self._ask()
        self._running[trial.number] = _Running(trial)
        return TrialStart(trial.number, dict(trial.params))

    def report(self, message: TrialEpoch) -> bool:
        """Note an epoch of a trial; return whether the trial ends early."""
        if message.trial not in self._running:  # its worker was lost, and was heard afterwards
            return True
        running, percent = self._running[message.trial], self._note(message)
        running.trial.set_user_attr(TRIAL_PARTS, running.parts)
        if percent <= running.percent or percent >= 100:  # repeated after its process was killed, or the last one
            return False
        running.percent = percent
        running.trial.report(sum(part["best"] for part in running.parts.values()) / len(running.parts), percent)
        return bool(running.trial.should_prune())

    def _note(self, message: TrialEpoch) -> int:
        """Note an epoch of a trial; return the percentage of its epochs that are done, folds before it in whole."""
        running, epoch, base = self._running[message.trial], message.epoch, self._plan.base
        params = running.trial.params
        place = (epoch["seed"] - params.get("seed", base.seed)) % SEED_STRIDE  # the same for the seed that replaces one
        name, mcc = f"{message.fold}/{place}", epoch["validation_mcc"]
        before = running.parts.get(name)
        best = max(mcc, before["best"]) if before and before["seed"] == epoch["seed"] else mcc
        running.parts[name] = _Part(seed=epoch["seed"], best=best, done=epoch["epoch"])
        whole = params.get("epochs", base.epochs) * base.seeds  # epochs of a fold
        here = sum(part["done"] for key, part in running.parts.items() if key.startswith(f"{message.fold}/"))
        return int(100 * ((message.fold - 1) * whole + here) // (whole * len(self._plan.folds)))

    def end(self, record: TrialRecord) -> TrialRecord:
        """Record a trial that ended, then delete its files; return it as it counts."""
        trial = self._running.pop(record.number).trial
        state, error = OPTUNA_STATE_OF[record.state], record.error
        if record.mcc is not None and not math.isfinite(record.mcc):  # Optuna ranks Inf as the best
            state, error = TrialState.FAIL, f"its validation MCC is {record.mcc}; expected a number from -1 to 1"
        for name, attribute in ((TRIAL_MCCS, record.mccs), (TRIAL_SECONDS, record.seconds), (TRIAL_ERROR, error)):
            trial.set_user_attr(name, attribute)
        if error:
            log.warning("trial %d failed: %s", record.number, error)
        self._study.tell(trial, record.mcc if state is TrialState.COMPLETE else None, state=state)
        delete_files(self._plan, record.settings)
        return _to_record(self._study.get_trials(deepcopy=False)[record.number])

    @property
    def records(self) -> list[TrialRecord]:
        """All trials that ended, also those of earlier commands."""
        return [_to_record(trial) for trial in self._counted() if trial.state.is_finished()]

    def _find_interrupted(self) -> list[_Running]:
        """Return what a killed sweep left running; a trial whose settings it had not recorded all is given up.

        A trial is resumed as itself: a copy would be compared with what the first one had reported.
        """
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state is TrialState.RUNNING:
                if len(trial.params) == len(self._plan.space):
                    parts = trial.user_attrs.get(TRIAL_PARTS, {})
                    found.append(_Running(Trial(self._study, trial._trial_id), parts, trial.last_step or 0))
                else:
                    self._study.tell(trial.number, state=TrialState.FAIL)
                    if len(settings := _settings_of(trial)) == len(self._plan.space):
                        self._study.enqueue_trial(settings)
        return found

    def _queue(self) -> None:
        """Without ranges queue the combinations that no trial has, in a random order."""
        plan = self._plan
        if not has_range(plan.space):
            for settings in self._untried()[: max(0, plan.trials - len(self._counted()))]:
                self._study.enqueue_trial(settings)

    def _ask(self) -> Trial:
        """Return a queued trial, or a drawn one."""
        trial = self._study.ask()
        for dimension in self._plan.space:  # recorded at once, so that what a kill interrupts can be queued again
            _suggest(trial, dimension)
        return trial

    def _is_repeated(self, trial: Trial) -> bool:
        """Return whether another trial has the same settings, and so the same folder."""
        return any(other.number != trial.number and _settings_of(other) == trial.params for other in self._counted())

    def _untried(self) -> list[dict[str, Any]]:
        """Return the combinations that no trial has, in a random order."""
        known = [_settings_of(trial) for trial in self._counted()]
        return [each for each in all_combinations(self._plan.space, self._plan.base.seed) if each not in known]

    def _counted(self) -> list[FrozenTrial]:
        """Return all trials but those that were given up as their process died."""
        return [
            trial
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state is not TrialState.FAIL or TRIAL_SECONDS in trial.user_attrs
        ]


def open_study(folder: str, seed: int) -> Study:
    """Return Optuna's study of a sweep; make it where there is none.

    Args:
        folder: of the sweep.
        seed: of the sampler that draws from ranges.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    Path(folder).mkdir(parents=True, exist_ok=True)
    journal = f"{folder}/{JOURNAL}"
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(journal, JournalFileSymlinkLock(journal, LOCK_SECONDS))),
        study_name=STUDY,
        direction="maximize",
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=HALF, reduction_factor=2),
        load_if_exists=True,
    )
    # Its own seed for each continuation, which would draw the first trials again. A trial that runs counts as a bad
    # one, so that those side by side are not drawn alike.
    drawn = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=seed + drawn, constant_liar=True)
    return study


def _suggest(trial: Trial, dimension: Dimension) -> None:
    if dimension.choices:
        trial.suggest_categorical(dimension.name, dimension.choices)
    elif isinstance(dimension.low, int):
        trial.suggest_int(dimension.name, dimension.low, int(dimension.high), log=dimension.is_logarithmic)
    else:
        trial.suggest_float(dimension.name, dimension.low, dimension.high, log=dimension.is_logarithmic)


def _settings_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return what a trial varies, also while it waits."""
    queued: dict[str, Any] = trial.system_attrs.get("fixed_params", {})
    return queued or trial.params


def _to_record(trial: FrozenTrial) -> TrialRecord:
    attributes = trial.user_attrs
    return TrialRecord(
        number=trial.number,
        state=TRIAL_STATES.get(trial.state, "failed"),
        settings=dict(trial.params),
        mcc=trial.value,
        mccs=attributes.get(TRIAL_MCCS, []),
        seconds=attributes.get(TRIAL_SECONDS, 0.0),
        error=attributes.get(TRIAL_ERROR, ""),
    )
