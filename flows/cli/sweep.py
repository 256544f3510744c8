"""The command that searches settings: it parses, calls and prints."""

import dataclasses
import re
from typing import Annotated, Any

import typer

from flows import environment
from flows.cli.options import (
    AsJson,
    DataOptions,
    TrainingDevice,
    TrialRayOptions,
    Verbose,
    print_result,
    with_option_groups,
)
from flows.cli.run import refuse_early, refuse_unusable_files, run_flow, shown
from tasks.cluster.calls import check_gpus
from tasks.cluster.connection import check_cluster
from tasks.core.errors import UsageError

UNITS = {"s": 1, "m": 60, "h": 3_600}

Folds = Annotated[
    int,
    typer.Option(
        min=1,
        max=20,
        help="Folds of each trial: every row validates once, and the mean MCC counts; 1 for one split.",
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        min=0,
        max=1_024,
        help="Trials side by side; 0 for one on each GPU, one on a CPU, with --ray as many as have room.",
    ),
]


@with_option_groups
def sweep(
    options: DataOptions,
    placement: TrialRayOptions,
    encoders: Annotated[str, typer.Option(metavar="A,B", help="Encoders to try, each as --encoder takes it.")] = "",
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Seeds of each trial; their mean MCC counts.")] = 1,
    folds: Folds = 1,
    trials: Annotated[int, typer.Option(min=1, max=10_000, help="Trials at most, earlier ones included.")] = 12,
    budget: Annotated[
        str, typer.Option(metavar="TIME", help="No other trial starts after it, for example 90s, 30m or 2h.")
    ] = "24h",
    workers: Workers = 0,
    device: TrainingDevice = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Search settings by validation MCC (--set KEY=A,B or KEY=LOW..HIGH), then retrain with the best ones."""
    seconds = parse_budget(budget)
    if placement.ray:
        check_cluster(placement.ray)
        check_gpus(placement.trial_gpus or 0)
    from tasks.training.search_space import GROUP_PREFIX, check_folds, encoders_of, make_space, split_assignments

    fixed, varied = split_assignments(options.settings or ())
    if encoders:
        varied[f"{GROUP_PREFIX}encoder"] = encoders
    seeded = dataclasses.replace(options, settings=[*fixed, f"{GROUP_PREFIX}seeds={seeds}"])

    def resolve(key: str, text: str) -> Any:
        one = dataclasses.replace(seeded, settings=[*(seeded.settings or ()), f"{key}={text}"])
        return getattr(one.resolve(device).settings.finetune, key.removeprefix(GROUP_PREFIX))

    resolved, space = seeded.resolve(device), make_space(varied, resolve)
    check_folds(folds, resolved.settings.finetune.teacher)
    refuse_early(resolved.settings, encoders_of(space, resolved.settings.finetune.encoder))
    refuse_unusable_files(resolved.settings.data)
    home = environment.usable_home()
    from flows.cli import show_sweep

    with shown("sweep", verbose):
        plain = [dimension._asdict() for dimension in space]
        cluster = placement.to_cluster(resolved.settings.finetune.device)
        arguments = (resolved.settings.model_dump(), resolved.origins, plain, trials, seconds, workers, home, cluster)
        outcome, _ = run_flow("sweep", home, *arguments, folds)
    print_result(outcome, as_json, show_sweep.show_sweep, outcome.to_json())


def parse_budget(text: str) -> float:
    """Return the seconds of a time such as 30m.

    Raises:
        UsageError: if it is no time.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not found:
        raise UsageError(f"--budget {text!r} is no time; expected a number and s, m or h, for example 30m")
    return float(found[1]) * UNITS[found[2]]
