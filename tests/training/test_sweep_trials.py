"""Sweeps: each combination once, nothing lost by a kill, no trial after the budget."""

import multiprocessing
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from toy_sweep import RATES, sweep_here, sweep_plan

from tasks.core.errors import UsageError, VerdictError
from tasks.data.folds import Fold, split_folds
from tasks.data.snapshots import read_snapshot
from tasks.training.finetune import fine_tune
from tasks.training.search_space import Dimension, all_combinations
from tasks.training.sweep import best_trial, ended_trials, run_sweep
from tasks.training.training_job import Teacher
from tasks.training.trial_study import TrialStudy, open_study
from tasks.training.trials import SweepPlan, TrialEpoch, TrialRecord, TrialStart, run_trial


@pytest.fixture
def plan(tmp_path: Path, tiny_encoder: Path, toy_split: tuple[str, str, str]) -> SweepPlan:
    return sweep_plan(tmp_path / "sweep", tiny_encoder, toy_split)


def settings_of(records: list[TrialRecord]) -> list[tuple[int, float]]:
    return sorted((record.settings["epochs"], record.settings["learning_rate"]) for record in records)


ALL = [(1, 1e-3), (1, 3e-3), (2, 1e-3), (2, 3e-3)]


def test_what_two_processes_left_when_one_was_killed_is_tried_and_nothing_twice(plan: SweepPlan) -> None:
    seen: list[TrialRecord | TrialEpoch] = []

    def kill(record: TrialRecord | TrialEpoch) -> None:
        seen.append(record)
        if isinstance(record, TrialRecord):
            multiprocessing.active_children()[0].kill()

    with pytest.raises(VerdictError, match=r"rank [01] of 2 was ended by SIGKILL"):
        run_sweep(plan, 2, kill)
    records = sweep_here(plan, seen.append)
    assert settings_of(records) == ALL
    ended = [record for record in seen if isinstance(record, TrialRecord)]
    assert sorted(ended) == sorted(records)
    assert best_trial(records).mcc == max(record.mcc or 0.0 for record in records if record.state == "finished")
    assert all(record.mccs == [record.mcc] for record in records if record.state == "finished")
    assert not (Path(plan.folder) / "trials").exists()


def test_a_trial_trains_in_its_own_process_whatever_the_setting_says(
    plan: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def note(*arguments: Any, **options: Any) -> Any:
        seen.append(arguments[2].processes)
        return fine_tune(*arguments, **options)

    monkeypatch.setattr("tasks.training.trials.fine_tune", note)
    base = plan.base.model_copy(update={"processes": 2})
    sweep_here(plan._replace(base=base, space=(Dimension("epochs", (1,)),)))
    assert seen == [1]


DRIVER = """
import pickle, sys
from tasks.training import sweep
from tasks.training.process_group import ProcessGroup
sweep.launch = lambda run, _, plan, *, on_message, **options: run(ProcessGroup(0, 1, "cpu", on_message), plan)
with open(sys.argv[1], "rb") as file:
    sweep.run_sweep(pickle.load(file), 1, lambda record: print(type(record).__name__, flush=True))
"""


def test_a_killed_driver_loses_nothing(plan: SweepPlan, tmp_path: Path) -> None:
    """The second trial is killed after its second epoch; the same command resumes it, with the same result."""
    base = plan.base.model_copy(update={"checkpoint_seconds": 0.0})
    plan = plan._replace(space=(Dimension("epochs", (5,)), RATES), base=base)
    (tmp_path / "plan").write_bytes(pickle.dumps(plan))
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "plan")], stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout
        while driver.stdout.readline() != "TrialRecord\n":
            assert driver.poll() is None
        assert [driver.stdout.readline() for _ in range(2)] == ["TrialEpoch\n"] * 2
        driver.kill()
    seen: list[Any] = []
    records = sweep_here(plan, seen.append)
    assert seen[0].epoch["epoch"] >= 2
    assert {seen[0].trial} == {record.number for record in seen if isinstance(record, TrialRecord)}
    alone = sweep_here(plan._replace(folder=str(tmp_path / "alone")))
    assert [record[1:5] for record in records] == [record[1:5] for record in alone]


