"""Prints the results of the commands in review.py for people."""

import datetime
from typing import Any

from flows.cli.show_requests import describe_estimate
from flows.cli.show_run import COLOURS, local_time, new_console, new_table
from flows.cli.terminal import escape
from tasks.core.printable import counted, shorten
from tasks.evaluation.shadow_summary import describe_shadow
from tasks.reporting.wording import FIGURE_LABELS, show_mcc

MAX_CONTRADICTIONS_SHOWN = 10  # --json has all
MAX_REASON_WIDTH = 100  # characters in a table; --json has all


def show_rejudge(outcome: dict[str, Any]) -> None:
    """Print a verdict that was computed again, and where it differs from the recorded one."""
    console = new_console()
    verdict, recorded = outcome["verdict"], outcome["recorded"]
    console.print(f"[{COLOURS[verdict['decision']]}]{verdict['decision']}[/]: {escape('; '.join(verdict['reasons']))}")
    console.print(f"rules     {', '.join(verdict['rules'])}")
    for name, value in verdict["numbers"].items():
        if value is not None:
            console.print(f"  {name:<22} {value if isinstance(value, int) else f'{value:.6g}'}")
    console.print(f"policy    {escape(verdict['policy']['version'])}, {verdict['policy_digest'][:12]}")
    champion = verdict["champion_digest"] or "none"
    console.print(f"candidate {verdict['candidate_digest'][:12]}, champion {champion[:12]}")
    if recorded:
        console.print(f"recorded  {recorded['decision']} by {escape(str(recorded['actor']))}, {recorded['time']}")
    for text in outcome["contradictions"][:MAX_CONTRADICTIONS_SHOWN]:
        console.print(f"[red]differs[/]   {escape(text)}")
    if len(outcome["contradictions"]) > MAX_CONTRADICTIONS_SHOWN:
        console.print(f"[red]differs[/]   in {len(outcome['contradictions']) - MAX_CONTRADICTIONS_SHOWN} more (--json)")


def show_status(status: dict[str, Any]) -> None:
    """Print champion and challenger, the latest runs and how they ended, the next runs, and notices."""
    console = new_console()
    console.print(f"store      {escape(status['store'])}" + ("" if status["initialised"] else ", not there"))
    absent = {"none": "none", "lost": "none, it was lost", "unknown": "unknown"}
    none = {"champion": absent.get(status["champion_state"], "none"), "challenger": "none"}
    if status["champion_state"] == "unknown":
        none["challenger"] = absent["unknown"]
    for role, absence in none.items() if status["initialised"] else ():
        version = status[role]
        console.print(f"{role:<10} {_describe(version) if version else absence}")
    if status["champion"] and status["champion"]["signature"]:
        console.print(f"signature  {escape(status['champion']['signature'])}")
    if status["challenger"] and status["challenger"]["shadow"]:
        console.print(f"shadow     {escape(status['challenger']['shadow'])}")
    disk = status["disk"]
    used = "" if disk["stores_gb"] is None else f", stores take {_size(disk['stores_gb'])}"
    prefect = f", of that Prefect's databases {_size(disk['prefect_gb'])}" if disk["prefect_gb"] else ""
    console.print(f"disk       {disk['free_gb']:.0f} GB free{used}{prefect}")
    if status["services"]:
        console.print(f"services   {', '.join(f'{name} {state}' for name, state in status['services'].items())}")
    if drift := status["drift"]:
        console.print(f"drift      {drift['seen']} ({local_time(drift['time'])})")
    if requests := status["requests"]:
        drifted = ", ".join(shift["name"] for shift in requests["drift"] if shift["drifted"]) or "none"
        moment, hours = local_time(requests["time"]), f"{requests['hours']:g} h"
        console.print(f"requests   {requests['answers']:,} in {hours}, drift: {drifted} ({moment})")
        console.print(f"estimate   {escape(describe_estimate(requests))}")
    if status["champion"] and status["champion"]["fault"]:
        console.print(f"[red]damaged[/]    {escape(status['champion']['fault'])}")
    for server in status["unreachable"]:
        console.print(f"[red]no answer[/]  {escape(server)}")
    for notice in status["notices"]:
        console.print(f"[yellow]notice[/]     {escape(notice)}")
    if status["runs"]:
        _show_runs(status["runs"])
    elif status["initialised"] and status["champion_state"] != "unknown":
        console.print("no runs yet; start one: verdict retrain")
    if status["schedule"]:
        _show_schedule(status["schedule"])


