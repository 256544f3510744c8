"""Decisions on registered versions (approve, reject, rollback), and their history."""

from typing import Any

from flows.notifications import notify_alias_change
from flows.services.server_watch import reach_store
from tasks.core.errors import UnreachableError, UsageError, VerdictError
from tasks.registry import audit_log, champion_history, lookup, promotion, verification
from tasks.registry.store import MlflowStore


def history(home: str) -> list[dict[str, Any]]:
    """Return every change of the champion alias, oldest first; a change without a record has no time and no actor."""
    entries, _ = promotion.history(reach_store(home))
    return [dict(entry) for entry in entries]


def approve(version: str, reason: str, home: str, actor: str = "") -> dict[str, Any]:
    """Make a version on HOLD the champion; return the recorded change.

    Where it is champion already by another decision, that one's record is returned, and `unrecorded` has the reason.

    Args:
        version: version number.
        reason: recorded in the history.
        home: folder of the stores.
        actor: name of the person; empty for VERDICT_ACTOR, or else user@host.

    Raises:
        UsageError: if the reason is empty or the version not a number.
        VerdictError: if it is not on HOLD, if its files are missing or altered, or if the champion changed since it was
            judged and it is rejected against the new one or cannot be judged again.
    """
    text, store = audit_log.check_reason(reason), _open_store(version, home)
    tags, champion = lookup.read_tags(store, version), promotion.current_champion(store)
    now, verdict = champion["version"] if champion else None, tags.get("verdict_digest", "")
    if tags.get("verdict") == "HOLD" and now not in (tags.get("compared_with") or None, version):
        from flows.commands.compare import judge_again  # imports ONNX Runtime and pandas

        verdict = judge_again(store, version, champion, home)
    change = promotion.promote(store, version, kind="approve", expected=now, reason=text, verdict=verdict, actor=actor)
    recorded = (change["kind"], change["reason"]) == ("approve", text)
    return (_notified(change) if recorded else dict(change)) | {"unrecorded": "" if recorded else text}


def reject(version: str, reason: str, home: str, actor: str = "") -> dict[str, Any]:
    """Reject a version on HOLD; return the recorded change. Arguments as for `approve`.

    Raises:
        UsageError: if the reason is empty or the version not a number.
        VerdictError: if it is not on HOLD, or the champion by now.
    """
    text, store = audit_log.check_reason(reason), _open_store(version, home)
    tags = lookup.read_tags(store, version)
    return _notified(promotion.reject(store, version, text, tags.get("verdict_digest", ""), actor))


def rollback(to: str | None, reason: str, dry_run: bool, home: str) -> dict[str, Any]:
    """Move the alias back to the previous champion, or to an earlier one; return the recorded change.

    If the alias was lost but the last champion's version still exists, that one counts as the previous champion. Where
    the last change is the rollback of the same person for the same reason, that one is meant, because its process may
    have been killed before it could report: its record is returned with `repeated`, and the alias stays.

    Args:
        to: version number; None for the previous champion.
        reason: recorded in the history.
        dry_run: check everything and change nothing.
        home: folder of the stores.

    Raises:
        UsageError: if the reason is empty, or the version never was the champion or is it now.
        VerdictError: if there is no previous champion, or its files are missing or altered.
    """
    text, store = audit_log.check_reason(reason), _open_store(to or "1", home)
    entries, records = promotion.history(store)
    champion = promotion.current_champion(store)
    now = champion["version"] if champion else None
    if now and not dry_run and to in (None, now) and promotion.find_repeated(records, "rollback", now, text):
        move = promotion.promote(store, now, kind="rollback", expected=now, reason=text)  # closes a pending record
        return _notified(move) | {"dry_run": False, "repeated": True}
    target = to or _previous(champion_history.champion_stack(entries), now)
    _check_target(target, now, champion_history.champion_stack(entries), {entry["to"] for entry in entries})
    bundle = champion_history.digest_of_version(records, target) or ""
    try:
        verification.verify_version(store, target, bundle)
    except UnreachableError:
        raise
    except VerdictError as error:
        raise VerdictError(f"{error}; or name another former champion: verdict rollback --to VERSION") from error
    if dry_run:
        return {"kind": "rollback", "from": now, "to": target, "reason": text, "dry_run": True}
    move = promotion.promote(store, target, kind="rollback", expected=now, reason=text, bundle=bundle)
    return _notified(move) | {"dry_run": False, "repeated": False}


def _notified(change: audit_log.AliasChange) -> dict[str, Any]:
    """Send the notification of a change; return the change as plain values."""
    notify_alias_change(dict(change))
    return dict(change)


def _open_store(version: str, home: str) -> MlflowStore:
    """Return the store; raise UsageError unless `version` is a version number."""
    store = reach_store(home)
    lookup.check_numbers(store, version)
    return store


def _previous(stack: list[str], now: str | None) -> str:
    """Return the previous champion; without an alias, the last one."""
    before = stack[:-1] if now else stack
    if before:
        return before[-1]
    if now:
        raise VerdictError(f"version {now} is champion; {champion_history.describe_way_back(stack)}")
    raise VerdictError("there never was a champion to roll back to; train the first one: verdict retrain")


def _check_target(target: str, now: str | None, stack: list[str], earlier: set[str | None]) -> None:
    if target == now:
        raise UsageError(f"version {target} is the champion already; see: verdict history")
    if target not in earlier:
        known = ", ".join(dict.fromkeys(version for version in stack if version != now)) or "none"
        raise UsageError(
            f"version {target} never was the champion; expected a former one ({known}), or for a HOLD: verdict approve"
        )
