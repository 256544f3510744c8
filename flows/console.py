"""What the commands print for people."""

import datetime
import shutil
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

SHOWN = 10  # contradictions
COLOURS = {"PROMOTE": "bold green", "HOLD": "bold yellow", "REJECT": "bold red"}


def show_outcome(outcome: dict[str, Any]) -> None:
    """Print how long each step took, the verdict with its reasons, and where everything lies."""
    console = _console()
    steps = _table("step", "seconds")
    for name, seconds in outcome["seconds"].items():
        steps.add_row(name, f"{seconds:.1f}")
    console.print(steps)
    if outcome["unchanged"]:
        console.print("Nothing changed since this job finished; nothing was registered (--force runs it anyway).")
    decision = outcome["decision"]
    reasons = escape("; ".join(outcome["reasons"]))
    console.print(f"[{COLOURS[decision]}]{decision}[/]: {reasons}")
    console.print(
        f"MCC      {outcome['mcc']:.3f} (95% {outcome['mcc_low']:.3f} to {outcome['mcc_high']:.3f}) "
        f"on {outcome['holdout_rows']} holdout sentences, "
        f"{outcome.get('variant', 'fp32')} on {outcome['provider']}"
    )
    console.print(f"version  acceptability {outcome['version']}")
    console.print(f"report   {escape(outcome['report'])}")
    console.print(f"store    {escape(outcome['store'])}")


def show_recheck(outcome: dict[str, Any]) -> None:
    """Print a verdict that was computed again, and what it and its figures contradict."""
    console = _console()
    verdict, recorded = outcome["verdict"], outcome["recorded"]
    console.print(f"[{COLOURS[verdict['decision']]}]{verdict['decision']}[/]: {escape('; '.join(verdict['reasons']))}")
    console.print(f"rules     {', '.join(verdict['rules'])}")
    for name, value in verdict["numbers"].items():
        if value is not None:
            console.print(f"  {name:<18} {value if isinstance(value, int) else f'{value:.6g}'}")
    policy = verdict["policy"]
    console.print(f"policy    {escape(policy['version'])}, {policy['digest'][:12]}")
    console.print(f"candidate {verdict['candidate'][:12]}, champion {(verdict['incumbent'] or 'none')[:12]}")
    if recorded:
        console.print(f"recorded  {recorded['decision']} by {escape(str(recorded['actor']))}, {recorded['time']}")
    for text in outcome["contradictions"][:SHOWN]:
        console.print(f"[red]differs[/]   {escape(text)}")
    if len(outcome["contradictions"]) > SHOWN:
        console.print(f"[red]differs[/]   in {len(outcome['contradictions']) - SHOWN} more places (--json)")


def show_check(outcome: dict[str, Any]) -> None:
    """Print what was read, what is unusual, what failed and where the report lies."""
    console = _console()
    console.print(f"rows in      {outcome['rows_in']}")
    console.print(f"kept         {outcome['kept']}")
    console.print(f"quarantined  {_count(outcome['reasons'], outcome['quarantined'])}")
    for example in outcome["examples"]:
        console.print(f"  {escape(example)}")
    for role, counts in outcome["blemishes"].items():
        if any(counts.values()):
            console.print(f"{role}: {_blemishes(counts)}")
    if outcome["drift"]:
        shifts = ", ".join(f"{shift['name']} {shift['distance']:.3f}" for shift in outcome["drift"])
        console.print(f"drift        {shifts} (champion's data {outcome['reference'][:12]})")
    for warning in outcome["warnings"]:
        console.print(f"[yellow]warns[/]   {escape(warning)}")
    for failure in outcome["failures"]:
        console.print(f"[red]fails[/]   {escape(failure)}")
    passed = outcome["findings"] - len(outcome["failures"]) - len(outcome["warnings"])
    console.print(f"passed       {passed} of {outcome['findings']} expectations")
    console.print(f"report       {escape(outcome['report'])}")
    console.print("[bold green]ACCEPTED[/]" if outcome["passed"] else "[bold red]REFUSED[/]")


def show_watch(outcome: dict[str, Any]) -> None:
    """Print what a look at the data found and what followed."""
    console = _console()
    if outcome["check"]:
        show_check(outcome["check"])
    console.print(escape(outcome["why"]))
    if outcome["retrain"]:
        console.print("retrained:")
        show_outcome(outcome["retrain"])
    else:
        console.print("nothing was started")


def show_predictions(predictions: list[dict[str, Any]]) -> None:
    """Print one line a sentence."""
    table = _table("label", "probability", "version", "sentence")
    for answer in predictions:
        table.add_row(answer["label"], f"{answer['probability']:.3f}", answer["version"], escape(answer["sentence"]))
    _console().print(table)