def _show_runs(runs: list[dict[str, Any]]) -> None:
    table = new_table("started", "status", "verdict", "version", "MCC", "why")
    for run in runs:
        mcc = "" if run["mcc"] is None else f"{run['mcc']:.3f}"
        started = local_time(datetime.datetime.fromtimestamp(run["start"], datetime.UTC).isoformat())
        table.add_row(started, run["status"], run["verdict"] or "", run["version"] or "", mcc, _short(run["why"]))
    new_console().print(table)


def _show_schedule(schedule: dict[str, Any]) -> None:
    """Print the runs that Prefect started, also those without an MLflow run, and those that are scheduled."""
    console = new_console()
    console.print(f"Prefect    {escape(schedule['server'])}")
    table = new_table("deployment", "when", "state", "why")
    for run in schedule["last"]:
        table.add_row(run["deployment"], local_time(run["time"]), run["state"], _short(run["why"]))
    for run in schedule["next"]:
        waits = f"waits for {run['waits_for']}" if run["waits_for"] else ""
        state = "[yellow]late[/]" if run["late"] else "scheduled"
        table.add_row(run["deployment"], local_time(run["time"]), state, escape(waits))
    if table.row_count:
        console.print(table)
    else:
        console.print("nothing is scheduled; create the schedules: verdict deploy --data DIR")


def show_comparison(outcome: dict[str, Any]) -> None:
    """Print the figures of two versions side by side, their difference, and sentences on which they differ."""
    console = new_console()
    one, other = outcome["versions"]
    names = [f"version {side['version']}" for side in (one, other)]
    console.print(f"holdout    {outcome['holdout'][:12]}, {outcome['rows']} sentences, {outcome['basis']}")
    table = new_table("", *names)
    table.add_row("verdict", one["verdict"] or "", other["verdict"] or "")
    table.add_row(
        "MCC (95% CI)",
        *(f"{side['mcc']:.3f} ({side['mcc_low']:.3f} to {side['mcc_high']:.3f})" for side in (one, other)),
    )
    for name, (label, _) in FIGURE_LABELS.items():
        table.add_row(label, *(f"{side[name]:.3f}" for side in (one, other)))
    for kind in ("per_source", "per_length"):
        for name in sorted(one[kind].keys() & other[kind].keys()):
            rows = one[kind][name]["rows"]
            values = (show_mcc(side[kind][name]["mcc"]) for side in (one, other))
            table.add_row(f"MCC of {escape(name) or 'no source'} ({rows})", *values)
    devices = (side["provider"].removesuffix("ExecutionProvider") for side in (one, other))
    table.add_row(
        "answered by", *(f"{side['variant']} on {on}" for side, on in zip((one, other), devices, strict=True))
    )
    console.print(table)
    _show_paired(outcome["comparison"], *names)
    if shadow := outcome["shadow"]:
        console.print(f"shadow     version {shadow['challenger']['version']}: {escape(describe_shadow(shadow))}")
    if outcome["changes"]:
        changes = new_table("made with", *names)
        for change in outcome["changes"]:
            changes.add_row(*(_short(change[name]) for name in ("what", "first", "second")))
        console.print(changes)
    if listed := len(outcome["comparison"]["sentences"]):
        differing = outcome["comparison"]["differing"]
        first = f", the first {listed} of {differing}" if differing > listed else ""
        console.print(f'sentences that they label differently{first}, with the probability of "acceptable":')
        sentences = new_table("label", *names, "sentence")
        for row in outcome["comparison"]["sentences"]:
            given = ("none" if row[side] is None else f"{row[side]:.2f}" for side in ("first", "second"))
            sentences.add_row(outcome["labels"][row["label"]], *given, escape(row["sentence"]))
        console.print(sentences)


def _show_paired(paired: dict[str, Any], first: str, second: str) -> None:
    """Print the paired comparison of two versions."""
    console = new_console()
    console.print(
        f"difference {paired['difference']:+.3f} (95% CI {paired['low']:+.3f} to {paired['high']:+.3f}), better in "
        f"{paired['probability']:.1%} of the resamples; McNemar's test p = {paired['mcnemar']:.3g}"
    )
    console.print(
        f"labels     {paired['agreement']:.1%} equal; of the others {first} has {paired['candidate_alone']} right, "
        f"{second} {paired['champion_alone']}"
    )
    console.print(
        f"p-values   permutation test, one-sided: better {paired['p_better']:.2g}, worse {paired['p_worse']:.2g}"
    )


