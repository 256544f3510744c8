"""Sweeps: each combination once, nothing lost by a kill, no trial after the budget."""

import time
from pathlib import Path
from typing import Any

import pytest
from toy import recipe

from tasks.core.errors import VerdictError
from tasks.core.finetune_settings import FinetuneSettings
from tasks.training.process_group import ProcessGroup
from tasks.training.search_space import Dimension, all_combinations
from tasks.training.sweep import SweepPlan, TrialEpoch, TrialRecord, best_trial, open_study, run_sweep

EPOCHS = Dimension("epochs", (1, 2))
RATES = Dimension("learning_rate", (1e-3, 3e-3))


@pytest.fixture
def plan(tmp_path: Path, tiny_encoder: Path, toy_split: tuple[str, str, str]) -> SweepPlan:
    fields = FinetuneSettings.model_fields
    base = {name: value for name, value in recipe(tiny_encoder).model_dump().items() if name in fields}
    settings = FinetuneSettings.model_validate(base | {"encoder": "tiny"})
    train, validation, _ = toy_split
    return SweepPlan(
        folder=str(tmp_path / "sweep"),
        space=(EPOCHS, RATES),
        base=settings,
        encoders={"tiny": str(tiny_encoder)},
        train=train,
        validation=validation,
        text="",
        device="cpu",
        trials=10,
        deadline=time.time() + 600,
    )


def sweep_here(plan: SweepPlan) -> list[TrialRecord]:
    """Run a sweep in this process, which spares the start of another one."""
    with pytest.MonkeyPatch.context() as patch:

        def launch(function: Any, _size: int, plan: SweepPlan, *, on_message: Any, **_options: Any) -> None:
            function(ProcessGroup(0, 1, "cpu", on_message), plan)

        patch.setattr("tasks.training.sweep.launch", launch)
        return run_sweep(plan, 1, lambda _record: None)


def settings_of(records: list[TrialRecord]) -> list[tuple[int, float]]:
    return sorted((record.settings["epochs"], record.settings["learning_rate"]) for record in records)


ALL = [(1, 1e-3), (1, 3e-3), (2, 1e-3), (2, 3e-3)]


def test_two_processes_try_each_combination_once_and_report_it(plan: SweepPlan) -> None:
    seen: list[TrialRecord | TrialEpoch] = []
    records = run_sweep(plan, 2, seen.append)
    assert settings_of(records) == ALL
    ended = [record for record in seen if isinstance(record, TrialRecord)]
    assert sorted(ended) == sorted(records)
    assert best_trial(records).mcc == max(record.mcc for record in records if record.state == "finished")
    assert all(record.mccs == [record.mcc] for record in records if record.state == "finished")
    assert not list((Path(plan.folder) / "trials").iterdir())


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
    assert sweep_here(over) == first
    assert sweep_here(plan._replace(trials=3))[:2] == first


def test_a_range_is_drawn_within_its_ends(plan: SweepPlan) -> None:
    space = (Dimension("epochs", (1,)), Dimension("learning_rate", (), 1e-4, 1e-3))
    records = sweep_here(plan._replace(space=space, trials=3))
    rates = [record.settings["learning_rate"] for record in records]
    assert len(set(rates)) == 3
    assert all(1e-4 <= rate <= 1e-3 for rate in rates)


def test_a_trial_that_cannot_be_trained_fails_alone(plan: SweepPlan, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    space = (Dimension("encoder", ("tiny", "broken")), Dimension("epochs", (1,)))
    encoders = plan.encoders | {"broken": str(tmp_path / "empty")}
    records = sweep_here(plan._replace(space=space, encoders=encoders))
    states = {record.settings["encoder"]: record.state for record in records}
    assert states == {"tiny": "finished", "broken": "failed"}
    assert next(record.error for record in records if record.state == "failed")


def test_validation_decides_between_trials() -> None:
    trials = [
        TrialRecord(number, state, {}, mcc, [], 1.0)  # type: ignore[arg-type]
        for number, (state, mcc) in enumerate(
            [("finished", 0.2), ("pruned", 0.9), ("finished", 0.5), ("finished", 0.5), ("failed", None)]
        )
    ]
    assert best_trial(trials).number == 2