def show_scores(outcome: dict[str, Any]) -> None:
    """Print how many rows were scored, what was quarantined, and where both lie.

    Where the answers themselves went to standard output, this goes to standard error.
    """
    streamed = outcome["out"] == "-"
    console = Console(highlight=False, soft_wrap=True, stderr=streamed)
    rate = outcome["sentences_per_second"]
    notes = [f"{outcome['reused']} rows by an earlier run"] if outcome["reused"] else []
    notes += [f"{rate:,.0f} sentences/s on {outcome['provider']}"] if rate else []
    console.print(f"rows in      {outcome['rows_in']}")
    console.print(f"scored       {outcome['scored']}" + (f" ({', '.join(notes)})" if notes else ""))
    console.print(f"quarantined  {_count(outcome['reasons'], outcome['quarantined'])}")
    for example in outcome["examples"]:
        console.print(f"  {escape(example)}")
    console.print(f"model        version {outcome['version'] or 'none'}, bundle {outcome['digest'][:12]}")
    for title, path in (("quarantine", outcome["quarantine"]), ("scores", None if streamed else outcome["out"])):
        if path:
            console.print(f"{title:<12} {escape(path)}")


def show_repository(written: dict[str, Any]) -> None:
    """Print which models were written, with which graph, and the command that serves them."""
    console = _console()
    fallback = "" if written["variant"] == "fp16" else "; the bundle holds no fp16 graph, so this one is slower"
    console.print(f"repository  {escape(written['repository'])}")
    console.print(f"models      {', '.join(written['models'])}")
    console.print(f"version     {written['version']}, bundle {written['digest'][:12]}")
    console.print(f"graph       {written['variant']} on GPUs{fallback}")
    console.print(f"next        {escape(written['next'])}")


def show_status(status: dict[str, Any]) -> None:
    """Print champion, challenger and the latest runs."""
    console = _console()
    console.print(f"store      {escape(status['store'])}")
    none = {"champion": "none, it vanished" if status["incumbency"] == "vanished" else "none", "challenger": "none"}
    for role, absent in none.items():
        version = status[role]
        console.print(f"{role:<10} {_describe(version) if version else absent}")
    if status["champion"] and status["champion"]["fault"]:
        console.print(f"[red]damaged[/]    {escape(status['champion']['fault'])}")
    for notice in status["notices"]:
        console.print(f"[yellow]notice[/]     {escape(notice)}")
    if not status["runs"]:
        console.print("no runs yet; start one: verdict retrain")
        return
    table = _table("started", "status", "verdict", "version", "MCC")
    for run in status["runs"]:
        started = datetime.datetime.fromtimestamp(run["start"]).strftime("%Y-%m-%d %H:%M")
        mcc = "" if run["mcc"] is None else f"{run['mcc']:.3f}"
        table.add_row(started, run["status"], run["verdict"] or "", run["version"] or "", mcc)
    console.print(table)


def show_comparison(outcome: dict[str, Any]) -> None:
    """Print two versions' figures side by side, how sure the difference is, and sentences on which they differ."""
    console = _console()
    one, other = outcome["versions"]
    console.print(f"holdout    {outcome['holdout'][:12]}, {outcome['rows']} sentences, {outcome['basis']}")
    table = _table("", f"version {one['version']}", f"version {other['version']}")
    table.add_row("verdict", one["verdict"] or "", other["verdict"] or "")
    table.add_row(
        "MCC", *(f"{side['mcc']:.3f} ({side['mcc_low']:.3f} to {side['mcc_high']:.3f})" for side in (one, other))
    )
    for name in ("accuracy", "f1", "auroc", "brier", "ece"):
        table.add_row(name, *(f"{side[name]:.3f}" for side in (one, other)))
    for kind in ("per_source", "per_length"):
        for name in sorted(one[kind].keys() & other[kind].keys()):
            rows = one[kind][name]["rows"]
            table.add_row(
                f"MCC of {escape(name)} ({rows})", *(f"{side[kind][name]['mcc']:.3f}" for side in (one, other))
            )
    table.add_row("answered by", *(f"{side['variant']} on {side['provider']}" for side in (one, other)))
    console.print(table)
    seen = outcome["comparison"]
    console.print(
        f"difference {seen['difference']:+.3f} ({seen['low']:+.3f} to {seen['high']:+.3f}, 95%), better in "
        f"{seen['probability']:.1%} of the resamples; McNemar p = {seen['mcnemar']:.3f}"
    )
    console.print(
        f"labels     {seen['agreement']:.1%} alike; right alone: {seen['candidate_alone']} and {seen['champion_alone']}"
    )
    for row in seen["sentences"]:
        console.print(f"  {row['label']}  {row['first']:.2f} {row['second']:.2f}  {escape(row['sentence'])}")


