"""Prints the results of the commands in run.py for people."""

import datetime
import shutil
import sys
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table

from flows.cli.show_requests import show_requests
from flows.cli.terminal import ResultConsole, escape, link_file
from tasks.core.printable import counted
from tasks.inference.bundle import MODEL_NAME

if TYPE_CHECKING:
    from flows.jobs.watch import WatchOutcome
    from flows.outcome import RetrainOutcome
    from tasks.core.settings_loader import SettingRow

COLOURS = {"PROMOTE": "bold green", "HOLD": "bold yellow", "REJECT": "bold red"}


def show_outcome(outcome: "RetrainOutcome", champion: tuple[str, str] | None = None) -> None:
    """Print the verdict with its reasons, the figures behind it, and where report and store are.

    Args:
        outcome: with the verdict.
        champion: version of the champion and when it was promoted (ISO 8601), where nothing ran.
    """
    console = new_console()
    decision = outcome.decision
    verdict = f"[{COLOURS[decision]}]{decision}[/]: {escape('; '.join(outcome.reasons))}"
    if outcome.unchanged:
        console.print(f"[bold]nothing changed[/]: {_describe_standing(outcome, champion)}")
    console.print(f"verdict  {verdict}" if outcome.unchanged else verdict)
    console.print(
        f"MCC      {outcome.mcc:.3f} (95% {outcome.mcc_low:.3f} to {outcome.mcc_high:.3f}) "
        f"on {outcome.holdout_rows} holdout sentences, "
        f"{outcome.variant} on {outcome.provider}"
    )
    console.print(f"version  {MODEL_NAME} {outcome.version}")
    console.print(f"report   {link_file(outcome.report)}")
    console.print(f"store    {escape(outcome.store)}")


def show_seconds(seconds: dict[str, float]) -> None:
    """Print the time of each step."""
    steps = new_table("step", "seconds")
    for name, taken in seconds.items():
        steps.add_row(name, f"{taken:.1f}")
    new_console().print(steps)


def show_check(outcome: dict[str, Any], verbose: bool = False) -> None:
    """Print row counts, quality issues, failed expectations and the path of the report; if `verbose`, drift too."""
    from tasks.data.row_features import describe_issues  # imports pandas

    console = new_console()
    console.print(f"rows in      {outcome['rows_in']}")
    console.print(f"kept         {outcome['kept']}")
    console.print(f"quarantined  {_count(outcome['reasons'], outcome['quarantined'])}")
    for example in outcome["examples"]:
        console.print(f"  {escape(example)}")
    for role, issues in outcome["quality_issues"].items():
        if shown := describe_issues(issues):
            console.print(f"{role}: {shown}")
    if outcome["drift"] and verbose:
        shifts = ", ".join(f"{shift['name']} {shift['distance']:.3f}" for shift in outcome["drift"])
        console.print(f"drift        {shifts} (champion's data {outcome['reference'][:12]})")
    for warning in outcome["warnings"]:
        console.print(f"[yellow]warns[/]   {escape(warning)}")
    for failure in outcome["failures"]:
        console.print(f"[red]fails[/]   {escape(failure)}")
    passed = outcome["results"] - len(outcome["failures"]) - len(outcome["warnings"])
    console.print(f"passed       {passed} of {outcome['results']} expectations")
    console.print(f"report       {link_file(outcome['report'])}")
    verdict = "[bold green]ACCEPTED[/]" if outcome["passed"] else "[bold red]REFUSED[/]: " + escape(outcome["remedy"])
    console.print(verdict)


def show_watch(outcome: "WatchOutcome", verbose: bool = False) -> None:
    """Print what a check of the data found and started."""
    console = new_console()
    if outcome.check:
        show_check(outcome.check, verbose)
    if outcome.requests:
        show_requests(outcome.requests)
    console.print(escape(outcome.why))
    if outcome.retrain:
        console.print("retrained:")
        show_outcome(outcome.retrain)
    else:
        console.print("no retraining run was started")


def show_predictions(predictions: list[dict[str, Any]]) -> None:
    """Print one line a sentence; one that is longer than the model reads is marked."""
    table = new_table("label", "probability", "version", "sentence")
    for answer in predictions:
        mark = "[yellow](truncated)[/] " if answer["truncated"] else ""
        sentence = mark + escape(answer["sentence"])
        table.add_row(answer["label"], f"{answer['probability']:.3f}", answer["version"], sentence)
    new_console().print(table)


