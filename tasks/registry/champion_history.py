"""What the record of moves means: who reigned when, what it does not explain, who reigned before. Pure functions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from tasks.registry.audit_log import AliasChange

if TYPE_CHECKING:
    from tasks.evaluation.evidence import ChampionState

DECISION_KINDS = {"reject"}  # recorded, and move no alias

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
    },
)


class ChampionRecord(TypedDict):
    """What the champion's alias points at now."""

    version: str
    digest: str


def build_timeline(moves: Sequence[AliasChange], champion: ChampionRecord | None) -> list[TimelineEntry]:
    """Return the history as people read it, oldest first.

    Beside the moves that were carried out it holds what no record explains: `unexplained` where the alias was set
    outside of this program, `vanished` where it was removed or its version deleted, `missing` where records were
    deleted. These have no time and no actor.

    Args:
        moves: every record.
        champion: what the alias points at now; None: it is not set.
    """
    entries: list[TimelineEntry] = []
    standing: str | None = None
    expected = 1
    for move in moves:
        missing, expected = move["number"] - expected, move["number"] + 1
        if missing > 0:
            entries.append(_gap(move, missing, standing))
            standing = move["from"]
        if not took_effect(move, champion):
            continue
        if move["from"] != standing:
            entries.append(_unexplained(standing, move["from"]))
        entries.append(_entry(move))
        standing = move["to"]
    now = champion["version"] if champion else None
    if now != standing:
        entries.append(_unexplained(standing, now))
    elif champion and (other := _other_bundle(moves, champion)):
        entries.append(_unexplained(standing, now, other))
    return entries


def took_effect(move: AliasChange, champion: ChampionRecord | None) -> bool:
    """Tell whether a record's move was carried out; of a pending one the alias says so."""
    there = champion is not None and champion["version"] == move["to"]
    return move["state"] == "done" or (move["state"] == "pending" and there and move["kind"] not in DECISION_KINDS)


def promotions(moves: Sequence[AliasChange]) -> int:
    """Count how often a version was made champion."""
    return sum(
        move["state"] == "done" and move["to"] is not None and move["kind"] not in DECISION_KINDS for move in moves
    )


def champion_state(champion: ChampionRecord | None, moves: Sequence[AliasChange]) -> "ChampionState":
    """Return active, none (there never was a champion) or lost (its alias or its version was deleted).

    MLflow deletes an alias with its version without notice. Without the difference, the next candidate would be
    promoted as if it were the first.
    """
    if champion:
        return "active"
    return "lost" if promotions(moves) else "none"


def champion_stack(entries: Sequence[TimelineEntry]) -> list[str]:
    """Return the versions that reigned, the one before the last at [-2]; what was rolled back is forgotten.

    A version that vanished is not forgotten: it stands at [-1].
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


def digest_of_version(moves: Sequence[AliasChange], version: str) -> str | None:
    """Return the digest of the bundle that reigned under a version's number last; None: it never did by the record."""
    found = [move["bundle"] for move in moves if move["to"] == version and move["kind"] not in DECISION_KINDS]
    return found[-1] if found else None


def warnings(entries: Sequence[TimelineEntry], moves: Sequence[AliasChange]) -> list[str]:
    """Return one line for each thing that somebody should look at: what is missing, what was altered, and what no
    record explains of how it stands now. A later record of ours took note of what came before it.
    """
    recorded = [number for number, entry in enumerate(entries) if entry["time"]]
    latest = recorded[-1] if recorded else -1
    lines = [
        entry["reason"]
        for number, entry in enumerate(entries)
        if entry["kind"] == "missing" or (number > latest and not entry["time"])
    ]
    lines += [f"record {move['number']} was altered after it was written" for move in moves if move["altered"]]
    return lines


def _entry(move: AliasChange) -> TimelineEntry:
    return TimelineEntry(**{name: move[name] for name in TimelineEntry.__annotations__})  # type: ignore[typeddict-item, literal-required]


def _gap(move: AliasChange, missing: int, standing: str | None) -> TimelineEntry:
    first, last = move["number"] - missing, move["number"] - 1
    which = f"record {first} is" if missing == 1 else f"records {first} to {last} are"
    return _nameless("missing", standing, move["from"], f"{which} missing: deleted from the store for good")


def _unexplained(before: str | None, after: str | None, detail: str = "") -> TimelineEntry:
    if after is None:
        reason = f"champion {before} was lost: its alias was removed or its version deleted, not by this program"
        return _nameless("lost", before, None, reason)
    was = f"from version {before} " if before else ""
    reason = detail or f"the champion's alias went {was}to version {after} and no record explains it"
    return _nameless("unexplained", before, after, reason)


def _other_bundle(moves: Sequence[AliasChange], champion: ChampionRecord) -> str:
    recorded = digest_of_version(moves, champion["version"])
    if recorded in (None, "", champion["digest"]):
        return ""
    return (
        f"version {champion['version']} is not the bundle that was made champion: "
        f"{champion['digest'][:12]} instead of {recorded[:12]}"
    )


def _nameless(kind: str, before: str | None, after: str | None, reason: str) -> TimelineEntry:
    nothing = {"time": None, "actor": None, "version": after, "verdict": None, "bundle": None, "number": None}
    return TimelineEntry(kind=kind, reason=reason, **{"from": before, "to": after}, **nothing)  # type: ignore[typeddict-item]