def show_move(move: dict[str, Any]) -> None:
    """Print what was decided, or what a dry run would have done."""
    went = f"champion {move['from'] or 'none'} -> {move['to'] or 'none'}"
    if move.get("dry_run"):
        _console().print(f"would do  {move['kind']}: {went}; its files are whole; nothing was moved")
        return
    _console().print(f"{move['kind']} of version {move['version']} by {escape(move['actor'])}: {went}")
    _console().print(f"reason    {escape(move['reason'])}")


def show_history(entries: list[dict[str, Any]]) -> None:
    """Print one line a move, oldest first."""
    if not entries:
        _console().print("no move yet; the first champion comes from: verdict retrain")
        return
    table = _table("when", "who", "what", "from", "to", "why")
    for entry in entries:
        when = "?"
        if entry["time"]:
            when = datetime.datetime.fromisoformat(entry["time"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        kind = entry["kind"] if entry["time"] else f"[yellow]{entry['kind']}[/]"
        who, why = escape(entry["actor"] or "?"), escape(entry["reason"])
        table.add_row(when, who, kind, entry["from"] or "-", entry["to"] or "-", why)
    _console().print(table)


def show_deployments(outcome: dict[str, Any]) -> None:
    """Print what runs when, and what keeps watch over it."""
    console = _console()
    table = _table("deployment", "when")
    for held in outcome["deployments"]:
        when = ", ".join(held["schedules"]) or "on demand"
        table.add_row(held["name"], "paused" if held["paused"] else when)
    console.print(table)
    console.print(f"server       {escape(outcome['server'])}, work pool {outcome['pool']}")
    console.print(f"automations  {', '.join(outcome['automations'])}")


def show_pruned(outcome: dict[str, Any]) -> None:
    """Print what went, or would go."""
    console = _console()
    table = _table("what", "name", "MB", "why")
    for item in outcome["items"]:
        table.add_row(item["kind"], item["name"][:16], f"{item['megabytes']:.1f}", item["why"])
    if outcome["items"]:
        console.print(table)
    verb = "would go" if outcome["dry_run"] else "went"
    console.print(f"{len(outcome['items'])} things, {outcome['megabytes']:.1f} MB, {verb}")
    if outcome["closed"]:
        console.print(f"{len(outcome['closed'])} runs that said RUNNING for too long were closed in MLflow")


def show_checks(checks: list[dict[str, Any]]) -> None:
    """Print one line a check."""
    console = _console()
    for check in checks:
        mark = "[green]works[/]" if check["works"] else "[red]fails[/]"
        console.print(f"{mark}  {check['check']}: {escape(check['seen'])}")


def show_settings(rows: list[tuple[str, Any, str]]) -> None:
    """Print each setting with its value and the layer that set it."""
    table = _table("setting", "value", "from")
    for key, value, origin in rows:
        table.add_row(key, escape(str(value)), origin)
    _console().print(table)


def show_next_commands() -> None:
    """Print what one can do with a trained model, with the command as it can be called here."""
    console = _console()
    verdict = "verdict" if shutil.which("verdict") else sys.argv[0]
    console.print("next:")
    for command in (
        f'{verdict} predict "Who did you say that left?"',
        f"{verdict} status",
        f"{verdict} retrain --profile cola-small    # real CoLA, fetched once",
    ):
        console.print(f"  {command}")


def _describe(version: dict[str, Any]) -> str:
    mcc = "unknown" if version["mcc"] is None else f"{version['mcc']:.3f}"
    return f"version {version['version']}, MCC {mcc}, data {(version['dataset'] or 'unknown')[:12]}"


def _count(kinds: dict[str, int], total: int) -> str:
    shares = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{total} ({shares})" if shares else str(total)


def _blemishes(counts: dict[str, int]) -> str:
    """Write "23 rows that repeat a sentence (folded 40)" for each kind that occurs."""
    kinds: dict[str, dict[str, int]] = {}
    for what, count in counts.items():
        kind, _, how = what.partition(", ")
        kinds.setdefault(kind, {})[how] = count
    return "; ".join(
        f"{next(iter(ways.values()))} {kind}" + (f" (folded {ways['folded']})" if "folded" in ways else "")
        for kind, ways in kinds.items()
        if any(ways.values())
    )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, justify="right" if name in ("seconds", "probability", "MCC") else "left")
    return table


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)
