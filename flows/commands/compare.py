"""Compares two registered versions on one holdout; judges a version again after the champion changed."""

import datetime
import logging
import tempfile
from pathlib import Path
from typing import Any

from tasks.core.errors import UsageError, VerdictError
from tasks.core.files import json_digest, write_json
from tasks.core.policy import parse_policy
from tasks.evaluation.compare_versions import VersionComparison, compare_bundles, compare_recorded, figures_of
from tasks.evaluation.evidence import ChampionBundle, Evidence, SnapshotRef, add_champion, parse_evidence
from tasks.evaluation.judge import judge, stamp
from tasks.registry import lookup, promotion, tracking, verification
from tasks.registry.audit_log import actor
from tasks.registry.champion_history import ChampionRecord
from tasks.registry.code_digest import BUNDLE_PATH, MANIFEST_DIGEST_TAG
from tasks.registry.store import MlflowStore, locate_store

RESAMPLES = 10_000

log = logging.getLogger("tasks.compare")


def compare(first: str, second: str | None, device: str, home: str) -> dict[str, Any]:
    """Compare two versions on the holdout on which the first was judged.

    If its snapshot is here, both versions predict its rows again; otherwise their recorded answers are compared.

    Args:
        first: version number.
        second: version number; None for the champion.
        device: auto, cuda or cpu.
        home: folder of the stores.

    Raises:
        UsageError: if a version is not a number, or both are the same.
        VerdictError: if one does not exist or is damaged, or there are no rows to compare both on.
    """
    store = locate_store(home)
    lookup.check_numbers(store, first, second or first)
    other = second or _champion(store)
    if first == other:
        raise UsageError(f"version {first} cannot be compared with itself; name another: verdict compare {first} B")
    tags = {version: lookup.read_tags(store, version) for version in (first, other)}
    holdout = tags[first].get("holdout", "")
    snapshot = find_snapshot(home, holdout)
    if snapshot:
        with verification.open_verified(store, first) as ours, verification.open_verified(store, other) as theirs:
            bundles = str(ours.bundle), str(theirs.bundle)
            result: VersionComparison | None = compare_bundles(*bundles, str(snapshot), device, RESAMPLES)
    else:
        evidence = [_evidence(store, tags[version]) for version in (first, other)]
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
        "versions": [
            {"version": version, "verdict": tags[version].get("verdict"), **figures_of(side)}
            for version, side in sides.items()
        ],
        "comparison": dict(result["comparison"]),
    }


def judge_again(store: MlflowStore, version: str, champion: ChampionRecord | None, home: str) -> str:
    """Judge a version against the current champion, and record it with its run; return the digest of the verdict.

    Raises:
        VerdictError: if it is rejected, or its evidence or the holdout's snapshot is missing.
    """
    tags = lookup.read_tags(store, version)
    evidence = _evidence(store, tags)
    snapshot = find_snapshot(home, tags.get("holdout", ""))
    now = champion["version"] if champion else "none"
    if evidence is None or (champion and snapshot is None):
        what = "its evidence" if evidence is None else f"the holdout {evidence['holdout_digest'][:12]}"
        raise VerdictError(
            f"version {version} was compared with champion {tags.get('compared_with') or 'none'}, the champion is "
            f"{now} now, and {what} is missing to judge it again; run: verdict retrain --force"
        )
    if champion:
        with verification.open_model(store, champion["version"]) as model:
            current = ChampionBundle(
                version=champion["version"],
                digest=champion["digest"],
                manifest_digest=lookup.read_tags(store, champion["version"]).get(MANIFEST_DIGEST_TAG, ""),
                bundle=str(model / BUNDLE_PATH),
            )
            holdout = SnapshotRef(digest=evidence["holdout_digest"], path=str(snapshot))
            evidence = add_champion(evidence, current, holdout, "auto")
    else:
        gone = {"champion_state": promotion.read_champion_state(store), "champion": None, "comparison": None}
        evidence = Evidence(**{**evidence, **gone})  # type: ignore[typeddict-item]
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    verdict = stamp(judge(evidence, parse_policy(evidence["policy"], f"of version {version}")), time, actor())
    with tempfile.TemporaryDirectory() as scratch:
        name = f"against-{champion['version'] if champion else 'none'}"
        write_json(Path(scratch) / f"evidence-{name}.json", evidence)
        write_json(Path(scratch) / f"verdict-{name}.json", verdict)
        tracking.log_files(store, tags["run"], [str(path) for path in Path(scratch).iterdir()], "records")
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


def _evidence(store: MlflowStore, tags: dict[str, str]) -> Evidence | None:
    """Return the evidence that a version's run recorded; None if there is none of this schema version."""
    found = verification.read_recorded(store, tags["run"], "evidence.json")
    try:
        return parse_evidence(found, f"evidence of run {tags['run']}") if found else None
    except VerdictError as error:
        log.warning("%s", error)
        return None
