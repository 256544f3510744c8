"""Moves the champion's alias: under a lock, after a check, recorded, and recovered where a process died in between.

A promotion takes the lock (promotion_lock.py), checks that the champion is still the one that the decision was made
against, appends its intent to the audit log (audit_log.py), moves the alias, reads it back and closes the record. The
next holder of the lock recovers what a killed process left pending: it finishes a record whose alias had moved, and
withdraws one whose alias had not.

The files of a version are verified right before: one whose files are missing or altered never becomes champion.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.core.errors import VerdictError
from tasks.inference.bundle import CHALLENGER, CHAMPION
from tasks.registry import lookup, register
from tasks.registry.audit_log import AliasChange, begin, finish, read_changes
from tasks.registry.audit_log import actor as current_actor
from tasks.registry.champion_history import (
    DECISION_KINDS,
    ChampionRecord,
    TimelineEntry,
    build_timeline,
    champion_stack,
    champion_state,
    describe_way_back,
)
from tasks.registry.descriptions import WAITS, describe_change, describe_replacement
from tasks.registry.promotion_lock import promotion_lock
from tasks.registry.store import MlflowStore, is_uninitialised
from tasks.registry.verification import verify_version

if TYPE_CHECKING:
    from tasks.evaluation.evidence import ChampionState

log = logging.getLogger(__name__)

DECIDED_VERDICT = {"approve": "PROMOTE", "reject": "REJECT"}  # tag `verdict` after a person's decision


class ChampionChanged(VerdictError):
    """The champion is not the one that a decision was made against any more: decide again."""


def promote(
    store: MlflowStore,
    version: str,
    *,
    kind: str,
    expected: str | None,
    reason: str,
    verdict: str = "",
    bundle: str = "",
    actor: str = "",
) -> AliasChange:
    """Make a version champion; return the record, the existing one where it is champion by this decision already.

    Args:
        store: MLflow store.
        version: version number.
        kind: promote, approve or rollback.
        expected: the champion that the decision was made against; None: there was none.
        reason: why, in one line.
        verdict: digest of the verdict behind it.
        bundle: digest that the version's bundle must have; empty: the one that was registered.
        actor: who decided; empty: VERDICT_ACTOR, else user@host.

    Raises:
        ChampionChanged: if another version is champion by now.
        VerdictError: if the version's files are missing or altered, or the alias does not move.
        UnknownModel: if there is no such version.
        LockTimeout: if others hold the lock for too long.
        UnreachableError: if the store does not answer.
    """
    digest = verify_version(store, version, bundle)  # may download: before the lock is taken
    with promotion_lock(store) as check_lease:
        changes, champion = recover_pending(store)
        current = champion["version"] if champion else None
        last = _last_change(changes)
        if current == version and last and (last["to"], last["bundle"]) == (version, digest):
            _describe(store, last)
            return last
        if current not in (expected, version):
            raise ChampionChanged(
                f"the champion is now {current or 'none'}, version {version} was compared with {expected or 'none'}; "
                f"compare it again: verdict compare {version}"
            )
        _check_undecided(store, kind, version)
        fields = {"kind": kind, "version": version, "from": current, "to": version, "reason": reason}
        change = begin(store, changes, **fields, verdict=verdict, bundle=digest, actor=actor)
        check_lease()
        register.move_alias(store, CHAMPION, version)
        return _finish_pending(store, change)


def set_challenger(store: MlflowStore, version: str) -> None:
    """Point the challenger's alias at a version on HOLD, unless it is champion by now."""
    with promotion_lock(store) as check_lease:
        _, champion = recover_pending(store)
        if champion is None or champion["version"] != version:
            check_lease()
            register.move_alias(store, CHALLENGER, version)


def reject(store: MlflowStore, version: str, reason: str, verdict: str = "", actor: str = "") -> AliasChange:
    """Record that a person rejected a version, and take the challenger's alias from it.

    Where the last record is the same person's rejection for the same reason, it is returned: its process may have been
    killed before it could report.

    Raises:
        ChampionChanged: if it is champion by now.
        VerdictError: if its verdict is no HOLD.
    """
    with promotion_lock(store) as check_lease:
        changes, champion = recover_pending(store)
        current = champion["version"] if champion else None
        if repeated := find_repeated(changes, "reject", version, reason, actor):
            _describe(store, repeated)
            return repeated
        if current == version:
            way_back = describe_way_back(champion_stack(build_timeline(changes, champion)))
            raise ChampionChanged(f"version {version} is champion by now; {way_back}")
        _check_undecided(store, "reject", version)
        fields = {"kind": "reject", "version": version, "from": current, "to": current, "reason": reason}
        change = begin(store, changes, **fields, verdict=verdict, actor=actor)
        check_lease()
        return _finish_pending(store, change)


