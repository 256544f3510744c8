"""What a person decides about versions and what is asked of them: approve, reject, rollback, history, predict."""

from pathlib import Path
from typing import Any

from flows.notifications import notify_alias_change
from tasks.core.errors import UnreachableError, UsageError, VerdictError
from tasks.inference.classifier import Classifier
from tasks.registry import audit_log as record
from tasks.registry import champion_history as told
from tasks.registry import promotion as moves
from tasks.registry import verification as inspection
from tasks.registry import versions as registry
from tasks.registry.mlflow_client import MlflowStore, locate_store


def history(home: str) -> list[dict[str, Any]]:
    """Return every move of the champion's alias, oldest first; what no record explains has no time and no actor."""
    entries, _ = moves.history(locate_store(home))
    return [dict(entry) for entry in entries]


def approve(version: str, reason: str, home: str, who: str = "") -> dict[str, Any]:
    """Make a version on HOLD champion; return the record of it.

    Args:
        version: which.
        reason: why.
        home: folder of the stores.
        who: decides; empty: VERDICT_ACTOR, else user@host.

    Raises:
        WrongUsage: if the reason is empty or the version no number.
        VerdictError: if it is on no HOLD, its files are missing or altered, or another champion reigns than the one it
            was compared with, and it is rejected beside that one or cannot be judged again.
    """
    text, store = record.check_reason(reason), _check(version, home)
    tags, champion = registry.read_tags(store, version), moves.current_champion(store)
    now, verdict = champion["version"] if champion else None, tags.get("verdict_digest", "")
    if tags.get("verdict") == "HOLD" and now not in (tags.get("compared_with") or None, version):
        from flows.commands.compare import judge_again  # what measures is imported by who measures

        verdict = judge_again(store, version, champion, home)
    return _registered_numbers(
        moves.promote(store, version, kind="approve", expected=now, reason=text, verdict=verdict, who=who)
    )


def reject(version: str, reason: str, home: str, who: str = "") -> dict[str, Any]:
    """Turn a version on HOLD down; return the record of it. Arguments as for `approve`.

    Raises:
        WrongUsage: if the reason is empty or the version no number.
        VerdictError: if it is on no HOLD, or champion by now.
    """
    text, store = record.check_reason(reason), _check(version, home)
    tags = registry.read_tags(store, version)
    return _registered_numbers(moves.reject(store, version, text, tags.get("verdict_digest", ""), who))


def rollback(to: str | None, reason: str, dry_run: bool, home: str) -> dict[str, Any]:
    """Give the alias back to the champion before, or to another one that reigned; return the record of it.

    A champion that vanished is itself the one before, as long as its version is there.

    Args:
        to: version; None: the previous champion by the record.
        reason: why.
        dry_run: check everything and move nothing.
        home: folder of the stores.

    Raises:
        WrongUsage: if the reason is empty, or the version never reigned or reigns now.
        VerdictError: if there is no previous champion, or its files are missing or altered.
    """
    text, store = record.check_reason(reason), _check(to or "1", home)
    entries, records = moves.history(store)
    champion = moves.current_champion(store)
    now = champion["version"] if champion else None
    target = to or _previous(told.champion_stack(entries), now)
    _refuse_target(target, now, told.champion_stack(entries), {entry["to"] for entry in entries})
    bundle = told.digest_of_version(records, target) or ""
    try:
        inspection.verify_version(store, target, bundle)
    except UnreachableError:
        raise
    except VerdictError as error:
        raise VerdictError(f"{error}; or name another champion: verdict rollback --to VERSION") from error
    if dry_run:
        return {"kind": "rollback", "from": now, "to": target, "reason": text, "dry_run": True}
    move = moves.promote(store, target, kind="rollback", expected=now, reason=text, bundle=bundle)
    return _registered_numbers(move) | {"dry_run": False}


def predict(sentences: list[str], model: str, device: str, home: str) -> list[dict[str, Any]]:
    """Judge sentences with a model; every answer carries its version.

    Raises:
        VerdictError: if there is no such model, or its bundle is damaged.
    """
    version, bundle = find_model(model, home)
    return [{**answer, "version": version} for answer in Classifier.from_bundle(bundle, device).predict(sentences)]


def find_model(model: str, home: str) -> tuple[str | None, str]:
    """Return a model's version, None for a bundle that is no registered one, and its bundle's folder on local disk.

    Args:
        model: registry address, version number, or a bundle's folder.
        home: folder of the stores.

    Raises:
        WrongUsage: if it is none of these.
        VerdictError: if there is no such version.
    """
    address = f"models:/{registry.MODEL_NAME}/{model}" if model.isdecimal() else model
    if address == model and Path(model).is_dir():
        return None, model
    version = registry.fetch_version(locate_store(home), address)
    return version["version"], version["bundle"]


def _registered_numbers(move: record.AliasChange) -> dict[str, Any]:
    """Return a record as plain values, and tell whoever wants to know."""
    notify_alias_change(dict(move))
    return dict(move)


def _check(version: str, home: str) -> MlflowStore:
    """Return the store that holds versions; refuse what is no version's number."""
    store = locate_store(home)
    registry.check_numbers(store, version)
    return store


def _previous(stack: list[str], now: str | None) -> str:
    """Return who reigned before; where the alias is gone, who reigned last."""
    before = stack[:-1] if now else stack
    if not before:
        raise VerdictError(
            f"no champion reigned before {now or 'now'}, so there is none to go back to; see: verdict history"
        )
    return before[-1]


def _refuse_target(target: str, now: str | None, stack: list[str], reigned: set[str | None]) -> None:
    if target == now:
        raise UsageError(f"version {target} is champion already; see: verdict history")
    if target not in reigned:
        known = ", ".join(dict.fromkeys(version for version in stack if version != now)) or "none"
        raise UsageError(
            f"version {target} never was champion; expected one that was ({known}), or for a HOLD: verdict approve"
        )
