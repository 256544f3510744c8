"""Compares two registered versions on one holdout; judges a version again after the champion changed."""

import logging
import tempfile
from pathlib import Path
from typing import Any

from flows.services.server_watch import reach_store
from tasks.core.errors import UsageError, VerdictError
from tasks.core.files import json_digest, write_json
from tasks.core.policy import Policy, parse_policy
from tasks.core.provenance import RECORDED_PACKAGES
from tasks.core.settings_loader import SettingRow
from tasks.core.signing import REQUIRE_VARIABLE, signature_required
from tasks.core.timestamps import utc_now
from tasks.evaluation.compare_versions import VersionComparison, compare_bundles, compare_recorded, figures_of
from tasks.evaluation.evidence import (
    ChampionBundle,
    Evidence,
    SnapshotRef,
    add_champion,
    measure_again,
    parse_evidence,
)
from tasks.evaluation.judge import judge, stamp
from tasks.evaluation.run_diff import CODE_TAG, DATA_TAG, UNKNOWN, diff_runs
from tasks.inference.bundle import VERSION_DIGITS
from tasks.registry import lookup, promotion, shadow_record, tracking, verification
from tasks.registry.audit_log import actor
from tasks.registry.champion_history import ChampionRecord
from tasks.registry.code_digest import BUNDLE_DIGEST_TAG, BUNDLE_PATH, MANIFEST_DIGEST_TAG
from tasks.registry.register import JUDGED_IN_TAG
from tasks.registry.store import MlflowStore

# Of the bootstrap, the default of judge.resamples. These commands read no settings, and what a run recorded in its
# evidence, which nobody signed, must not decide how precisely a version is judged again.
RESAMPLES = 10_000

log = logging.getLogger("tasks.compare")


def compare(first: str, second: str | None, device: str, home: str) -> dict[str, Any]:
    """Compare two versions on the holdout on which the first was judged.

    If its snapshot is here, both versions predict its rows again; otherwise their recorded answers are compared, which
    nobody signed.

    Args:
        first: version number.
        second: version number; None for the champion.
        device: auto, cuda or cpu.
        home: folder of the stores.

    Raises:
        UsageError: if a version is not a number, or both are the same.
        VerdictError: if one does not exist or is damaged, or there are no rows to compare both on.
    """
    store = reach_store(home)
    lookup.check_numbers(store, first, second or first)
    other = second or _champion(store)
    if first == other:
        itself = "with itself" if second else "with the champion, which it is itself"
        raise UsageError(
            f"version {first} cannot be compared {itself}; name another version: verdict compare {first} B"
        )
    tags = {version: lookup.read_tags(store, version) for version in (first, other)}
    holdout = tags[first].get("holdout", "")
    snapshot = find_snapshot(home, holdout)
    if snapshot:
        with verification.open_verified(store, first) as ours, verification.open_verified(store, other) as theirs:
            bundles = str(ours.bundle), str(theirs.bundle)
            result: VersionComparison | None = compare_bundles(*bundles, str(snapshot), device, RESAMPLES)
    else:
        evidence = [_checked_evidence(store, version, tags[version]) for version in (first, other)]
        result = compare_recorded(evidence[0], evidence[1]) if evidence[0] and evidence[1] else None
    if result is None:
        raise VerdictError(
            f"versions {first} and {other} were judged on other rows, and the holdout {holdout[:12] or 'unknown'} is "
            f"not in {Path(home) / 'snapshots'}; read the data once: verdict check --data ADDRESS"
        )
    sides = {first: result["first"], other: result["second"]}
    return {
        "holdout": holdout,
        "rows": result["comparison"]["rows"],
        "basis": "measured" if snapshot else "recorded",
        "labels": result["labels"],
        "versions": [
            {"version": version, "verdict": tags[version].get("verdict"), **figures_of(side)}
            for version, side in sides.items()
        ],
        "comparison": dict(result["comparison"]),
        "changes": _list_changes(store, tags[first], tags[other]),
        "shadow": shadow_record.read_shadow(store, first, other) or shadow_record.read_shadow(store, other, first),
    }


def _list_changes(store: MlflowStore, ours: dict[str, str], theirs: dict[str, str]) -> list[dict[str, str]] | None:
    """Return what differs between the runs of two versions (name, first, second); None where a run was deleted."""
    first, second = (tracking.read_run_record(store, tags["run"]) for tags in (ours, theirs))
    if first is None or second is None:
        return None
    settings = [SettingRow(key, value, "") for key, value in first["settings"].items()]
    facts = {name: first["tags"].get(name, UNKNOWN) for name in (DATA_TAG, CODE_TAG, *RECORDED_PACKAGES)}
    facts = {name: value for name, value in facts.items() if value != second["tags"].get(name, UNKNOWN)}
    return [
        {"what": change.what, "first": change.now, "second": change.before}
        for change in diff_runs(second, settings, facts)
    ]