def find_repeated(
    changes: Sequence[AliasChange], kind: str, version: str, reason: str, actor: str = ""
) -> AliasChange | None:
    """Return the last record if it is this decision, done or pending.

    Args:
        changes: every record.
        kind: reject or rollback.
        version: that is rejected or gone back to.
        reason: in one line.
        actor: who decides; empty: VERDICT_ACTOR, else user@host.
    """
    last = next((change for change in reversed(changes) if change["state"] != "withdrawn"), None)
    decision = (kind, version, reason, actor or current_actor())
    if last and (last["kind"], last["version"], last["reason"], last["actor"]) == decision:
        return last
    return None


def recover_pending(store: MlflowStore) -> tuple[list[AliasChange], ChampionRecord | None]:
    """Finish or withdraw what killed processes left pending; the caller holds the lock.

    Returns:
        every record, and what the champion's alias points at.
    """
    champion = current_champion(store)
    changes = []
    for change in read_changes(store):
        if change["state"] == "pending":
            moved = champion is not None and champion["version"] == change["to"]
            complete = moved or change["kind"] in DECISION_KINDS
            log.warning(
                "record %d (%s %s) was left pending by a process that died; it is %s",
                *(change["number"], change["kind"], change["version"], "finished" if complete else "withdrawn"),
            )
            change = _finish_pending(store, change) if complete else finish(store, change, "withdrawn")
        changes.append(change)
    return changes, champion


def recover(store: MlflowStore) -> None:
    """Finish or withdraw what killed processes left pending, if anything."""
    if any(change["state"] == "pending" for change in read_changes(store)):
        with promotion_lock(store):
            recover_pending(store)


def was_promoted(store: MlflowStore, run_id: str) -> bool:
    """Check whether a version that a run registered ever became champion; pending changes are recovered before."""
    versions = lookup.versions_of_run(store, run_id)
    return any(change["state"] == "done" and change["to"] in versions for change in read_changes(store))


def current_champion(store: MlflowStore) -> ChampionRecord | None:
    """Return what the champion's alias points at now."""
    found = lookup.find_alias(store, CHAMPION, fetch=False)
    return ChampionRecord(version=found["version"], digest=found["digest"]) if found else None


def read_champion_state(store: MlflowStore) -> "ChampionState":
    """Return "active" with a champion, "none" where there never was one, "lost" where its alias or version is gone.

    A store that was filled before changes were recorded, and lost its alias, counts as "none".

    Raises:
        UnreachableError: if the store does not answer, which is none of the three.
    """
    if is_uninitialised(store):
        return "none"
    champion = current_champion(store)
    return champion_state(champion, [] if champion else read_changes(store))


def history(store: MlflowStore) -> tuple[list[TimelineEntry], list[AliasChange]]:
    """Return the timeline for people, and the records behind it; both oldest first."""
    if is_uninitialised(store):
        return [], []
    # Records and alias are read by separate queries: read again where a change in between would look unexplained.
    before, champion, after = read_changes(store), current_champion(store), read_changes(store)
    while before != after:
        before, champion, after = after, current_champion(store), read_changes(store)
    return build_timeline(after, champion), after


def _finish_pending(store: MlflowStore, change: AliasChange) -> AliasChange:
    """Do what follows from a change that took effect, and close its record; may be repeated."""
    verdict = DECIDED_VERDICT.get(change["kind"])
    if verdict:
        register.tag_version(store, change["version"], {"verdict": verdict, "decided_by": change["actor"]})
    register.drop_alias(store, CHALLENGER, change["version"])
    closed = finish(store, change, "done")
    _describe(store, closed)
    return closed


def _describe(store: MlflowStore, change: AliasChange) -> None:
    """Put a change above the descriptions of the versions concerned: last, because nothing depends on them."""
    register.prepend_description(store, change["version"], describe_change(change), outdated=WAITS)
    if change["from"] not in (None, change["to"]):
        register.prepend_description(store, change["from"], describe_replacement(change))


def _check_undecided(store: MlflowStore, kind: str, version: str) -> None:
    """Refuse a person's decision about anything but a HOLD; under the lock, so nobody else decides at the same time."""
    verdict = lookup.read_tags(store, version).get("verdict") if kind in DECIDED_VERDICT else "HOLD"
    if verdict != "HOLD":
        raise VerdictError(
            f"version {version} has the verdict {verdict or 'none'}; expected a HOLD to {kind}, see: verdict status"
        )


def _last_change(changes: Sequence[AliasChange]) -> AliasChange | None:
    found = [change for change in changes if change["state"] == "done" and change["kind"] not in DECISION_KINDS]
    return found[-1] if found else None
