"""Turns evidence into a verdict. Pure functions: the same evidence and policy give the same verdict anywhere.

REJECT   the candidate is unfit, whatever reigns
PROMOTE  it is fit, and nothing ever reigned or it is better than what does
HOLD     it is fit, and a person may decide

Each rule is one finding: its name and a reason with the numbers. Rules that reject come first, then those that hold,
and only where there is none of either does a rule promote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tasks.core.policy import Policy
    from tasks.evaluation.evidence import ChampionEvidence, Evidence
    from tasks.evaluation.measurement import Measurement

Decision = Literal["PROMOTE", "HOLD", "REJECT"]
SLICE_KINDS = {"source": "per_source", "length": "per_length"}


class RuleHit(NamedTuple):
    """A rule that applies, and why."""

    rule: str
    reason: str


class Verdict(TypedDict):
    """The decision, the rules that made it with their reasons, the numbers they saw, and what it is about.

    `policy` is the whole policy with its digest. `time` and `actor` are None until somebody signs.
    """

    decision: Decision
    rules: list[str]
    reasons: list[str]
    mcc: float
    threshold: float
    champion: str | None
    champion_mcc: float | None
    numbers: dict[str, float | int | None]
    candidate: str
    incumbent: str | None
    holdout: str
    training: str
    provider: str
    variant: str
    policy: dict[str, Any]
    versions: dict[str, str]
    git_commit: str
    time: str | None
    actor: str | None


def judge(evidence: Evidence, policy: Policy) -> Verdict:
    """Judge a candidate.

    Args:
        evidence: candidate and champion, measured on the same rows.
        policy: what it must show.
    """
    decision, findings, notes = decide(evidence, policy)
    candidate, champion = evidence["candidate"], evidence["champion"]
    measured = champion["measurement"] if champion else None
    return Verdict(
        decision=decision,
        rules=[finding.rule for finding in findings],
        reasons=[finding.reason for finding in findings] + notes,
        mcc=candidate["interval"]["mcc"],
        threshold=policy.threshold,
        champion=champion["version"] if champion else None,
        champion_mcc=measured["interval"]["mcc"] if measured else None,
        numbers=_numbers(evidence, policy),
        candidate=evidence["digest"],
        incumbent=champion["digest"] if champion else None,
        holdout=evidence["holdout"],
        training=evidence["training"],
        provider=candidate["provider"],
        variant=candidate["variant"],
        policy=policy.model_dump() | {"digest": policy.digest},
        versions=evidence["versions"],
        git_commit=evidence["git_commit"],
        time=None,
        actor=None,
    )


def decide(evidence: Evidence, policy: Policy) -> tuple[Decision, list[RuleHit], list[str]]:
    """Return the decision, the rules that made it, and what else a person should know."""
    if faults := list(reject_rules(evidence, policy)):
        return "REJECT", faults, []
    doubts, merit = list(hold_rules(evidence, policy)), promote_rule(evidence, policy)
    if merit and not doubts:
        return "PROMOTE", [merit], []
    if merit:
        return "HOLD", doubts, [f"it would be promoted otherwise: {merit.reason}"]
    return "HOLD", doubts + _shortfall(evidence, policy), []


def reject_rules(evidence: Evidence, policy: Policy) -> Iterator[RuleHit]:
    """Yield every rule that rejects."""
    candidate, comparison, leak = evidence["candidate"], evidence["comparison"], evidence["leak"]
    mcc = candidate["interval"]["mcc"]
    if not candidate["finite"]:
        yield RuleHit("non_finite_output", "an output is not a number")
    if candidate["classes_predicted"] < 2:
        yield RuleHit("one_class", "every sentence got the same label")
    if not mcc >= policy.threshold:  # written so that NaN is a fault
        yield RuleHit("below_threshold", f"MCC {mcc:.3f} is below the threshold {policy.threshold:.3f}")
    if comparison and comparison["p_worse"] <= 1 - policy.reject_confidence:
        chance = f"equal models would be so far behind in {_percent(comparison['p_worse'])} of cases"
        yield RuleHit("worse_than_champion", f"worse than the champion: {_compare(evidence)}; {chance}")
    yield from _find_odd_variants(evidence, policy)
    if leak["remaining"]:
        shown = f", for example {leak['sentences'][0]!r}" if leak["sentences"] else ""
        yield RuleHit("holdout_leak", f"{leak['remaining']} sentences of the holdout were trained on{shown}")


def hold_rules(evidence: Evidence, policy: Policy) -> Iterator[RuleHit]:
    """Yield every rule that leaves the decision to a person."""
    champion = evidence["champion"]
    if champion is None and evidence["champion_state"] != "none":
        yield RuleHit(
            "champion_lost",
            "there was a champion and its alias is gone (its version was deleted, or the alias): approve this one, or "
            "bring that one back; see: verdict history",
        )
    elif champion and _is_champion(evidence):
        yield RuleHit("same_bundle", f"it is champion {champion['version']} itself: the same bundle came out again")
        return
    elif champion and champion["measurement"] is None:
        yield RuleHit("champion_unmeasured", f"champion {champion['version']} cannot be measured: {champion['fault']}")
    if evidence["holdout_uses"] >= policy.max_holdout_uses:
        yield RuleHit(
            "holdout_uses_exhausted",
            f"{evidence['holdout_uses']} other candidates were judged on this holdout, at most "
            f"{policy.max_holdout_uses - 1} may have been: bring new sentences",
        )
    if champion and champion["measurement"]:
        yield from _find_dropped_slices(evidence["candidate"], champion["measurement"], policy)
        yield from _find_minimal_pair_drop(evidence, champion, policy)
    if evidence["drift"] and policy.hold_on_drift:
        yield RuleHit("drift", f"its data drifted from the champion's: {', '.join(evidence['drift'])}")


def promote_rule(evidence: Evidence, policy: Policy) -> RuleHit | None:
    """Return the rule that promotes, if one does."""
    champion, comparison = evidence["champion"], evidence["comparison"]
    if champion is None:
        never = evidence["champion_state"] == "none"
        return RuleHit("first_champion", "there is no champion yet") if never else None
    if comparison is None or _is_champion(evidence):
        return None
    if comparison["difference"] > 0 and comparison["p_better"] <= alpha(policy, evidence["holdout_uses"]):
        reason = f"better than the champion: {_compare(evidence)}{_odds(evidence, policy)}"
        return RuleHit("better_than_champion", reason)
    newer = champion["training"] is not None and champion["training"] != evidence["training"]
    if policy.promote_on_new_data and newer and comparison["low"] > -policy.margin:
        reason = f"no worse than the champion by more than {policy.margin:g}, on other training rows: "
        return RuleHit("no_worse_on_new_data", reason + _compare(evidence))
    return None


def alpha(policy: Policy, looks: int) -> float:
    """Return how often a model that is no better may look as much better, after so many looks at the holdout."""
    first = 1 - policy.confidence
    return max(first / (looks + 1) ** policy.alpha_decay, min(first, policy.min_alpha))


def stamp(verdict: Verdict, time: str, actor: str) -> Verdict:
    """Return the verdict with who judged, and when; the rest follows from evidence and policy."""
    return Verdict(**{**verdict, "time": time, "actor": actor})


def _is_champion(evidence: Evidence) -> bool:
    champion = evidence["champion"]
    return champion is not None and champion["digest"] == evidence["digest"]


def _shortfall(evidence: Evidence, policy: Policy) -> list[RuleHit]:
    """Say that a candidate is not better than a champion that it was compared with."""
    comparison = evidence["comparison"]
    if comparison is None or _is_champion(evidence):
        return []
    odds = _odds(evidence, policy) if comparison["difference"] > 0 else ""
    sure = " with the confidence that is asked" if odds else ""
    return [RuleHit("not_better", f"not better than the champion{sure}: {_compare(evidence)}{odds}")]


def _find_odd_variants(evidence: Evidence, policy: Policy) -> Iterator[RuleHit]:
    reference = evidence["variants"].get("fp32")
    for name, measured in evidence["variants"].items():
        if name != evidence["candidate"]["variant"] and not measured["finite"]:
            yield RuleHit("non_finite_output", f"an output of {name} is not a number")
        if reference is None:
            continue
        ours, theirs = measured["interval"]["mcc"], reference["interval"]["mcc"]
        if abs(ours - theirs) > policy.variant_difference:
            yield RuleHit(
                "variant_differs",
                f"{name} has MCC {ours:.3f}, fp32 {theirs:.3f}; they may differ by {policy.variant_difference:g}",
            )


def _find_dropped_slices(candidate: Measurement, champion: Measurement, policy: Policy) -> Iterator[RuleHit]:
    for kind, key in SLICE_KINDS.items():
        theirs: dict[str, dict[str, float]] = champion[key]  # type: ignore[literal-required]
        for name, here in candidate[key].items():  # type: ignore[literal-required]
            before = theirs[name]["mcc"]
            if here["rows"] >= policy.min_slice_rows and before - here["mcc"] > policy.max_slice_drop:
                yield RuleHit(
                    "slice_dropped",
                    f"{kind} {name} ({here['rows']} sentences): MCC {here['mcc']:.3f} against the champion's "
                    f"{before:.3f}; it may fall by {policy.max_slice_drop:g}",
                )


def _find_minimal_pair_drop(evidence: Evidence, champion: ChampionEvidence, policy: Policy) -> Iterator[RuleHit]:
    ours, theirs = evidence["minimal_pairs"], champion["minimal_pairs"]
    if theirs and theirs["share"] - ours["share"] > policy.max_minimal_pair_drop:
        yield RuleHit(
            "minimal_pairs_dropped",
            f"it tells {ours['share']:.1%} of {ours['pairs']} minimal pairs apart, the champion {theirs['share']:.1%}; "
            f"that may fall by {policy.max_minimal_pair_drop:.1%}",
        )


def _compare(evidence: Evidence) -> str:
    champion, comparison = evidence["champion"], evidence["comparison"]
    measured = champion["measurement"] if champion else None
    if champion is None or comparison is None or measured is None:
        return ""
    return (
        f"MCC {evidence['candidate']['interval']['mcc']:.3f} against {measured['interval']['mcc']:.3f} of champion "
        f"{champion['version']} on the same {measured['rows']} sentences"
    )


def _odds(evidence: Evidence, policy: Policy) -> str:
    comparison, looks = evidence["comparison"], evidence["holdout_uses"]
    if comparison is None:
        return ""
    others = "candidate" if looks == 1 else "candidates"
    after = f" after {looks} other {others} on this holdout" if looks else ""
    return (
        f"; equal models would be so far ahead in {_percent(comparison['p_better'])} of cases, "
        f"at most {_percent(alpha(policy, looks))} are allowed{after}"
    )


def _percent(chance: float) -> str:
    """Write a chance with two digits, however small."""
    return f"{100 * chance:.2g}%" if chance >= 1e-12 else "0%"


def _numbers(evidence: Evidence, policy: Policy) -> dict[str, float | int | None]:
    """Collect the numbers that rules look at; None where there is no champion to compare with."""
    comparison = dict[str, Any](evidence["comparison"] or {})
    champion = evidence["champion"]
    theirs = champion["minimal_pairs"] if champion else None
    keys = ("difference", "low", "high", "probability", "p_better", "p_worse", "mcnemar", "agreement")
    return {
        **{key: comparison.get(key) for key in (*keys, "differing")},
        "alpha": alpha(policy, evidence["holdout_uses"]),
        "holdout_uses": evidence["holdout_uses"],
        "minimal_pairs": evidence["minimal_pairs"]["share"],
        "champion_behaviour": theirs["share"] if theirs else None,
        "leak_remaining": evidence["leak"]["remaining"],
    }