def judge_again(store: MlflowStore, version: str, champion: ChampionRecord | None, home: str) -> str:
    """Judge a version against the current champion, and record it with its run; return the digest of the verdict.

    Both are measured again: whoever can write to the run's artifacts could have changed the recorded answers.

    Raises:
        VerdictError: if it is rejected, its evidence or the holdout's snapshot is missing, or what its run holds is not
            what was registered.
    """
    tags = lookup.read_tags(store, version)
    evidence = read_evidence_of(store, version, tags)
    snapshot = find_snapshot(home, tags.get("holdout", ""))
    now = champion["version"] if champion else "none"
    if evidence is None or snapshot is None:
        what = "its evidence" if evidence is None else f"the holdout {tags.get('holdout', '')[:12]}"
        raise VerdictError(
            f"version {version} was compared with champion {tags.get('compared_with') or 'none'}, the champion is "
            f"{now} now, and {what} is missing to judge it again; run: verdict retrain --force"
        )
    policy = _registered_policy(store, version, tags)
    holdout = SnapshotRef(digest=tags["holdout"], path=str(snapshot))
    with verification.open_verified(store, version) as held:
        evidence = measure_again(evidence, str(held.bundle), holdout, policy.recorded(), "auto", RESAMPLES)
    if champion:
        with verification.open_model(store, champion["version"]) as model:
            current = ChampionBundle(
                version=champion["version"],
                digest=champion["digest"],
                manifest_digest=lookup.read_tags(store, champion["version"]).get(MANIFEST_DIGEST_TAG, ""),
                bundle=str(model / BUNDLE_PATH),
            )
            evidence = add_champion(evidence, current, holdout, "auto")
    else:
        evidence["champion_state"] = promotion.read_champion_state(store)
    verdict = stamp(judge(evidence, policy), utc_now(), actor())
    with tempfile.TemporaryDirectory() as scratch:
        name = f"against-{champion['version'] if champion else 'none'}"
        write_json(Path(scratch) / f"evidence-{name}.json", evidence)
        write_json(Path(scratch) / f"verdict-{name}.json", verdict)
        tracking.log_files(store, _judging_run(tags), [str(path) for path in Path(scratch).iterdir()], "records")
    if verdict["decision"] == "REJECT":
        raise VerdictError(
            f"version {version} was judged again, against champion {now}: REJECT: {'; '.join(verdict['reasons'])}; "
            f"see: verdict compare {version}"
        )
    return json_digest(verdict)


def find_snapshot(home: str, digest: str) -> Path | None:
    """Return the path of a snapshot; None if it is not here."""
    path = Path(home) / "snapshots" / f"{digest}.parquet"
    return path if digest and path.is_file() else None


def _champion(store: MlflowStore) -> str:
    champion = promotion.current_champion(store)
    if champion is None:
        raise VerdictError(f"there is no champion in {store['uri']} to compare with; name a second version")
    return champion["version"]


def _checked_evidence(store: MlflowStore, version: str, tags: dict[str, str]) -> Evidence | None:
    """Return the recorded evidence of a version whose files are those registered.

    Raises:
        VerdictError: if they are not, or if signatures are required, which evidence does not have.
    """
    verification.verify_version(store, version)
    if signature_required():
        raise VerdictError(
            f"the recorded evidence of version {version} is not signed, and {REQUIRE_VARIABLE} is set; read the data "
            "once, then both versions are measured: verdict check --data ADDRESS"
        )
    return read_evidence_of(store, version, tags)


def read_evidence_of(store: MlflowStore, version: str, tags: dict[str, str]) -> Evidence | None:
    """Return the evidence that a version's run recorded; None if there is none of this schema version.

    Raises:
        VerdictError: if it is of another bundle than the registered one.
    """
    found = verification.read_recorded(store, _judging_run(tags), "evidence.json")
    try:
        evidence = parse_evidence(found, f"evidence of run {_judging_run(tags)}") if found else None
    except VerdictError as error:
        log.warning("%s", error)
        return None
    if evidence:
        _check_recorded(f"the evidence of version {version}", str(evidence["digest"]), tags.get(BUNDLE_DIGEST_TAG, ""))
    return evidence


def _registered_policy(store: MlflowStore, version: str, tags: dict[str, str]) -> Policy:
    """Return the policy of a version's verdict: a profile or a flag may have changed numbers of the bundled one.

    Raises:
        VerdictError: if the recorded verdict is not the registered one.
    """
    verdict = verification.read_recorded(store, _judging_run(tags), "verdict.json")
    _check_recorded(f"the verdict of version {version}", json_digest(verdict), tags.get("verdict_digest", ""))
    return parse_policy(verdict["policy"], f"of version {version}")


def _judging_run(tags: dict[str, str]) -> str:
    return tags.get(JUDGED_IN_TAG) or tags["run"]


def _check_recorded(what: str, found: str, registered: str) -> None:
    if found != registered:
        raise VerdictError(
            f"{what} in its MLflow run has digest {found[:VERSION_DIGITS]}, registered was "
            f"{registered[:VERSION_DIGITS] or 'none'}; judge it from its data: verdict retrain --force"
        )
