"""Prints the outcome of a sweep for people."""

from typing import TYPE_CHECKING, Any

from flows.cli.show_run import new_console, new_table, show_next_commands, show_outcome
from flows.cli.terminal import escape
from tasks.core.printable import counted

if TYPE_CHECKING:
    from flows.jobs.sweep import SweepOutcome

SHOWN_TRIALS = 20  # the best; all are in MLflow and in --json


def show_sweep(outcome: "SweepOutcome") -> None:
    """Print the trials, the best first, and the verdict on the winner."""
    console = new_console()
    names = list(outcome.trials[0]["settings"])
    table = new_table("trial", "MCC", "seconds", *names, "")
    for trial in outcome.trials[:SHOWN_TRIALS]:
        values = [escape(str(trial["settings"].get(name, ""))) for name in names]
        mcc = "" if trial["mcc"] is None else f"{trial['mcc']:.3f}"
        note = "" if trial["state"] == "finished" else escape(trial["error"] or trial["state"])
        table.add_row(str(trial["number"]), mcc, f"{trial['seconds']:.0f}", *values, note)
    console.print(table)
    if (left := len(outcome.trials) - SHOWN_TRIALS) > 0:
        console.print(f"{counted(left, 'more trial')}: --json")
    figure = f"validation MCC {outcome.trials[0]['mcc']:.3f}"
    of = f", mean of {outcome.folds} folds" if outcome.folds > 1 else ""
    console.print(f"best     {escape(_describe(outcome.best))} ({figure}{of})")
    show_outcome(outcome.retrain)
    show_next_commands(outcome.retrain)


def _describe(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in settings.items())
