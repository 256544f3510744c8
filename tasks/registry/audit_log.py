"""The record of who moved the champion: append-only, in MLflow itself, one run a move in an experiment of its own.

A record is created in one call with everything it says, so it is whole or absent, and lives on when versions, or the
whole registered model, are deleted. Its run's status is its state: RUNNING while the alias is being moved, FINISHED
when it was checked, KILLED when a process died before it moved anything. Each record carries its number and the id of
the one before it, so one that was deleted is missed, and a digest of itself, so one that was altered is seen.

Whoever appends holds the turn (turns.py).
"""

import datetime
import getpass
import os
import re
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypedDict

from tasks.core.errors import UsageError
from tasks.core.files import json_digest
from tasks.registry.mlflow_client import (
    AUDIT_EXPERIMENT,
    MlflowStore,
    Run,
    all_runs,
    connect,
    experiment_of,
    is_uninitialised,
)

State = Literal["pending", "done", "withdrawn"]
STATES: dict[str, State] = {"RUNNING": "pending", "SCHEDULED": "pending", "FINISHED": "done"}
MAX_REASON_CHARS = 2_000  # characters of a reason; MLflow takes 8,000 of a tag

# What a record says, beside its id and state; `from` is a word of the language, so this is no class.
AliasChange = TypedDict(
    "AliasChange",
    {
        "id": str,
        "state": State,
        "altered": bool,
        "number": int,
        "previous": str,
        "time": str,
        "actor": str,
        "kind": str,
        "version": str,
        "from": str | None,
        "to": str | None,
        "reason": str,
        "verdict": str,
        "bundle": str,
    },
)
TEXT_FIELDS = ("previous", "time", "actor", "kind", "version", "from", "to", "reason", "verdict", "bundle")


def actor() -> str:
    """Return who acts: VERDICT_ACTOR, else user@host."""
    named = " ".join(os.environ.get("VERDICT_ACTOR", "").split())
    if named:
        return named[:200]
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a name
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return f"{user}@{socket.gethostname()}"


def check_reason(reason: str) -> str:
    """Return a reason in one line.

    Raises:
        WrongUsage: if it says nothing, or too much.
    """
    text = re.sub(r"\s+", " ", reason).strip()
    if not text:
        raise UsageError("the reason is empty; expected --reason TEXT that says why, it stays in the history")
    if len(text) > MAX_REASON_CHARS:
        raise UsageError(f"the reason has {len(text)} characters; expected at most {MAX_REASON_CHARS}")
    return text


def read_changes(store: MlflowStore) -> list[AliasChange]:
    """Return every record, oldest first, also pending and withdrawn ones and those deleted in MLflow's page.

    Raises:
        Unreachable: if the store cannot be asked.
    """
    if is_uninitialised(store):
        return []
    with connect(store) as client:
        return sorted(_parse(all_runs(client, AUDIT_EXPERIMENT)), key=lambda move: (move["number"], move["time"]))


def begin(store: MlflowStore, moves: Sequence[AliasChange], **said: str | None) -> AliasChange:
    """Write the intent to move, in one call.

    Args:
        store: where to.
        moves: every record so far.
        said: kind, version, from, to, reason, verdict and bundle; actor where it is somebody else than `actor()`.
    """
    now = datetime.datetime.now(datetime.UTC)
    last = moves[-1] if moves else None
    texts = {name: said.get(name) or "" for name in TEXT_FIELDS} | {
        "previous": last["id"] if last else "",
        "time": now.isoformat(timespec="milliseconds"),
        "actor": " ".join((said.get("actor") or "").split())[:200] or actor(),
    }
    tags = texts | {"number": str(last["number"] + 1 if last else 1)}
    shown = {"mlflow.user": texts["actor"], "mlflow.note.content": texts["reason"]}  # in MLflow's own page
    with connect(store) as client:
        run = client.create_run(
            experiment_of(client, store, AUDIT_EXPERIMENT),
            start_time=int(now.timestamp() * 1_000),
            run_name=f"{texts['kind']} {texts['version']}",
            tags=tags | shown | {"seal": json_digest(tags)},
        )
        (move,) = _parse([run])
        return move


def finish(store: MlflowStore, move: AliasChange, state: State) -> AliasChange:
    """End a pending record as done or withdrawn."""
    with connect(store) as client:
        client.set_terminated(move["id"], "FINISHED" if state == "done" else "KILLED", int(time.time() * 1_000))
    return {**move, "state": state}


def _parse(runs: Iterable[Run]) -> list[AliasChange]:
    """Read records; runs that somebody else put into the experiment are none."""
    moves = []
    for run in runs:
        tags = run.data.tags
        if not tags.get("number", "").isdecimal():
            continue
        texts: dict[str, Any] = {name: tags.get(name, "") for name in TEXT_FIELDS}
        sealed = json_digest(texts | {"number": tags["number"]})
        texts |= {name: texts[name] or None for name in ("from", "to")}
        state = STATES.get(run.info.status, "withdrawn")
        altered = sealed != tags.get("seal")
        moves.append(AliasChange(id=run.info.run_id, state=state, altered=altered, number=int(tags["number"]), **texts))  # type: ignore[typeddict-item]
    return moves
