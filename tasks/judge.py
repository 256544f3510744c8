"""Turns evidence into a verdict. Pure functions: the same evidence and policy give the same verdict anywhere.

REJECT   the candidate is unfit, whatever reigns
PROMOTE  it is fit, and nothing reigns or it is better than what does
HOLD     it is fit, and a person may decide
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from tasks.evidence import Evidence

Decision = Literal["PROMOTE", "HOLD", "REJECT"]


class Verdict(TypedDict):
    """The decision, the reasons for it, and the numbers it compared."""

    decision: Decision
    reasons: list[str]
    mcc: float
    threshold: float
    champion: str | None
    champion_mcc: float | None


def judge(evidence: Evidence, threshold: float) -> Verdict:
    """Judge a candidate.

    Args:
        evidence: candidate and champion, measured on the same rows.
        threshold: smallest MCC that is not rejected.
    """
    champion = evidence["champion"]
    measured = champion["measurement"] if champion else None
    faults = _faults(evidence, threshold)
    decision, reasons = _compare(evidence)
    return Verdict(
        decision="REJECT" if faults else decision,
        reasons=faults or reasons,
        mcc=evidence["candidate"]["interval"]["mcc"],
        threshold=threshold,
        champion=champion["version"] if champion else None,
        champion_mcc=measured["interval"]["mcc"] if measured else None,
    )


def _faults(evidence: Evidence, threshold: float) -> list[str]:
    """Return every reason to reject."""
    candidate = evidence["candidate"]
    mcc = candidate["interval"]["mcc"]
    faults = []
    if not candidate["finite"]:
        faults.append("an output is not a number")
    if candidate["classes_predicted"] < 2:
        faults.append("every sentence got the same label")
    if not mcc >= threshold:  # written so that NaN is a fault
        faults.append(f"MCC {mcc:.3f} is below the threshold {threshold:.3f}")
    return faults


def _compare(evidence: Evidence) -> tuple[Decision, list[str]]:
    """Decide between PROMOTE and HOLD for a candidate without faults."""
    champion = evidence["champion"]
    if champion is None:
        return "PROMOTE", ["there is no champion yet"]
    version, measured = champion["version"], champion["measurement"]
    if champion["digest"] == evidence["digest"]:
        return "HOLD", [f"it is champion {version} itself: the same bundle came out again"]
    if measured is None:
        return "HOLD", [f"champion {version} cannot be measured: {champion['fault']}"]
    mcc, reigning = evidence["candidate"]["interval"]["mcc"], measured["interval"]["mcc"]
    comparison = f"MCC {mcc:.3f} against {reigning:.3f} of champion {version} on the same {measured['rows']} sentences"
    if mcc > reigning:
        return "PROMOTE", [f"better than the champion: {comparison}"]
    return "HOLD", [f"not better than the champion: {comparison}"]
