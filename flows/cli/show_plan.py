"""Prints what a retraining run would do, for people."""

from typing import TYPE_CHECKING, Any

from flows.cli.show_run import new_console
from flows.cli.terminal import escape
from tasks.core.printable import counted, shorten
from tasks.evaluation.run_diff import UNKNOWN

if TYPE_CHECKING:
    from flows.jobs.plan import RetrainPlan

HEADLINES = {
    "train": "[bold green]would train[/] a candidate: {why}",
    "resume": "[bold green]would resume[/]: {why}; finished is {finished}",
    "nothing": "[bold]would do nothing[/]: {why} (--force trains again)",
    "refused": "[bold red]would be refused[/]: {why}",
    "busy": "[bold red]would fail[/]: {why}",
}
MAX_VALUE_CHARS = 60  # of a setting's value; --json has all


def show_plan(plan: "RetrainPlan") -> None:
    """Print what would be done and why, what changed since the champion, and what the gate says."""
    console = new_console()
    finished = ", ".join(plan["finished"]) or "no step"
    console.print(HEADLINES[plan["action"]].format(why=escape(plan["why"]), finished=finished))
    champion = plan["champion"]
    if champion:
        mcc = "unknown" if champion["mcc"] is None else f"{champion['mcc']:.3f}"
        console.print(f"champion  version {champion['version']}, MCC {mcc}")
    console.print(f"job       {plan['job']}, encoder {escape(plan['encoder'])}, on {plan['device']}")
    if plan["changes"]:
        _show_changes(plan["changes"])
    for role, rows in plan["rows"].items():
        if rows is None:
            console.print(f"{role}: other rows; which ones is unknown, as the champion's snapshot is gone")
            continue
        console.print(
            f"{role}: {counted(rows['added'], 'sentence')} added, {rows['removed']} removed, "
            f"{rows['relabelled']} relabelled"
        )
        for kind, sentences in rows["examples"].items():
            for sentence in sentences:
                console.print(f"  {kind}: {escape(sentence)}")
    _show_gate(plan["gate"])
    does_it = plan["action"] not in ("refused", "busy")
    console.print("nothing was started" + "; without --dry-run this command does it" * does_it)


def _show_changes(changes: list[dict[str, str]]) -> None:
    """Print a line for each change, and one for all that the champion's run, of an older release, did not record."""
    console = new_console()
    known = [change for change in changes if change["before"] != UNKNOWN]
    for change in known:
        before, now = (escape(shorten(change[name], MAX_VALUE_CHARS)) for name in ("before", "now"))
        console.print(f"changed   {escape(change['what'])}: {before} -> {now}")
    if unknown := len(changes) - len(known):
        console.print(
            f"          {counted(unknown, 'value')} more that the champion's run did not record: --json has all"
        )


def _show_gate(gate: dict[str, Any]) -> None:
    """Print the gate's answer in a few lines; verdict check has more."""
    console = new_console()
    for colour, kind, lines in (("yellow", "warns", gate["warnings"]), ("red", "fails", gate["failures"])):
        for line in lines:
            console.print(f"[{colour}]{kind}[/]     {escape(line)}")
    passed = gate["results"] - len(gate["failures"]) - len(gate["warnings"])
    answer = "accepted" if gate["passed"] else "refused"
    met = f"{passed} of {gate['results']} expectations met"
    console.print(f"gate      {answer}: {gate['kept']} of {gate['rows_in']} rows kept, {met}")
    if gate["remedy"]:
        console.print(f"          {escape(gate['remedy'])}")