def show_examples(predictions: list[dict[str, Any]]) -> None:
    """Print the answers to the two sentences that every new champion classifies, and where these come from."""
    new_console().print("two examples, which are not from your data and say nothing about it:")
    show_predictions(predictions)


def show_scores(outcome: dict[str, Any]) -> None:
    """Print how many rows were scored and quarantined, and the paths of both files.

    If the answers went to standard output, this goes to standard error.
    """
    streamed = outcome["out"] == "-"
    console = ResultConsole(stderr=streamed)
    rate = outcome["sentences_per_second"]
    notes = [f"{counted(outcome['reused'], 'row')} from an earlier run"] if outcome["reused"] else []
    notes += [f"{rate:,.0f} sentences/s on {outcome['provider']}"] if rate else []
    console.print(f"rows in      {outcome['rows_in']}")
    console.print(f"scored       {outcome['scored']}" + (f" ({', '.join(notes)})" if notes else ""))
    if outcome["truncated"]:
        console.print(f"truncated    {outcome['truncated']} of them: only the beginning was judged")
    console.print(f"quarantined  {_count(outcome['reasons'], outcome['quarantined'])}")
    for example in outcome["examples"]:
        console.print(f"  {escape(example)}")
    console.print(f"model        version {outcome['version'] or 'none'}, bundle {outcome['digest'][:12]}")
    for title, path in (("quarantine", outcome["quarantine"]), ("scores", None if streamed else outcome["out"])):
        if path:
            console.print(f"{title:<12} {escape(path)}")


def show_repository(written: dict[str, Any]) -> None:
    """Print the models that were written, their graph, and the command that serves them."""
    console = new_console()
    fallback = "" if written["variant"] == "fp16" else "; the bundle has no fp16 graph, which would be faster"
    console.print(f"repository  {escape(written['repository'])}")
    console.print(f"models      {', '.join(written['models'])}")
    console.print(f"version     {written['version']}, bundle {written['digest'][:12]}")
    console.print(f"graph       {written['variant']} on GPUs{fallback}")
    console.print(f"next        {escape(written['next'])}")


def show_settings(rows: list["SettingRow"]) -> None:
    """Print each setting with its value and the layer that set it."""
    table = new_table("setting", "value", "from")
    for key, value, origin in rows:
        table.add_row(key, escape(str(value)), origin)
    new_console().print(table)


def _describe_standing(outcome: "RetrainOutcome", champion: tuple[str, str] | None) -> str:
    if not champion:
        return f"the verdict on version {outcome.version} stands"
    promoted = f" (promoted {local_time(champion[1])})" if champion[1] else ""
    return f"version {champion[0]}{promoted} is champion"


def show_next_commands(outcome: "RetrainOutcome", sample: bool = False) -> None:
    """Print the next commands to try after a verdict, as they can be called here.

    Args:
        outcome: with the verdict.
        sample: whether the bundled sample was trained on, so that a real corpus is worth a try.
    """
    console = new_console()
    verdict = "verdict" if shutil.which("verdict") else sys.argv[0]
    version = outcome.version
    compare = [f"{verdict} compare {version}"] if outcome.champion_before else []
    commands = {
        "PROMOTE": [
            f'{verdict} predict "Who did you say that left?"',
            f"{verdict} report {version} --open",
            f"{verdict} retrain --profile cola-small    # real CoLA, downloaded once" if sample else f"{verdict} serve",
        ],
        "HOLD": [*compare, *(f"{verdict} {way} {version} --reason TEXT" for way in ("approve", "reject"))],
        "REJECT": compare,
    }[outcome.decision]
    if outcome.unchanged and outcome.decision == "PROMOTE":
        console.print("nothing to do; to run it all the same: --force")
        return
    console.print("next:" if outcome.decision == "PROMOTE" else "next: read the report" + ", then:" * bool(commands))
    for command in commands:
        console.print(f"  {command}")


def local_time(moment: str) -> str:
    """Return a moment (ISO 8601) in local time, to the minute; an empty one stays so."""
    return datetime.datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M") if moment else ""


def _count(kinds: dict[str, int], total: int) -> str:
    shares = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{total} ({shares})" if shares else str(total)


def new_table(*columns: str) -> Table:
    """Return a table without lines; columns of figures are right-aligned."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        justify: Literal["left", "right"] = "right" if name in ("seconds", "probability", "MCC") else "left"
        table.add_column(name, justify=justify, overflow="fold")
    return table


def new_console() -> ResultConsole:
    """Return a console for standard output."""
    return ResultConsole()
