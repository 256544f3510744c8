"""Moves the champion's alias: under a lock, checked, recorded, and finished by the next one where a process died.

A move takes the turn (turns.py), looks whether the champion is still the one that it was decided against, writes its
intent to the record (record.py), moves the alias, reads it back, and closes the record. What a killed process left
pending is settled by whoever comes next: finished where the alias had moved, withdrawn where it had not.

A version whose files are missing or altered never becomes champion: they are checked right before.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.core.errors import VerdictError
from tasks.inference.bundle import CHAMPION
from tasks.registry import lookup, register
from tasks.registry.audit_log import AliasChange, begin, finish, read_changes
from tasks.registry.champion_history import (
    DECISION_KINDS,
    ChampionRecord,
    TimelineEntry,
    build_timeline,
    champion_state,
)
from tasks.registry.descriptions import describe_decision
from tasks.registry.lookup import CHALLENGER
from tasks.registry.mlflow_client import MlflowStore, is_uninitialised
from tasks.registry.promotion_lock import promotion_lock
from tasks.registry.verification import verify_version

if TYPE_CHECKING:
    from tasks.evaluation.evidence import ChampionState

log = logging.getLogger(__name__)

STANDING_REASON = {"approve": "PROMOTE", "reject": "REJECT"}  # what a person's decision makes of a HOLD


class ChampionChanged(VerdictError):
    """Another champion reigns than the one that a decision was made against: decide again."""


def promote(
    store: MlflowStore,
    version: str,
    *,
    kind: str,
    expected: str | None,
    reason: str,
    verdict: str = "",
    bundle: str = "",
    who: str = "",
) -> AliasChange:
    """Make a version champion; one that is it already by this record stays it.

    Args:
        store: where.
        version: which.
        kind: promote, approve or rollback.
        expected: the champion that the decision was made against; None: there was none.
        reason: why, in one line.
        verdict: digest of the verdict behind it.
        bundle: digest that the version's bundle must have; empty: the one that was registered.
        who: moves it; empty: VERDICT_ACTOR, else user@host.

    Raises:
        ChampionChanged: if another champion reigns by now.
        VerdictError: if the version's files are missing or altered, or the alias does not move.
        UnknownModel: if there is no such version.
        Busy: if others keep the turn.
        Unreachable: if the store cannot be asked.
    """
    digest = verify_version(store, version, bundle)  # may fetch files: before anybody has to wait
    with promotion_lock(store) as check:
        moves, champion = recover_pending(store)
        reigning = champion["version"] if champion else None
        done = _last_move(moves)
        if reigning == version and done and (done["to"], done["bundle"]) == (version, digest):
            return done
        if reigning not in (expected, version):
            raise ChampionChanged(
                f"champion {reigning or 'none'} reigns by now, version {version} was compared with "
                f"{expected or 'none'}; compare it again: verdict compare {version}"
            )
        _reject_decided(store, kind, version)
        said = {"kind": kind, "version": version, "reason": reason, "verdict": verdict, "bundle": digest, "actor": who}
        move = begin(store, moves, **said, **{"from": reigning, "to": version})
        check()
        register.move_alias(store, CHAMPION, version)
        return _finish_pending(store, move)


def set_challenger(store: MlflowStore, version: str) -> None:
    """Point the challenger's alias at a version on HOLD, unless it reigns by now."""
    with promotion_lock(store) as check:
        _, champion = recover_pending(store)
        if champion is None or champion["version"] != version:
            check()
            register.move_alias(store, CHALLENGER, version)


def reject(store: MlflowStore, version: str, reason: str, verdict: str = "", who: str = "") -> AliasChange:
    """Record that a person rejected a version; it is no challenger any more.

    Raises:
        ChampionChanged: if it reigns by now.
    """
    with promotion_lock(store) as check:
        moves, champion = recover_pending(store)
        reigning = champion["version"] if champion else None
        if reigning == version:
            raise ChampionChanged(f"version {version} is champion by now; take it back: verdict rollback --reason TEXT")
        _reject_decided(store, "reject", version)
        said = {"kind": "reject", "version": version, "reason": reason, "verdict": verdict, "actor": who}
        move = begin(store, moves, **said, **{"from": reigning, "to": reigning})
        check()
        return _finish_pending(store, move)


def recover_pending(store: MlflowStore) -> tuple[list[AliasChange], ChampionRecord | None]:
    """Finish or withdraw what killed processes left pending; the caller holds the turn.

    Returns:
        every record, and what the champion's alias points at.
    """
    champion = current_champion(store)
    moves = []
    for move in read_changes(store):
        if move["state"] == "pending":
            moved = champion is not None and champion["version"] == move["to"]
            took_place = moved or move["kind"] in DECISION_KINDS
            log.warning(
                "record %d (%s %s) was left by a process that died; it is %s",
                *(move["number"], move["kind"], move["version"], "finished" if took_place else "withdrawn"),
            )
            move = _finish_pending(store, move) if took_place else finish(store, move, "withdrawn")
        moves.append(move)
    return moves, champion


def current_champion(store: MlflowStore) -> ChampionRecord | None:
    """Return what the champion's alias points at now."""
    found = lookup.find_alias(store, CHAMPION, fetch=False)
    return ChampionRecord(version=found["version"], digest=found["digest"]) if found else None


def read_champion_state(store: MlflowStore) -> "ChampionState":
    """Tell whether a champion reigns, there never was one, or it vanished with its version or alias.

    A store that was filled before moves were recorded, and lost its alias, counts as one that never had a champion.

    Raises:
        Unreachable: if the store cannot be asked: that is none of the three.
    """
    if is_uninitialised(store):
        return "none"
    champion = current_champion(store)
    return champion_state(champion, [] if champion else read_changes(store))


def history(store: MlflowStore) -> tuple[list[TimelineEntry], list[AliasChange]]:
    """Return the history as people read it, and the records behind it; both oldest first."""
    if is_uninitialised(store):
        return [], []
    # Records and alias are two questions; a move in between would look like one that no record explains.
    before, champion, after = read_changes(store), current_champion(store), read_changes(store)
    while before != after:
        before, champion, after = after, current_champion(store), read_changes(store)
    return build_timeline(after, champion), after


def _finish_pending(store: MlflowStore, move: AliasChange) -> AliasChange:
    """Do what follows from a move that took place, and close its record; may be done twice."""
    if standing := STANDING_REASON.get(move["kind"]):
        decided = {"verdict": standing, "decided_by": move["actor"], "decision": f"{move['kind']}: {move['reason']}"}
        register.tag_version(store, move["version"], decided)
        line = describe_decision(move["kind"], move["actor"], move["time"], move["reason"])
        register.prepend_description(store, move["version"], line)
    register.drop_alias(store, CHALLENGER, move["version"])
    return finish(store, move, "done")


def _reject_decided(store: MlflowStore, kind: str, version: str) -> None:
    """Let persons decide about a HOLD only; inside the turn, where nobody else decides about it."""
    standing = lookup.read_tags(store, version).get("verdict") if kind in STANDING_REASON else "HOLD"
    if standing != "HOLD":
        raise VerdictError(
            f"version {version} stands at {standing or 'no verdict'}; expected a HOLD to {kind}, see: verdict status"
        )


def _last_move(moves: Sequence[AliasChange]) -> AliasChange | None:
    found = [move for move in moves if move["state"] == "done" and move["kind"] not in DECISION_KINDS]
    return found[-1] if found else None
