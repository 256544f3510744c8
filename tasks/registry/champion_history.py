"""What the record of moves means: who reigned when, what it does not explain, who reigned before. Pure functions."""

from collections.abc import Sequence
from typing import TypedDict

from tasks.registry.audit_log import Move

DECISIONS = {"reject"}  # recorded, and move no alias

Entry = TypedDict(
    "Entry",
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


class Reigning(TypedDict):
    """What the champion's alias points at now."""

    version: str
    digest: str


def tell(moves: Sequence[Move], champion: Reigning | None) -> list[Entry]:
    """Return the history as people read it, oldest first.

    Beside the moves that were carried out it holds what no record explains: `unexplained` where the alias was set
    outside of this program, `vanished` where it was removed or its version deleted, `missing` where records were
    deleted. These have no time and no actor.

    Args:
        moves: every record.
        champion: what the alias points at now; None: it is not set.
    """
    entries: list[Entry] = []
    standing: str | None = None
    expected = 1
    for move in moves:
        missing, expected = move["number"] - expected, move["number"] + 1
        if missing > 0:
            entries.append(_gap(move, missing, standing))
            standing = move["from"]
        if not happened(move, champion):
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


def happened(move: Move, champion: Reigning | None) -> bool:
    """Tell whether a record's move was carried out; of a pending one the alias says so."""
    there = champion is not None and champion["version"] == move["to"]
    return move["state"] == "done" or (move["state"] == "pending" and there and move["kind"] not in DECISIONS)


def promotions(moves: Sequence[Move]) -> int:
    """Count how often a version was made champion."""
    return sum(move["state"] == "done" and move["to"] is not None and move["kind"] not in DECISIONS for move in moves)


def reigns(entries: Sequence[Entry]) -> list[str]:
    """Return the versions that reigned, the one before the last at [-2]; what was rolled back is forgotten.

    A version that vanished is not forgotten: it stands at [-1].
    """
    stack: list[str] = []
    for entry in entries:
        version = entry["to"]
        if version is None or entry["kind"] in DECISIONS or (stack and stack[-1] == version):
            continue
        if entry["kind"] == "rollback" and version in stack:
            del stack[len(stack) - stack[::-1].index(version) :]
        else:
            stack.append(version)
    return stack


def bundle_of(moves: Sequence[Move], version: str) -> str | None:
    """Return the digest of the bundle that reigned under a version's number last; None: it never did by the record."""
    found = [move["bundle"] for move in moves if move["to"] == version and move["kind"] not in DECISIONS]
    return found[-1] if found else None


def notices(entries: Sequence[Entry], moves: Sequence[Move]) -> list[str]:
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


def _entry(move: Move) -> Entry:
    return Entry(**{name: move[name] for name in Entry.__annotations__})  # type: ignore[typeddict-item, literal-required]


def _gap(move: Move, missing: int, standing: str | None) -> Entry:
    first, last = move["number"] - missing, move["number"] - 1
    which = f"record {first} is" if missing == 1 else f"records {first} to {last} are"
    return _nameless("missing", standing, move["from"], f"{which} missing: deleted from the store for good")


def _unexplained(before: str | None, after: str | None, detail: str = "") -> Entry:
    if after is None:
        reason = f"champion {before} vanished: its alias was removed or its version deleted, not by this program"
        return _nameless("vanished", before, None, reason)
    was = f"from version {before} " if before else ""
    reason = detail or f"the champion's alias went {was}to version {after} and no record explains it"
    return _nameless("unexplained", before, after, reason)


def _other_bundle(moves: Sequence[Move], champion: Reigning) -> str:
    recorded = bundle_of(moves, champion["version"])
    if recorded in (None, "", champion["digest"]):
        return ""
    return (
        f"version {champion['version']} is not the bundle that was made champion: "
        f"{champion['digest'][:12]} instead of {recorded[:12]}"
    )


def _nameless(kind: str, before: str | None, after: str | None, reason: str) -> Entry:
    nothing = {"time": None, "actor": None, "version": after, "verdict": None, "bundle": None, "number": None}
    return Entry(kind=kind, reason=reason, **{"from": before, "to": after}, **nothing)  # type: ignore[typeddict-item]
