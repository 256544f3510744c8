"""The command requests: what the request log of `verdict serve` says of the champion."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import environment
from flows.cli.options import AsJson, print_result
from tasks.core.printable import counted, escape_controls

if TYPE_CHECKING:
    from tasks.serving.review_queue import WrittenQueue


def requests(
    log: Annotated[str, typer.Option(metavar="DIR", help="Request log [requests in the stores' folder].")] = "",
    hours: Annotated[
        float | None, typer.Option(min=0, help="Hours of the log that are read [watch.request_hours].")
    ] = None,
    queue: Annotated[
        str, typer.Option(metavar="FILE", help="New .csv or .tsv for sentences that a person should label.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="Most sentences in that file.")] = 200,
    feedback: Annotated[
        str, typer.Option(help="TSV file of the page's flags [feedback/feedback.tsv in the stores' folder].")
    ] = "",
    profile: Annotated[str, typer.Option(metavar="NAME|FILE", help="Settings with the limits of drift.")] = "sample",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, see: verdict settings.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what was served: volume, drift, MCC estimated without labels; queue sentences for a person."""
    environment.set_process_defaults()
    from flows.cli.show_requests import show_requests
    from tasks.core.settings_loader import load_settings, parse_setting
    from tasks.serving.review_queue import check_queue

    if queue:
        check_queue(queue)  # before anything is read
    flags: dict[str, Any] = dict(parse_setting(text) for text in settings or ())
    named = {"watch.request_log": log or None, "watch.request_hours": hours}
    chosen = load_settings(profile, flags | {key: value for key, value in named.items() if value is not None}).settings
    environment.show_log()
    from flows.commands.request_review import queue_sentences, review_requests

    found = review_requests(chosen, environment.verdict_home())
    written = queue_sentences(found, queue, limit, feedback, environment.verdict_home()) if queue else None
    print_result(found.summary, as_json, show_requests, {**found.summary, "queue": written})
    if written and not as_json:
        show_queue(written)


def show_queue(written: "WrittenQueue") -> None:
    """Print what was queued, and what to do with it."""
    if not written["sentences"]:
        print("queue      nothing to label, no file is written")
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in written["reasons"].items())
    print(escape_controls(f"queue      {counted(written['sentences'], 'sentence')} in {written['path']}: {reasons}"))
    fill = "fill in the labels (1 or 0), delete what stays open"
    print(escape_controls(f"next       {fill}: verdict retrain --data DIR --data {written['path']}"))