def test_what_a_kill_left_running_is_tried_again_and_nothing_twice(plan: SweepPlan) -> None:
    assert len(sweep_here(plan._replace(trials=1))) == 1
    study = open_study(plan.folder, plan.base.seed)
    study.enqueue_trial(all_combinations(plan.space, plan.base.seed)[1])
    killed = study.ask()  # Optuna leaves it RUNNING for ever
    for dimension in plan.space:
        killed.suggest_categorical(dimension.name, dimension.choices)
    assert settings_of(sweep_here(plan)) == ALL
    assert settings_of(sweep_here(plan)) == ALL  # nothing is left to try


def test_more_trials_continue_a_sweep_and_no_trial_starts_after_the_budget(plan: SweepPlan) -> None:
    over = plan._replace(deadline=time.time() - 1)
    with pytest.raises(VerdictError, match=r"no trial of the sweep ended well \(the time was over before one ended\)"):
        sweep_here(over)
    first = sweep_here(plan._replace(trials=2))
    assert len(first) == 2
    assert ended_trials(plan) == first
    assert sweep_here(over) == first
    assert sweep_here(plan._replace(trials=3))[:2] == first


def test_a_range_is_drawn_within_its_ends(plan: SweepPlan) -> None:
    space = (Dimension("epochs", (1,)), Dimension("learning_rate", (), 1e-4, 1e-3))
    records = sweep_here(plan._replace(space=space, trials=3))
    rates = [record.settings["learning_rate"] for record in records]
    assert len(set(rates)) == 3
    assert all(1e-4 <= rate <= 1e-3 for rate in rates)


def drawn(study: TrialStudy, number: int) -> list[float]:
    """Start trials and end them, without a training; return their learning rates."""
    starts = [study.start() for _ in range(number)]
    for start in starts:
        assert start
        study.end(TrialRecord(start.number, "finished", start.settings, 0.5, [0.5], 1.0))
    return [start.settings["learning_rate"] for start in starts if start]


def test_a_continued_sweep_draws_other_values_and_a_new_one_the_same(plan: SweepPlan, tmp_path: Path) -> None:
    plan = plan._replace(space=(Dimension("learning_rate", (), 1e-5, 1e-3),), trials=6)
    rates = [*drawn(TrialStudy(plan), 3), *drawn(TrialStudy(plan), 3)]  # a killed process, and the next one
    assert len(set(rates)) == 6
    assert drawn(TrialStudy(plan._replace(folder=str(tmp_path / "new"))), 3) == rates[:3]


def test_integers_of_a_range_are_not_tried_twice(plan: SweepPlan) -> None:
    """Two trials of the same settings would share a folder."""
    plan = plan._replace(space=(Dimension("epochs", (), 1, 3), Dimension("batch_size", (8, 16))), trials=20)
    study, found = TrialStudy(plan), []
    while start := study.start():
        found.append((start.settings["epochs"], start.settings["batch_size"]))
    assert sorted(found) == [(epochs, size) for epochs in (1, 2, 3) for size in (8, 16)]


def test_an_epoch_that_is_heard_after_its_trial_failed_ends_its_training(plan: SweepPlan) -> None:
    study = TrialStudy(plan)
    start = study.start()
    assert start
    study.end(TrialRecord(start.number, "failed", start.settings, None, [], 0.0, "its worker was lost 3 times"))
    epoch: Any = {"seed": 7, "epoch": 1, "validation_mcc": 0.5}
    assert study.report(TrialEpoch(start.number, 1, epoch))


