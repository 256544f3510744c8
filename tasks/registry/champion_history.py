"""What the audit log means: the timeline of champions, changes that no record explains, earlier champions.

Pure functions of the records and of what the champion's alias points at now.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from tasks.core.signing import signature_required
from tasks.registry.audit_log import ALTERED, AliasChange

if TYPE_CHECKING:
    from tasks.evaluation.evidence import ChampionState

DECISION_KINDS = {"reject"}  # recorded without a change of the alias

TimelineEntry = TypedDict(
    "TimelineEntry",
    {
        "time": str | None,
        "actor": str | None,
        "kind": str,
        "version": str | None,
        "from": str | None,
        "to": str | None,
        "reason": str,
        "verdict": str | None,
        "bundle": str | None,
        "number": int | None,
        "signed_by": str | None,
    },
)


class ChampionRecord(TypedDict):
    """What the champion's alias points at now."""

    version: str
    digest: str


def build_timeline(changes: Sequence[AliasChange], champion: ChampionRecord | None) -> list[TimelineEntry]:
    """Return the history for people, oldest first.

    Besides the recorded changes that took effect it has entries without time and actor for what no record explains:
    `unexplained` where the alias was set by something else than this program, `lost` where the alias was removed or its
    version deleted, `missing` where records were deleted, `inserted` where a record was not written after the one that
    stands before it.

    Args:
        changes: every record.
        champion: what the alias points at now; None where it is not set.
    """
    entries: list[TimelineEntry] = []
    current: str | None = None  # the champion after the entries so far
    before = ""  # id of the record before
    next_number = 1
    for change in changes:
        missing, next_number = change["number"] - next_number, change["number"] + 1
        if missing > 0:
            entries.append(_gap(change, missing, current))
            current = change["from"]
        elif missing < 0 or change["previous"] != before:
            reason = f"record {change['number']} was not written after the record before it: it was put in"
            entries.append(_unrecorded("inserted", current, current, reason))
        before = change["id"]
        if not took_effect(change, champion):
            continue
        if change["from"] != current:
            entries.append(_unexplained(current, change["from"]))
        entries.append(_entry(change))
        current = change["to"]
    now = champion["version"] if champion else None
    if now != current:
        entries.append(_unexplained(current, now))
    elif champion and (detail := _other_bundle(changes, champion)):
        entries.append(_unexplained(current, now, detail))
    return entries


def took_effect(change: AliasChange, champion: ChampionRecord | None) -> bool:
    """Check whether a recorded change was made; for a pending one, whether the alias points at its version."""
    moved = champion is not None and champion["version"] == change["to"]
    pending = change["state"] == "pending" and change["kind"] not in DECISION_KINDS
    return change["state"] == "done" or (pending and moved)


def promotions(changes: Sequence[AliasChange]) -> int:
    """Count how often a version became champion."""
    return sum(
        change["state"] == "done" and change["to"] is not None and change["kind"] not in DECISION_KINDS
        for change in changes
    )


def champion_state(champion: ChampionRecord | None, changes: Sequence[AliasChange]) -> "ChampionState":
    """Return active, none (there never was a champion) or lost (its alias or its version was deleted).

    MLflow deletes an alias with its version without notice. Without the difference, the next candidate would be
    promoted as if it were the first.
    """
    if champion:
        return "active"
    return "lost" if promotions(changes) else "none"


def champion_stack(entries: Sequence[TimelineEntry]) -> list[str]:
    """Return the versions that were champion, without those that a rollback undid; the current one is at [-1].

    A lost champion stays at [-1]. The one before the current champion, which a rollback goes to, is at [-2].
    """
    stack: list[str] = []
    for entry in entries:
        version = entry["to"]
        if version is None or entry["kind"] in DECISION_KINDS or (stack and stack[-1] == version):
            continue
        if entry["kind"] == "rollback" and version in stack:
            del stack[len(stack) - stack[::-1].index(version) :]
        else:
            stack.append(version)
    return stack


def describe_way_back(stack: Sequence[str]) -> str:
    """Return how a bad champion is replaced: by a rollback, or, where there was none before it, by a better version.

    Args:
        stack: of `champion_stack`, the current champion at [-1].
    """
    if len(stack) > 1:
        return "take it back: verdict rollback --reason TEXT"
    return (
        "it is the first champion, with none before it to roll back to; replace it: verdict retrain with other data, "
        "and where that ends on HOLD: verdict approve VERSION --reason TEXT"
    )


def digest_of_version(changes: Sequence[AliasChange], version: str) -> str | None:
    """Return the digest of the bundle that was last champion under a version number; None where none is recorded.

    Records that took no effect or were altered do not count, nor do unsigned ones where a signature is required.
    """
    found = [
        change["bundle"]
        for change in changes
        if change["to"] == version
        and change["kind"] not in DECISION_KINDS
        and change["state"] == "done"
        and not change["altered"]
        and (change["trusted"] or not signature_required())
    ]
    return found[-1] if found else None


def warnings(entries: Sequence[TimelineEntry], changes: Sequence[AliasChange]) -> list[str]:
    """Return one line for each problem: missing, inserted and altered records, unexplained changes of the champion.

    An unexplained change before the latest recorded one is no problem any more: whoever made that one saw it.
    """
    recorded = [number for number, entry in enumerate(entries) if entry["time"]]
    latest = recorded[-1] if recorded else -1
    lines = [
        entry["reason"]
        for number, entry in enumerate(entries)
        if entry["kind"] in ("missing", "inserted") or (number > latest and not entry["time"])
    ]
    lines += [f"record {change['number']} was {ALTERED}" for change in changes if change["altered"]]
    if signature_required():
        lines += [
            f"record {change['number']} is {change['signed_by']}"
            for change in changes
            if not change["altered"] and not change["trusted"]
        ]
    return lines


def _entry(change: AliasChange) -> TimelineEntry:
    return TimelineEntry(**{name: change[name] for name in TimelineEntry.__annotations__})  # type: ignore[typeddict-item, literal-required]


def _gap(change: AliasChange, missing: int, current: str | None) -> TimelineEntry:
    first, last = change["number"] - missing, change["number"] - 1
    which = f"record {first} is" if missing == 1 else f"records {first} to {last} are"
    return _unrecorded("missing", current, change["from"], f"{which} missing: permanently deleted from the store")


def _unexplained(before: str | None, after: str | None, detail: str = "") -> TimelineEntry:
    if after is None:
        reason = f"champion {before} was lost: its alias was removed or its version deleted, not by this program"
        return _unrecorded("lost", before, None, reason)
    was = f"from version {before} " if before else ""
    reason = detail or f"the champion's alias went {was}to version {after} and no record explains it"
    return _unrecorded("unexplained", before, after, reason)


def _other_bundle(changes: Sequence[AliasChange], champion: ChampionRecord) -> str:
    """Describe a champion whose version number now belongs to another bundle; empty where it does not."""
    recorded = digest_of_version(changes, champion["version"])
    if recorded in (None, "", champion["digest"]):
        return ""
    return (
        f"version {champion['version']} is not the bundle that was made champion: "
        f"{champion['digest'][:12]} instead of {recorded[:12]}"
    )


def _unrecorded(kind: str, before: str | None, after: str | None, reason: str) -> TimelineEntry:
    unknown = dict.fromkeys(("time", "actor", "verdict", "bundle", "number", "signed_by")) | {"version": after}
    return TimelineEntry(kind=kind, reason=reason, **{"from": before, "to": after}, **unknown)  # type: ignore[typeddict-item]
