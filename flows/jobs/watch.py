"""Checks the data once: is it new, does it pass the gate, has it drifted, and is a retraining run due?

Where watch.request_log names a request log, also what was served: has it drifted, has the estimated MCC dropped?
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event

from flows.commands.check import champion_profile, describe_gate, find_tokenizer, read_data, run_gate, summarise
from flows.commands.request_review import summarise_log
from flows.jobs.dead_runs import close_dead_runs
from flows.jobs.job import name_subject
from flows.jobs.prefect_artifacts import name_run
from flows.jobs.retrain import retrain
from flows.notifications import alert_failure
from flows.outcome import RetrainOutcome
from flows.steps import Timer, retrying_task, timed_task
from tasks.core.errors import DataRejected, UnreachableError, VerdictError
from tasks.core.files import json_digest, read_json, write_json
from tasks.core.settings import Settings, WatchSettings
from tasks.core.timestamps import utc_now
from tasks.data.drift import describe_drifted, drifted_names
from tasks.data.gate import raise_if_failed
from tasks.data.ingestion import Dataset
from tasks.data.sources import shown_addresses
from tasks.inference.bundle import CHAMPION
from tasks.registry import lookup
from tasks.registry.store import is_uninitialised, locate_store
from tasks.serving.summary_file import RequestSummary

read = timed_task("read data", read_data)  # downloads have retries of their own
examine = timed_task("check data", run_gate)
read_champion_profile = retrying_task("find champion", champion_profile)
find_alias = retrying_task("find champion", lookup.find_alias)
read_served = retrying_task("read requests", summarise_log)


@dataclasses.dataclass(frozen=True)
class WatchOutcome:
    """What one check of the data found and started."""

    dataset: str
    """Digest of the data."""
    previous: str | None
    """Digest of the data at the last check, or of the champion's; None where there is neither."""
    changed: bool
    why: str
    """What was found and what follows from it, in one line."""
    action: Literal["none", "retrain"] = "none"
    check: dict[str, Any] | None = None
    """Summary of the gate; None for unchanged data."""
    requests: RequestSummary | None = None
    """Summary of what was served; None where watch.request_log names no request log."""
    retrain: RetrainOutcome | None = None
    """Outcome of the retraining run, where one was started."""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    """Seconds of each step, in order; a retraining run has its own."""

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain values: the document of --json and Prefect's results."""
        return dataclasses.asdict(self) | {"retrain": self.retrain.to_json() if self.retrain else None}


@flow(name="watch", result_serializer="json", persist_result=True, on_failure=[alert_failure])
def watch(settings: dict[str, Any], origins: dict[str, str], home: str) -> WatchOutcome:
    """Check the data behind the addresses once, and retrain where that is due; return what the command prints.

    Data counts as seen when its check ended without an error, with or without a retraining run; rejected data and
    killed runs are checked again. Each check emits one Prefect event: verdict.data.unchanged, .changed, .drifted,
    .refused or, where the data cannot be read, .failed.

    Args:
        settings: resolved settings, as plain values; watch.retrain_on says when to retrain.
        origins: the layer each dotted setting came from.
        home: folder of the stores.

    Raises:
        UsageError: if the data is not there.
        DataRejected: if the gate rejects it.
        VerdictError: if the retraining run fails.
    """
    chosen, timer = Settings.model_validate(settings), Timer()
    record = Path(home) / "watch" / f"{name_addresses(chosen)}.json"
    with contextlib.suppress(UnreachableError):  # a killed run is RUNNING in MLflow until another process ends it
        close_dead_runs(locate_store(home), home)
    try:
        data = read(timer, chosen.data, home)
    except VerdictError as error:
        event = "refused" if isinstance(error, DataRejected) else "failed"
        emit(event, record.stem, chosen, {"why": str(error)})
        raise
    digest, seen = data["digest"], last_seen(record, home, timer)
    name_run(f"{name_subject(chosen, digest)} {'unchanged' if digest == seen else 'changed'}")
    requests = read_served(timer, chosen, home) if chosen.watch.request_log else None
    served = describe_served(requests, chosen.watch) if requests else ""
    fresh = digest != seen or (bool(served) and digest != champion_data(home, timer))
    if not fresh:
        why = f"the data is unchanged ({digest[:12]})" + (f"; {served}, but no data is new" if served else "")
        emit("unchanged", record.stem, chosen, {"dataset": digest, "previous": seen, "why": why})
        return WatchOutcome(digest, seen, False, why, requests=requests, seconds=timer.seconds)
    gate, due, why = inspect_data(data, chosen, home, record.stem, seen, timer)
    due, why = due or bool(served), f"{why}; {served}" if served else why
    # The run reads and checks the same data again, which takes seconds: a job depends on nothing outside its folder.
    retrained = retrain(settings, origins, home) if due else None
    drift = describe_drifted(gate["drift"]) if gate["reference"] else None
    seen_now = {"dataset": digest, "why": why, "time": utc_now()}
    write_json(record, seen_now | {"drift": drift, "drift_from": gate["reference"]})
    action: Literal["none", "retrain"] = "retrain" if due else "none"
    return WatchOutcome(digest, seen, digest != seen, why, action, gate, requests, retrained, timer.seconds)


