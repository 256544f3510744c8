"""One look at the data: is it new, is it fit, has it drifted, and is a retraining run due?"""

import datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event

from flows import steps
from flows.commands.check import champion_profile, describe_gate, find_tokenizer, read_data, run_gate, summarise
from flows.jobs.retrain import retrain
from flows.steps import retrying_task, timed_task
from tasks.core.errors import DataRejected, VerdictError
from tasks.core.files import json_digest, read_json, write_json
from tasks.core.settings import Settings
from tasks.data.drift import list_drifted
from tasks.data.gate import raise_if_failed
from tasks.data.ingestion import Dataset
from tasks.data.sources import shown_addresses
from tasks.registry import versions as registry
from tasks.registry.versions import CHAMPION

read = timed_task("read data", read_data)  # a download has its own patience
examine = timed_task("check data", run_gate)
reference_of = retrying_task("find champion", champion_profile)
find_alias = retrying_task("find champion", registry.find_alias)


@flow(name="watch", result_serializer="json", persist_result=True)
def watch(settings: dict[str, Any], origins: dict[str, str], home: str) -> dict[str, Any]:
    """Look once at the data behind the addresses, and retrain where that is due; return what the command prints.

    Data counts as seen when a look at it ended well, with or without a retraining run: a look that was refused or
    killed is taken again. Each look emits a Prefect event: verdict.data.unchanged, .changed, .drifted, .refused
    or, where the data cannot be had, .failed.

    Args:
        settings: resolved settings, as plain values; watch.retrain_on says when to retrain.
        origins: the layer each dotted setting came from.
        home: folder of the stores.

    Raises:
        WrongUsage: if the data is not there.
        DataRefused: if the gate refuses it.
        VerdictError: if the retraining run fails.
    """
    taken: dict[str, float] = {}
    steps.seconds.set(taken)
    chosen = Settings.model_validate(settings)
    record = Path(home) / "watch" / f"{name_addresses(chosen)}.json"
    try:
        data = read(chosen.data, home)
    except VerdictError as error:
        what = "refused" if isinstance(error, DataRejected) else "failed"
        emit(what, record.stem, chosen, {"why": str(error)})
        raise
    seen = last_seen(record, home)
    outcome: dict[str, Any] = {"dataset": data["digest"], "previous": seen, "changed": data["digest"] != seen}
    outcome |= {
        "action": "none",
        "why": f"the data is unchanged ({data['digest'][:12]})",
        "retrain": None,
        "check": None,
    }
    if not outcome["changed"]:
        emit("unchanged", record.stem, chosen, outcome)
        return outcome | {"seconds": taken}
    outcome["check"], due = inspect_data(data, chosen, home, record, outcome)
    if due:
        outcome["action"] = "retrain"
        # Its own checks see the same data again; they cost seconds, and a run never rests on another one's word.
        outcome["retrain"] = retrain(settings, origins, home)
    gate = outcome["check"]
    drift = list_drifted(gate["drift"]) if gate["reference"] else None
    seen_now = {"dataset": data["digest"], "why": outcome["why"], "time": now()}
    write_json(record, seen_now | {"drift": drift, "drift_from": gate["reference"]})
    return outcome | {"seconds": taken}


def inspect_data(
    data: Dataset, settings: Settings, home: str, record: Path, outcome: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """Examine new data, say what follows from it and announce it; return the gate's summary and whether to retrain."""
    folder = Path(home) / "checks" / data["digest"][:16]
    folder.mkdir(parents=True, exist_ok=True)
    gate = examine(data, settings, str(folder), find_tokenizer(settings), reference_of(home))
    create_markdown_artifact(key="data-gate", markdown=describe_gate(gate), description="What the data gate saw")
    summary = summarise(gate)
    if not gate["passed"]:
        emit("refused", record.stem, settings, outcome | {"why": summary["failures"][0]})
        raise_if_failed(gate)
    drifted = [shift["name"] for shift in gate["drift"] if shift["drifted"]]
    due, outcome["why"] = should_retrain(settings.watch.retrain_on, drifted, gate["reference"])
    emit("drifted" if drifted else "changed", record.stem, settings, outcome | {"drifted": drifted})
    return summary, due


def should_retrain(mode: str, drifted: list[str], reference: str | None) -> tuple[bool, str]:
    """Say whether new data that passed the gate calls for a retraining run, and why.

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


def last_seen(record: Path, home: str) -> str | None:
    """Return the digest of the data that was last seen here, else of the data that the champion was trained on."""
    if record.is_file():
        return str(read_json(record)["dataset"])
    store = registry.locate_store(home)
    champion = None if registry.is_uninitialised(store) else find_alias(store, CHAMPION, fetch=False)
    return champion["dataset"] if champion else None


def name_addresses(settings: Settings) -> str:
    """Name what is watched: the same addresses, read in the same way, have one memory."""

    def place(name: str) -> str:
        return str(Path(name).resolve()) if Path(name).exists() else name

    chosen = settings.data
    form = [chosen.train, chosen.holdout, chosen.columns, chosen.labels, chosen.max_chars, chosen.holdout_share]
    if chosen.text:
        form.append(place(chosen.text))
    return json_digest([[place(name) for name in chosen.path], form])[:16]


def emit(what: str, name: str, settings: Settings, payload: dict[str, Any]) -> None:
    """Emit a Prefect event that automations can hang on."""
    kept = {key: payload.get(key) for key in ("dataset", "previous", "why", "drifted")}
    emit_event(
        event=f"verdict.data.{what}",
        resource={
            "prefect.resource.id": f"verdict.data.{name}",
            "prefect.resource.name": shown_addresses(settings.data.path),
        },
        payload=kept,
    )


def now() -> str:
    """Return the time in ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