def show_change(change: dict[str, Any]) -> None:
    """Print a change of the champion alias, or what a dry run would have changed."""
    alias = f"champion {change['from'] or 'none'} -> {change['to'] or 'none'}"
    if change.get("dry_run"):
        new_console().print(f"would do  {change['kind']}: {alias}; its files are intact; nothing was changed")
        return
    if change.get("unrecorded"):
        new_console().print(f"version {change['version']} is champion already, since {local_time(change['time'])}:")
    new_console().print(f"{change['kind']} of version {change['version']} by {escape(change['actor'])}: {alias}")
    new_console().print(f"reason    {escape(change['reason'])}")
    if change.get("unrecorded"):
        new_console().print(f"[yellow]not recorded[/]  {escape(change['unrecorded'])}")
    if change.get("repeated"):
        new_console().print(f"done      at {change['time']} already; to go further back: verdict rollback --to VERSION")


def show_history(entries: list[dict[str, Any]]) -> None:
    """Print one line per change, oldest first."""
    if not entries:
        new_console().print("no champion yet; train the first one: verdict retrain")
        return
    table = new_table("when", "who", "what", "from", "to", "why", "signature")
    for entry in entries:
        when = "?"
        if entry["time"]:
            when = datetime.datetime.fromisoformat(entry["time"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        kind = escape(entry["kind"]) if entry["time"] else f"[yellow]{entry['kind']}[/]"
        texts = (entry["from"] or "-", entry["to"] or "-", entry["reason"], entry["signed_by"] or "")
        table.add_row(when, escape(entry["actor"] or "?"), kind, *map(escape, texts))
    new_console().print(table)


def show_verified(outcome: dict[str, Any]) -> None:
    """Print what was checked, who signed what, and what nothing covers."""
    console = new_console()
    console.print(f"[green]intact[/]      {escape(outcome['what'])}, bundle {outcome['digest'][:12]}")
    console.print(f"manifest    {outcome['manifest_digest']}")
    for what, signed in outcome["files"].items():
        console.print(f"signature   {what}: {escape(signed)}")
    for record in outcome["records"]:
        console.print(f"decision    {escape(record)}")
    for text in outcome["not_covered"]:
        console.print(f"not covered {text}")
    if outcome["copy"]:
        console.print(f"copy        {escape(outcome['copy'])}")


def show_deployments(outcome: dict[str, Any]) -> None:
    """Print the deployments with their schedules, and the automations."""
    console = new_console()
    table = new_table("deployment", "when")
    for held in outcome["deployments"]:
        when = ", ".join(held["schedules"]) or "on demand"
        table.add_row(held["name"], "paused" if held["paused"] else when)
    console.print(table)
    console.print(f"server       {escape(outcome['server'])}, work pool {outcome['pool']}")
    console.print(f"automations  {', '.join(outcome['automations'])}")
    for notice in outcome["notices"]:
        console.print(f"notice       {escape(notice)}")


def show_pruned(outcome: dict[str, Any]) -> None:
    """Print what was deleted, or would be."""
    console = new_console()
    table = new_table("what", "name", "MB", "why")
    for item in outcome["items"]:
        table.add_row(item["kind"], item["name"][:16], f"{item['megabytes']:.1f}", item["why"])
    if outcome["items"]:
        console.print(table)
    verb = "would be deleted" if outcome["dry_run"] else "deleted"
    console.print(f"{counted(len(outcome['items']), 'item')}, {outcome['megabytes']:.1f} MB, {verb}")
    if outcome["closed"]:
        console.print(f"closed: {counted(len(outcome['closed']), 'MLflow run')} whose process is gone")


def show_checks(checks: list[dict[str, Any]]) -> None:
    """Print one line per check."""
    console = new_console()
    for check in checks:
        mark = "[green]works[/]" if check["works"] else "[red]fails[/]"
        console.print(f"{mark}  {check['check']}: {escape(check['seen'])}")


def _describe(version: dict[str, Any]) -> str:
    mcc = "unknown" if version["mcc"] is None else f"{version['mcc']:.3f}"
    text = f"version {version['version']}, MCC {mcc}, data {(version['dataset'] or 'unknown')[:12]}"
    return f"{text}, since {local_time(version['since'])} ({_age(version['since'])})" if version.get("since") else text


def _size(gigabytes: float) -> str:
    return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{gigabytes * 1_000:.0f} MB"


def _age(moment: str) -> str:
    """Return how long ago a time was: "12 min", "5 h", "3 days"."""
    passed = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(moment)
    hours = passed.total_seconds() / 3_600
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.0f} h" if hours < 48 else f"{passed.days} days"


def _short(text: str) -> str:
    return escape(shorten(" ".join(text.splitlines()), MAX_REASON_WIDTH))
