"""What a shadow deployment measured of two versions: figures for people, which no verdict depends on."""

from typing import TypedDict

SHADOW_SCHEMA_VERSION = 1


class SideFigures(TypedDict):
    """Of one of the two versions: milliseconds of a batch, and the MCC on flagged sentences (None without any)."""

    version: str
    p50_ms: float
    p99_ms: float
    mcc: float | None


class ShadowSummary(TypedDict):
    """What two versions answered to the same sentences since a server loaded both; times are ISO 8601, UTC."""

    schema_version: int
    since: str
    until: str
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
    return f"{text}; until {summary['until'][:16].replace('T', ' ')} UTC"
