"""A small sweep: what tests of sweeps try, and a sweep in the process of the test."""

import time
from pathlib import Path
from typing import Any

import pytest
from toy import recipe

from tasks.core.finetune_settings import FinetuneSettings
from tasks.data.folds import Fold
from tasks.training.process_group import ProcessGroup
from tasks.training.search_space import Dimension
from tasks.training.sweep import OnRecord, run_sweep
from tasks.training.trials import SweepPlan, TrialRecord

RATES = Dimension("learning_rate", (1e-3, 3e-3))


def sweep_plan(folder: Path, encoder: Path, split: tuple[str, str, str]) -> SweepPlan:
    """Return a sweep of four trials."""
    fields = FinetuneSettings.model_fields
    base = {name: value for name, value in recipe(encoder).model_dump().items() if name in fields}
    return SweepPlan(
        folder=str(folder),
        space=(Dimension("epochs", (1, 2)), RATES),
        base=FinetuneSettings.model_validate(base | {"encoder": "tiny"}),
        encoders={"tiny": str(encoder)},
        teacher=None,
        folds=(Fold(*split[:2]),),
        text="",
        holdouts=(),
        device="cpu",
        trials=10,
        deadline=time.time() + 600,
    )


def sweep_here(plan: SweepPlan, on_record: OnRecord = lambda _: None) -> list[TrialRecord]:
    """Run a sweep in this process, which spares the start of another one."""
    with pytest.MonkeyPatch.context() as patch:

        def launch(function: Any, _size: int, plan: SweepPlan, *, on_message: Any, **_options: Any) -> None:
            function(ProcessGroup(0, 1, "cpu", on_message), plan)

        patch.setattr("tasks.training.sweep.launch", launch)
        return run_sweep(plan, 1, on_record)