def test_a_sweep_whose_trials_all_fail_says_why_and_how_they_are_tried_again(plan: SweepPlan, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    broken = plan._replace(space=(Dimension("epochs", (1,)),), encoders={"tiny": str(tmp_path / "empty")})
    for _ in range(2):  # the second time nothing is trained
        with pytest.raises(VerdictError, match=r"no trial of the sweep ended well \(trial 0: .*empty") as failed:
            sweep_here(broken)
        assert str(failed.value).endswith(
            f"expected one: try other values, or the same ones after: rm -r {plan.folder}"
        )


def test_a_machine_without_the_files_of_a_sweep_is_named(plan: SweepPlan) -> None:
    start = TrialStart(0, {"epochs": 1})
    for there, what in (
        (
            plan._replace(folds=(Fold("/nowhere/train", ""),)),
            "/nowhere/train is not on this machine; expected one VERDICT_HOME",
        ),
        (plan._replace(encoders={"tiny": "/nowhere"}), "/nowhere is not on this machine; expected the model in the"),
        (plan._replace(teacher=Teacher("/nobody")), "/nobody is not on this machine; expected the model in the"),
    ):
        with pytest.raises(UsageError, match=what):
            run_trial(there, start, lambda _: False)


def test_trials_learn_from_the_teacher_of_the_sweep(
    plan: SweepPlan, exported: Any, caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    for teacher in (None, Teacher(exported["bundle"])):
        with caplog.at_level("INFO", "tasks.training.teacher"):
            found.append(run_trial(plan._replace(teacher=teacher), TrialStart(0, {"epochs": 1}), lambda _: False))
        assert any("the teacher answers " in message for message in caplog.messages) == bool(teacher)
        shutil.rmtree(plan.folder)
    assert {record.state for record in found} == {"finished"}


def test_a_trial_that_cannot_be_trained_fails_alone(plan: SweepPlan, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    space = (Dimension("encoder", ("tiny", "broken")), Dimension("epochs", (1,)))
    encoders = plan.encoders | {"broken": str(tmp_path / "empty")}
    records = sweep_here(plan._replace(space=space, encoders=encoders))
    states = {record.settings["encoder"]: record.state for record in records}
    assert states == {"tiny": "finished", "broken": "failed"}
    assert next(record.error for record in records if record.state == "failed")


@pytest.fixture
def folded(plan: SweepPlan, tmp_path: Path) -> SweepPlan:
    """The plan with two folds, each of which trains on what the other validates by."""
    rows = [read_snapshot(path) for path in plan.folds[0]]
    both = pd.concat(rows, ignore_index=True)
    both.to_parquet(tmp_path / "all.parquet")
    folds = split_folds(str(tmp_path / "all.parquet"), [], str(tmp_path / "folds"), 2, 7, ["sentence"])
    return plan._replace(folds=tuple(folds), space=(Dimension("epochs", (2,)),))


def test_a_trial_trains_on_each_fold_and_their_mean_counts(folded: SweepPlan) -> None:
    seen: list[Any] = []
    (record,) = sweep_here(folded, seen.append)
    alone = [sweep_here(folded._replace(folder=f"{fold.train}-sweep", folds=(fold,)))[0] for fold in folded.folds]
    assert record.mccs == [each.mcc for each in alone]
    assert record.mcc == sum(record.mccs) / 2
    heard = [(each.fold, each.epoch["epoch"]) for each in seen if isinstance(each, TrialEpoch)]
    assert heard == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_a_fold_that_a_killed_trial_finished_is_not_trained_again_and_counts(folded: SweepPlan) -> None:
    class Killed(Exception):
        pass

    start, seen = TrialStart(0, {"epochs": 2}), []

    def kill_in_second_fold(message: TrialEpoch) -> bool:
        if message.fold == 2:
            raise Killed
        return False

    with pytest.raises(Killed):
        run_trial(folded, start, kill_in_second_fold)
    first = next(Path(folded.folder).glob("trials/*/1/model.safetensors"))
    written = first.stat().st_mtime_ns

    def note(message: TrialEpoch) -> bool:
        seen.append((message.fold, message.epoch["epoch"]))
        return False

    record = run_trial(folded, start, note)
    assert first.stat().st_mtime_ns == written
    assert seen[:2] == [(1, 1), (1, 2)]
    assert (record.state, len(record.mccs)) == ("finished", 2)


def test_trials_are_compared_after_half_of_all_their_folds(folded: SweepPlan) -> None:
    base = folded.base.model_copy(update={"epochs": 2})
    study = TrialStudy(folded._replace(space=(Dimension("learning_rate", (1e-3, 2e-3, 3e-3)),), base=base))
    ended = []
    for mcc in (0.5, 0.6, 0.1):
        start = study.start()
        assert start
        epochs: list[Any] = [{"seed": 7, "epoch": epoch, "validation_mcc": mcc} for epoch in (1, 2)]
        ended.append([study.report(TrialEpoch(start.number, 1, epoch)) for epoch in epochs])
    assert ended == [[False, False], [False, False], [False, True]]  # the worst, not after a quarter


def report(study: TrialStudy, trial: int, fold: int, epoch: int, mcc: float, seed: int = 7) -> bool:
    record: Any = {"seed": seed, "epoch": epoch, "validation_mcc": mcc}
    return study.report(TrialEpoch(trial, fold, record))


def test_a_trial_that_was_killed_is_resumed_first_and_as_itself(folded: SweepPlan) -> None:
    """A copy of it would be compared with the first one's figures, and end early for a weaker epoch after its best."""
    plan = folded._replace(folds=folded.folds[:1], space=(Dimension("learning_rate", (1e-3, 2e-3)),))
    plan = plan._replace(base=plan.base.model_copy(update={"epochs": 4}))
    killed, study = TrialStudy(plan), TrialStudy(plan)
    start = killed.start()
    assert start
    assert [report(killed, start.number, 1, epoch, mcc) for epoch, mcc in ((1, 0.5), (2, 0.8))] == [False, False]
    study = TrialStudy(plan)
    assert study.start() == start
    assert not report(study, start.number, 1, 3, 0.78)
    other = study.start()
    assert other
    assert [report(study, other.number, 1, epoch, 0.79) for epoch in (1, 2)] == [False, True]  # its best is still 0.8


def test_files_of_a_killed_trial_are_kept_while_the_budget_is_over(folded: SweepPlan) -> None:
    start = TrialStudy(folded).start()
    assert start
    run_trial(folded, start, lambda _: False)  # whose end nobody recorded
    model = next(Path(folded.folder).glob("trials/*/1/model.safetensors"))
    with pytest.raises(
        VerdictError, match=r"the time was over before one ended\); expected one: give it more --budget"
    ):
        sweep_here(folded._replace(deadline=time.time() - 1))
    written = model.stat().st_mtime_ns
    seen: list[int] = []
    (record,) = sweep_here(folded, lambda message: seen.append(model.stat().st_mtime_ns) if model.exists() else None)
    assert set(seen) == {written}
    assert (record.number, record.state) == (start.number, "finished")


def test_a_seed_that_replaces_one_that_learned_nothing_takes_its_place(folded: SweepPlan) -> None:
    base = folded.base.model_copy(update={"epochs": 2})
    study = TrialStudy(folded._replace(space=(Dimension("learning_rate", (1e-3, 2e-3)),), base=base))
    ended = []
    for mccs in ([(0.4, 0), (0.4, 0)], [(0.0, 0), (0.0, 0), (0.7, 1000), (0.7, 1000)]):
        start = study.start()
        assert start
        ended.append([report(study, start.number, 1, 1 + number % 2, mcc, base.seed + more)
                      for number, (mcc, more) in enumerate(mccs)])  # fmt: skip
    assert ended[1][-1] is False


def test_a_fold_that_stopped_early_is_done(folded: SweepPlan) -> None:
    base = folded.base.model_copy(update={"epochs": 10})
    study = TrialStudy(folded._replace(space=(Dimension("learning_rate", (1e-3, 2e-3)),), base=base))
    ended = []
    for mcc in (0.9, 0.1):
        start = study.start()
        assert start
        ended += [report(study, start.number, fold, epoch, mcc) for fold in (1, 2) for epoch in (1, 2, 3, 4)]
    assert ended[:8] == [False] * 8
    assert ended[12]  # the first epoch of the second fold is past the half


def test_a_sweep_of_which_all_trials_ended_early_says_so(plan: SweepPlan) -> None:
    study = TrialStudy(plan)
    start = study.start()
    assert start
    study.end(TrialRecord(start.number, "pruned", start.settings, None, [], 1.0))
    with pytest.raises(
        VerdictError, match=r"\(1 trial ended early, .*; expected one: try other values, or the same ones"
    ):
        sweep_here(plan._replace(deadline=time.time() - 1))


def test_validation_decides_between_trials() -> None:
    trials = [
        TrialRecord(number, state, {}, mcc, [], 1.0)  # type: ignore[arg-type]
        for number, (state, mcc) in enumerate(
            [("finished", 0.2), ("pruned", 0.9), ("finished", 0.5), ("finished", 0.5), ("failed", None)]
        )
    ]
    assert best_trial(trials).number == 2


@pytest.mark.parametrize("mcc", [float("inf"), float("nan")])
def test_what_is_no_number_is_not_the_best(plan: SweepPlan, mcc: float) -> None:
    study = TrialStudy(plan)
    start = study.start()
    assert start
    ended = study.end(TrialRecord(start.number, "finished", start.settings, mcc, [mcc], 1.0))
    assert (ended.state, ended.mcc) == ("failed", None)
    assert ended.error == f"its validation MCC is {mcc}; expected a number from -1 to 1"