def inspect_data(
    data: Dataset, settings: Settings, home: str, name: str, previous: str | None, timer: Timer
) -> tuple[dict[str, Any], bool, str]:
    """Run the gate on new data and emit the event.

    Args:
        data: snapshots of the new data.
        settings: of the check.
        home: folder of the stores.
        name: of the watched addresses.
        previous: digest of the data at the last check.
        timer: of this flow run.

    Returns:
        The gate's summary, whether to retrain, and why.

    Raises:
        DataRejected: if the gate rejects the data.
    """
    folder = Path(home) / "checks" / data["digest"][:16]
    folder.mkdir(parents=True, exist_ok=True)
    gate = examine(timer, data, settings, str(folder), find_tokenizer(settings), read_champion_profile(timer, home))
    create_markdown_artifact(key="data-gate", markdown=describe_gate(gate), description="Result of the data gate")
    summary, payload = summarise(gate), {"dataset": data["digest"], "previous": previous}
    if not gate["passed"]:
        emit("refused", name, settings, payload | {"why": summary["failures"][0]})
        raise_if_failed(gate)
    drifted = drifted_names(gate["drift"])
    due, why = should_retrain(settings.watch.retrain_on, drifted, gate["reference"])
    emit("drifted" if drifted else "changed", name, settings, payload | {"why": why, "drifted": drifted})
    return summary, due, why


def should_retrain(mode: str, drifted: list[str], reference: str | None) -> tuple[bool, str]:
    """Return whether new data that passed the gate calls for a retraining run, and why.

    Args:
        mode: never, on_change or on_drift.
        drifted: what drifted from the champion's data: label, length, source, vocabulary.
        reference: digest of the data that the champion was trained on; None: nothing to compare with.
    """
    drift = (
        f"it drifted from the champion's ({', '.join(drifted)})" if drifted else "it did not drift from the champion's"
    )
    seen = "the data changed; " + (drift if reference else "there is no champion's data to compare it with")
    due = mode == "on_change" or (mode == "on_drift" and (bool(drifted) or reference is None))
    return due, f"{seen}; watch.retrain_on = {mode}"


def last_seen(record: Path, home: str, timer: Timer) -> str | None:
    """Return the digest of the data at the last check, else of the data that the champion was trained on."""
    if record.is_file():
        return str(read_json(record)["dataset"])
    return champion_data(home, timer)


def champion_data(home: str, timer: Timer) -> str | None:
    """Return the digest of the data that the champion was trained on; None without a champion."""
    store = locate_store(home)
    champion = None if is_uninitialised(store) else find_alias(timer, store, CHAMPION, fetch=False)
    return champion["dataset"] if champion else None


def describe_served(summary: RequestSummary, settings: WatchSettings) -> str:
    """Return why what was served calls for a retraining run; empty where it does not."""
    reasons = []
    drifted = drifted_names(summary["drift"])
    if drifted and settings.retrain_on_served in ("on_drift", "on_either"):
        reasons.append(f"what is served drifted ({', '.join(drifted)})")
    estimate, holdout = summary["estimate"], summary["holdout"]
    dropped = estimate and holdout and estimate["high"] < holdout["mcc"] - settings.max_estimated_drop
    if estimate and holdout and dropped and settings.retrain_on_served in ("on_drop", "on_either"):
        reasons.append(f"the estimated MCC is {estimate['mcc']:.3f}, on the holdout it was {holdout['mcc']:.3f}")
    return "; ".join(reasons)


def name_addresses(settings: Settings) -> str:
    """Return 16 hex digits of the watched addresses and how they are read, which name the record of the last check."""

    def absolute(name: str) -> str:
        return str(Path(name).resolve()) if Path(name).exists() else name

    chosen = settings.data
    form = [chosen.train, chosen.holdout, chosen.columns, chosen.labels, chosen.max_chars, chosen.holdout_share]
    if chosen.text:
        form.append(absolute(chosen.text))
    return json_digest([[absolute(name) for name in chosen.path], form])[:16]


def emit(what: str, name: str, settings: Settings, payload: dict[str, Any]) -> None:
    """Emit a Prefect event that automations can react to."""
    payload = {key: payload.get(key) for key in ("dataset", "previous", "why", "drifted")}
    emit_event(
        event=f"verdict.data.{what}",
        resource={
            "prefect.resource.id": f"verdict.data.{name}",
            "prefect.resource.name": shown_addresses(settings.data.path),
        },
        payload=payload,
    )
