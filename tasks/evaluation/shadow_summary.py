"""What shadow deployments measured of two versions: figures for people, which no verdict depends on."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from tasks.evaluation.metrics import Confusion, mcc_from_counts

SHADOW_SCHEMA_VERSION = 2


class SideFigures(TypedDict):
    """Of one of the two versions: milliseconds of a batch, and confusion and MCC on flagged sentences."""

    version: str
    p50_ms: float
    p99_ms: float
    confusion: list[int]
    """tn, fp, fn, tp"""
    mcc: float | None
    """None without a flagged sentence"""


class ShadowSummary(TypedDict):
    """What two versions answered to the same sentences since a server loaded both; times are ISO 8601, UTC."""

    schema_version: int
    since: str
    until: str
    servers: int
    """whose figures these are; a server that was restarted is two"""
    sentences: int
    equal: int
    """sentences that both gave the same label"""
    dropped: int
    """sentences that the shadow had no time for"""
    failures: int
    """batches that the challenger failed to answer"""
    flags: int
    """sentences that people flagged, on which the MCC is measured"""
    champion: SideFigures
    challenger: SideFigures


def side_figures(version: str, p50_ms: float, p99_ms: float, confusion: Confusion | Sequence[int]) -> SideFigures:
    """Return the figures of a version, the MCC from its confusion counts."""
    measured = float(mcc_from_counts(confusion)) if sum(confusion) else None
    return SideFigures(
        version=version,
        p50_ms=round(p50_ms, 3),
        p99_ms=round(p99_ms, 3),
        confusion=[int(count) for count in confusion],
        mcc=measured,
    )


def merge_summaries(summaries: Sequence[ShadowSummary]) -> ShadowSummary:
    """Return the figures of several servers, which compared the same two versions, as those of one.

    Counts are sums, and the MCC is that of their sum. Quantiles cannot be merged: the p50 is the mean of the servers',
    weighted by their sentences, the p99 that of the slowest.

    Raises:
        ValueError: without a summary, or if they are of different versions.
    """
    pairs = {(each["champion"]["version"], each["challenger"]["version"]) for each in summaries}
    if len(pairs) != 1:
        raise ValueError(f"summaries of {len(pairs)} pairs of versions cannot be merged; expected those of one")
    total = {
        name: sum(each[name] for each in summaries)
        for name in ("servers", "sentences", "equal", "dropped", "failures", "flags")
    }
    return ShadowSummary(
        schema_version=SHADOW_SCHEMA_VERSION,
        since=min(each["since"] for each in summaries),
        until=max(each["until"] for each in summaries),
        champion=_merge_sides([each["champion"] for each in summaries], [each["sentences"] for each in summaries]),
        challenger=_merge_sides([each["challenger"] for each in summaries], [each["sentences"] for each in summaries]),
        **total,  # type: ignore[typeddict-item]
    )


def _merge_sides(sides: Sequence[SideFigures], sentences: Sequence[int]) -> SideFigures:
    weights = sentences if sum(sentences) else [1] * len(sides)
    return side_figures(
        sides[0]["version"],
        float(np.average([side["p50_ms"] for side in sides], weights=weights)),
        max(side["p99_ms"] for side in sides),
        np.sum([side["confusion"] for side in sides], axis=0).tolist(),
    )


def describe_shadow(summary: ShadowSummary) -> str:
    """Return a summary as one line."""
    ours, theirs = summary["challenger"], summary["champion"]
    text = f"no sentence yet beside version {theirs['version']}"
    if summary["sentences"]:
        text = (
            f"{summary['equal'] / summary['sentences']:.1%} of {summary['sentences']} labels equal to version "
            f"{theirs['version']}'s; a batch took {ours['p50_ms']:.1f} ms (p99 {ours['p99_ms']:.1f}), its "
            f"{theirs['p50_ms']:.1f} ms (p99 {theirs['p99_ms']:.1f})"
        )
    if ours["mcc"] is not None and theirs["mcc"] is not None:
        text += f"; MCC {ours['mcc']:.3f} and {theirs['mcc']:.3f} on {summary['flags']} flagged sentences"
    if summary["failures"]:
        text += f"; {summary['failures']} batches failed"
    if summary["servers"] > 1:
        text += f"; {summary['servers']} servers"
    return f"{text}; until {summary['until'][:16].replace('T', ' ')} UTC"
