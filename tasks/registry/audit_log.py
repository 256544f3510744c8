"""The audit log of the champion's alias: append-only, in MLflow itself, one run for each change or decision.

Its runs lie in an experiment of their own, so they outlive versions and the registered model. A record is created with
all its fields in one call, so creating it is atomic. The run's status is the state of the record: RUNNING while the
alias is being moved, FINISHED once that is checked, KILLED where a process died before it moved anything.

Each record holds its number and the id of the one before it, which shows that one was deleted or put in, and a digest
of its own fields, which shows that one was altered by mistake. A signature of these fields (core/signing.py), where
there is a key, shows that one was rewritten. What no signature covers: whether a record took effect, which is the run's
status, and that records at the end were deleted. Whoever appends holds the promotion lock (promotion_lock.py).
"""

import base64
import datetime
import getpass
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypedDict

from tasks.core.errors import UsageError, VerdictError
from tasks.core.files import json_digest
from tasks.core.printable import redact
from tasks.core.signing import Signer, check, describe_signer, require_key, sign
from tasks.registry.local_database import AUDIT_EXPERIMENT
from tasks.registry.mlflow_client import NOTE, Run, all_runs, connect, experiment_of
from tasks.registry.store import MlflowStore, is_uninitialised
from tasks.reporting.wording import escape_markdown

State = Literal["pending", "done", "withdrawn"]
STATES: dict[str, State] = {"RUNNING": "pending", "SCHEDULED": "pending", "FINISHED": "done"}
MAX_REASON_CHARS = 2_000  # MLflow takes 8,000 characters of a tag

# A record. `from` and `to` are the champion before and after; `from` is a keyword, hence the functional form.
AliasChange = TypedDict(
    "AliasChange",
    {
        "id": str,
        "state": State,
        "altered": bool,
        "signed_by": str,
        "trusted": bool,
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
DIGEST_TAG = "record_digest"  # of number and text fields
SIGNATURE_TAG = "record_signature"  # of the same, as JSON
ALTERED = "altered after it was written"
NUMBER = re.compile(r"[1-9][0-9]{0,8}")
RECORD_FORM = "application/vnd.verdict.alias-change+json"  # type of the signed payload


def actor() -> str:
    """Return who acts: VERDICT_ACTOR, else user@host."""
    named = redact(" ".join(os.environ.get("VERDICT_ACTOR", "").split()))
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
        UsageError: if it is empty or too long.
    """
    text = re.sub(r"\s+", " ", reason).strip()
    if not text:
        raise UsageError("the reason is empty; expected --reason TEXT that says why, it stays in the history")
    if len(text) > MAX_REASON_CHARS:
        raise UsageError(f"the reason has {len(text)} characters; expected at most {MAX_REASON_CHARS}")
    return text


def read_changes(store: MlflowStore) -> list[AliasChange]:
    """Return every record, oldest first: also pending and withdrawn ones, and those deleted in MLflow's page.

    Raises:
        UnreachableError: if the store does not answer.
    """
    if is_uninitialised(store):
        return []
    with connect(store) as client:
        return sorted(_parse(all_runs(client, AUDIT_EXPERIMENT)), key=lambda change: (change["number"], change["time"]))


def begin(store: MlflowStore, changes: Sequence[AliasChange], **fields: str | None) -> AliasChange:
    """Append a pending record, in one call.

    Args:
        store: where to.
        changes: every record so far.
        fields: kind, version, from, to, reason, verdict and bundle; actor where it is not `actor()`.

    Raises:
        UsageError: if a key cannot be read, or a signature is required and there is no key.
    """
    require_key()
    now = datetime.datetime.now(datetime.UTC)
    last = changes[-1] if changes else None
    texts = {name: fields.get(name) or "" for name in TEXT_FIELDS} | {
        "previous": last["id"] if last else "",
        "time": now.isoformat(timespec="milliseconds"),
        "actor": " ".join((fields.get("actor") or "").split())[:200] or actor(),
    }
    tags = texts | {"number": str(last["number"] + 1 if last else 1)}
    shown = {
        "mlflow.user": texts["actor"],
        NOTE: escape_markdown(texts["reason"]),
    }  # in MLflow's own page
    if envelope := sign(_payload(tags), RECORD_FORM):
        shown[SIGNATURE_TAG] = json.dumps(envelope["signatures"])
    with connect(store) as client:
        run = client.create_run(
            experiment_of(client, store, AUDIT_EXPERIMENT),
            start_time=int(now.timestamp() * 1_000),
            run_name=f"{texts['kind']} {texts['version']}",
            tags=tags | shown | {DIGEST_TAG: json_digest(tags)},
        )
        (change,) = _parse([run])
        return change


def finish(store: MlflowStore, change: AliasChange, state: State) -> AliasChange:
    """Close a pending record as done or withdrawn."""
    with connect(store) as client:
        client.set_terminated(change["id"], "FINISHED" if state == "done" else "KILLED", int(time.time() * 1_000))
    return {**change, "state": state}


def _parse(runs: Iterable[Run]) -> list[AliasChange]:
    """Parse records; skip other runs, which somebody may have put into the experiment."""
    changes = []
    for run in runs:
        tags = run.data.tags
        if not _is_record(tags):
            continue
        texts: dict[str, Any] = {name: tags.get(name, "") for name in TEXT_FIELDS}
        signed = texts | {"number": tags["number"]}
        altered, signer = json_digest(signed) != tags.get(DIGEST_TAG), None
        try:
            signer = _read_signer(signed, tags.get(SIGNATURE_TAG, ""))
        except UsageError:  # a trusted key that cannot be read says nothing about the record
            raise
        except VerdictError:
            altered = True
        texts |= {name: texts[name] or None for name in ("from", "to")}
        changes.append(
            AliasChange(
                id=run.info.run_id,
                state=STATES.get(run.info.status, "withdrawn"),
                altered=altered,
                signed_by=ALTERED if altered else describe_signer(signer),
                trusted=not altered and signer is not None and signer.trusted,
                number=int(tags["number"]),
                **texts,  # type: ignore[typeddict-item]
            )
        )
    return changes


def _is_record(tags: dict[str, str]) -> bool:
    """Return whether a run has a record's number and time; where one lost them, its number is missing."""
    try:
        datetime.datetime.fromisoformat(tags.get("time", ""))
    except ValueError:
        return False
    return NUMBER.fullmatch(tags.get("number", "")) is not None


def _payload(fields: dict[str, str]) -> bytes:
    """Return what is signed of a record."""
    return json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()


def _read_signer(fields: dict[str, str], signatures: str) -> Signer | None:
    """Return who signed a record's fields; None if nobody did.

    Raises:
        VerdictError: if the signature is not of these fields.
    """
    if not signatures:
        return None
    try:
        held = json.loads(signatures)
    except (ValueError, RecursionError) as error:
        raise VerdictError(f"record {fields['number']} has a damaged signature") from error
    payload = base64.b64encode(_payload(fields)).decode()
    envelope = {"payload": payload, "payloadType": RECORD_FORM, "signatures": held}
    return check(envelope, f"record {fields['number']}")
