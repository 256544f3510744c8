"""Applies the promotion policy to evidence. Pure functions: the same evidence and policy give the same verdict.

REJECT   the candidate is unfit, whatever the champion is
PROMOTE  it is fit, and there never was a champion or it is better than the champion
HOLD     it is fit, and a person decides

Every rule that applies is a `RuleHit`: the rule's name and a reason with the numbers. If any rule rejects, the verdict
is REJECT; otherwise if any rule holds, HOLD; otherwise a rule may promote.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from tasks.inference.decision import DEFAULT_THRESHOLD, threshold_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tasks.core.policy import Policy
    from tasks.evaluation.evidence import ChampionEvidence, Evidence
    from tasks.evaluation.measurement import Measurement
    from tasks.evaluation.metrics import SliceFigures

Decision = Literal["PROMOTE", "HOLD", "REJECT"]
SMALLEST_P = 1e-14  # of a reason
SLICE_KINDS = {"source": "per_source", "length": "per_length"}


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a rule does when it applies, and why it exists."""

    effect: Decision
    explanation: str


RULES = {
    "non_finite_output": Rule("REJECT", "A model with NaN or Inf among its outputs is rejected."),
    "one_class": Rule("REJECT", "A model that gives every sentence the same label is rejected."),
    "below_threshold": Rule("REJECT", "A model with an MCC below the policy's threshold is rejected."),
    "worse_than_champion": Rule("REJECT", "A model that is significantly worse than the champion is rejected."),
    "variant_differs": Rule(
        "REJECT", "A model with a variant whose MCC is further from that of fp32 than the policy allows is rejected."
    ),
    "decision_threshold": Rule(
        "REJECT",
        "A model whose decision threshold is out of the policy's bounds, or gains too little over 0.5 on the "
        "validation sentences, is rejected.",
    ),
    "too_slow": Rule("REJECT", "A model whose latency exceeds the policy's limit is rejected."),
    "too_large": Rule("REJECT", "A model whose file is larger than the policy's limit is rejected."),
    "holdout_leak": Rule(
        "REJECT", "A model that was trained on holdout sentences is rejected: its figures are not valid."
    ),
    "champion_lost": Rule("HOLD", "If there was a champion and its alias is gone, a person decides who follows."),
    "same_bundle": Rule("HOLD", "A candidate that is the champion's own bundle is neither better nor worse."),
    "champion_unmeasured": Rule(
        "HOLD", "If the champion cannot be measured, nothing shows that the candidate is better."
    ),
    "holdout_uses_exhausted": Rule(
        "HOLD", "A holdout that was used for too many candidates promotes none without a person."
    ),
    "slice_dropped": Rule("HOLD", "A better model that is much worse for one source or length waits for a person."),
    "minimal_pairs_dropped": Rule(
        "HOLD", "A better model that ranks clearly fewer minimal pairs correctly waits for a person."
    ),
    "drift": Rule("HOLD", "A model trained on data that drifted from the champion's waits for a person."),
    "champion_knows_holdout": Rule(
        "HOLD",
        "A champion that was trained on sentences of the holdout has too good figures there: unless the candidate is "
        "better all the same, a person decides.",
    ),
    "not_better": Rule("HOLD", "Only a model that is significantly better is promoted without a person."),
    "first_champion": Rule("PROMOTE", "A fit model is promoted if there never was a champion."),
    "better_than_champion": Rule("PROMOTE", "A model that is significantly better than the champion is promoted."),
    "no_worse_on_new_data": Rule(
        "PROMOTE", "A model trained on other rows is promoted if it is no worse than the champion within the margin."
    ),
}


class RuleHit(NamedTuple):
    """A rule that applies, and the reason with its numbers."""

    rule: str
    reason: str


class Verdict(TypedDict):
    """The decision with the rules that made it, their reasons and the numbers; the content of verdict.json.

    `champion` is a version. `numbers` are those that rules read, None where there is no champion to compare with.
    `policy` is the whole policy as plain values. `time` and `actor` are None until `stamp`.
    """

    decision: Decision
    rules: list[str]
    reasons: list[str]
    mcc: float
    threshold: float
    champion: str | None
    champion_mcc: float | None
    numbers: dict[str, float | int | None]
    candidate_digest: str
    champion_digest: str | None
    holdout_digest: str
    training_digest: str
    provider: str
    variant: str
    policy: dict[str, Any]
    policy_digest: str
    versions: dict[str, str]
    git_commit: str
    time: str | None
    actor: str | None


def judge(evidence: Evidence, policy: Policy) -> Verdict:
    """Return the verdict on a candidate, without time and actor."""
    decision, hits, notes = decide(evidence, policy)
    candidate, champion = evidence["candidate"], evidence["champion"]
    measured = champion["measurement"] if champion else None
    return Verdict(
        decision=decision,
        rules=[hit.rule for hit in hits],
        reasons=[hit.reason for hit in hits] + notes,
        mcc=candidate["interval"]["mcc"],
        threshold=policy.threshold,
        champion=champion["version"] if champion else None,
        champion_mcc=measured["interval"]["mcc"] if measured else None,
        numbers=_numbers(evidence, policy),
        candidate_digest=evidence["digest"],
        champion_digest=champion["digest"] if champion else None,
        holdout_digest=evidence["holdout_digest"],
        training_digest=evidence["training_digest"],
        provider=candidate["provider"],
        variant=candidate["variant"],
        policy=policy.recorded(),
        policy_digest=policy.digest,
        versions=evidence["versions"],
        git_commit=evidence["git_commit"],
        time=None,
        actor=None,
    )


def decide(evidence: Evidence, policy: Policy) -> tuple[Decision, list[RuleHit], list[str]]:
    """Return the decision, the rules that made it, and notes for the person who decides."""
    if rejects := list(reject_rules(evidence, policy)):
        return "REJECT", rejects, []
    holds, promotes = list(hold_rules(evidence, policy)), promote_rule(evidence, policy)
    if promotes and not holds:
        return "PROMOTE", [promotes], []
    if promotes:
        return "HOLD", holds, [f"without that it would be promoted: {promotes.reason}"]
    return "HOLD", holds + _not_better(evidence, policy), []


def reject_rules(evidence: Evidence, policy: Policy) -> Iterator[RuleHit]:
    """Yield every rule that rejects."""
    candidate, comparison, leak = evidence["candidate"], evidence["comparison"], evidence["leak"]
    mcc = candidate["interval"]["mcc"]
    if not candidate["finite"]:
        yield RuleHit("non_finite_output", "an output is NaN or Inf")
    if candidate["classes_predicted"] < 2:
        yield RuleHit("one_class", "every sentence got the same label")
    if not mcc >= policy.threshold:  # also true if the MCC is NaN
        yield RuleHit("below_threshold", f"MCC {mcc:.3f} is below the threshold {policy.threshold:.3f}")
    if comparison and not _known_holdout(evidence) and comparison["p_worse"] <= 1 - policy.reject_confidence:
        p_value = f"p {_p_value(comparison['p_worse'])}, at most {1 - policy.reject_confidence:.2g} rejects"
        yield RuleHit("worse_than_champion", f"worse than the champion: {_compare(evidence)}; {p_value}")
    yield from _differing_variants(evidence, policy)
    yield from _refused_threshold(evidence, policy)
    yield from _exceeded_limits(evidence, policy)
    if leak["remaining"]:
        shown = f", for example {leak['sentences'][0]!r}" if leak["sentences"] else ""
        yield RuleHit("holdout_leak", f"{leak['remaining']} sentences of the holdout were trained on{shown}")


def hold_rules(evidence: Evidence, policy: Policy) -> Iterator[RuleHit]:
    """Yield every rule that leaves the decision to a person."""
    champion = evidence["champion"]
    if champion is None and evidence["champion_state"] != "none":
        yield RuleHit(
            "champion_lost",
            "there was a champion and its alias is gone (its version or the alias was deleted): approve this candidate "
            "or restore the champion; see: verdict history",
        )
    elif champion and _is_champions_bundle(evidence):
        yield RuleHit("same_bundle", f"it is the same bundle as champion {champion['version']}")
        return
    elif champion and champion["measurement"] is None:
        yield RuleHit("champion_unmeasured", f"champion {champion['version']} cannot be measured: {champion['fault']}")
    if evidence["holdout_uses"] >= policy.max_holdout_uses:
        yield RuleHit(
            "holdout_uses_exhausted",
            f"{evidence['holdout_uses']} other candidates were judged on this holdout, expected fewer than "
            f"{policy.max_holdout_uses}; use another holdout",
        )
    if champion and champion["measurement"]:
        yield from _dropped_slices(evidence["candidate"], champion["measurement"], policy)
        yield from _minimal_pair_drop(evidence, champion, policy)
    if evidence["drift"] and policy.hold_on_drift:
        yield RuleHit("drift", f"its data drifted from the champion's: {', '.join(evidence['drift'])}")


def promote_rule(evidence: Evidence, policy: Policy) -> RuleHit | None:
    """Return the rule that promotes, or None."""
    champion, comparison = evidence["champion"], evidence["comparison"]
    if champion is None:
        first = evidence["champion_state"] == "none"
        return RuleHit("first_champion", "there is no champion yet") if first else None
    if comparison is None or _is_champions_bundle(evidence):
        return None
    if comparison["difference"] > 0 and comparison["p_better"] <= alpha(policy, evidence["holdout_uses"]):
        reason = f"better than the champion: {_compare(evidence)}{_significance(evidence, policy)}"
        return RuleHit("better_than_champion", reason)
    other_rows = champion["training_digest"] not in (None, evidence["training_digest"])
    if policy.promote_on_new_data and other_rows and comparison["low"] > -policy.margin:
        reason = f"no worse than the champion by more than {policy.margin:g}, on other training rows: "
        return RuleHit("no_worse_on_new_data", reason + _compare(evidence))
    return None


def alpha(policy: Policy, uses: int) -> float:
    """Return the significance level for promotion after `uses` earlier candidates on this holdout (alpha spending)."""
    first = 1 - policy.confidence
    return max(first / (uses + 1) ** policy.alpha_decay, min(first, policy.min_alpha))


def stamp(verdict: Verdict, time: str, actor: str) -> Verdict:
    """Return the verdict with its time (ISO 8601) and actor, the only fields that evidence and policy do not decide."""
    return Verdict(**{**verdict, "time": time, "actor": actor})


def _is_champions_bundle(evidence: Evidence) -> bool:
    champion = evidence["champion"]
    return champion is not None and champion["digest"] == evidence["digest"]


def _not_better(evidence: Evidence, policy: Policy) -> list[RuleHit]:
    comparison = evidence["comparison"]
    if comparison is None or _is_champions_bundle(evidence):
        return []
    significance = _significance(evidence, policy) if comparison["difference"] > 0 else ""
    word = "significantly better" if significance else "better"
    hits = [RuleHit("not_better", f"not {word} than the champion: {_compare(evidence)}{significance}")]
    champion, known = evidence["champion"], _known_holdout(evidence)
    if champion and known:
        reason = (
            f"{known} sentences of the holdout are among the rows that champion {champion['version']} was trained on, "
            "so its figures are too good: compare them on another holdout"
        )
        hits.append(RuleHit("champion_knows_holdout", reason))
    return hits


def _known_holdout(evidence: Evidence) -> int:
    """Return how many sentences of the holdout the champion was trained on, as far as that is known."""
    champion = evidence["champion"]
    return champion.get("holdout_known", 0) if champion else 0


def _differing_variants(evidence: Evidence, policy: Policy) -> Iterator[RuleHit]:
    reference = evidence["variants"].get("fp32")
    for name, measured in evidence["variants"].items():
        if name != evidence["candidate"]["variant"] and not measured["finite"]:
            yield RuleHit("non_finite_output", f"an output of {name} is NaN or Inf")
        if reference is None:
            continue
        ours, theirs = measured["interval"]["mcc"], reference["interval"]["mcc"]
        if abs(ours - theirs) > policy.variant_difference:
            yield RuleHit(
                "variant_differs",
                f"{name} has MCC {ours:.3f}, fp32 {theirs:.3f}; at most {policy.variant_difference:g} apart is allowed",
            )


def _refused_threshold(evidence: Evidence, policy: Policy) -> Iterator[RuleHit]:
    threshold, choice = threshold_of(evidence["candidate"]), evidence.get("threshold_choice")
    low, high = policy.min_decision_threshold, policy.max_decision_threshold
    if not low <= threshold <= high:
        reason = f"its decision threshold is {threshold:.3f}; {low:g} to {high:g} is allowed"
        yield RuleHit("decision_threshold", reason)
    gain = choice["mcc"] - choice["default_mcc"] if choice else 0.0
    if threshold != DEFAULT_THRESHOLD and gain < policy.min_threshold_gain:
        reason = f"its decision threshold {threshold:.3f} gains {gain:.3f} MCC over 0.5 on the validation sentences"
        yield RuleHit("decision_threshold", f"{reason}; at least {policy.min_threshold_gain:g} is required")


def _exceeded_limits(evidence: Evidence, policy: Policy) -> Iterator[RuleHit]:
    costs, variant = evidence.get("costs"), evidence["candidate"]["variant"]
    served = costs["variants"].get(variant) if costs else None
    if excess := _exceeds(served["latency_ms"] if served else None, policy.max_latency_ms, "ms"):
        hardware = f" on {costs['hardware']}" if costs else ""
        yield RuleHit("too_slow", f"the latency of {variant}{hardware} {excess}")
    if excess := _exceeds(served["size_mb"] if served else None, policy.max_size_mb, "MB"):
        yield RuleHit("too_large", f"the size of {variant} {excess}")


def _exceeds(found: float | None, limit: float, unit: str) -> str:
    """Say that a figure is above its limit or was not measured; empty where it is not, or there is no limit."""
    if not limit or (found is not None and found <= limit):
        return ""
    measured = "was not measured" if found is None else f"is {found:g} {unit}"
    return f"{measured}; at most {limit:g} {unit} is allowed"


def _dropped_slices(candidate: Measurement, champion: Measurement, policy: Policy) -> Iterator[RuleHit]:
    for kind, key in SLICE_KINDS.items():
        theirs: dict[str, SliceFigures] = champion[key]  # type: ignore[literal-required]
        ours: dict[str, SliceFigures] = candidate[key]  # type: ignore[literal-required]
        for name, here in ours.items():
            now, before = here["mcc"], theirs[name]["mcc"]
            if now is None or before is None:  # one label only: nothing that could drop
                continue
            if here["rows"] >= policy.min_slice_rows and before - now > policy.max_slice_drop:
                yield RuleHit(
                    "slice_dropped",
                    f"{kind} {name} ({here['rows']} sentences): MCC {now:.3f} against the champion's "
                    f"{before:.3f}; a drop of at most {policy.max_slice_drop:g} is allowed",
                )


def _minimal_pair_drop(evidence: Evidence, champion: ChampionEvidence, policy: Policy) -> Iterator[RuleHit]:
    ours, theirs = evidence["minimal_pairs"], champion["minimal_pairs"]
    if theirs and theirs["share"] - ours["share"] > policy.max_minimal_pair_drop:
        yield RuleHit(
            "minimal_pairs_dropped",
            f"it ranks {ours['share']:.1%} of {ours['pairs']} minimal pairs correctly, the champion "
            f"{theirs['share']:.1%}; a drop of at most {policy.max_minimal_pair_drop:.1%} is allowed",
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


def _significance(evidence: Evidence, policy: Policy) -> str:
    comparison, uses = evidence["comparison"], evidence["holdout_uses"]
    if comparison is None:
        return ""
    others = "candidate" if uses == 1 else "candidates"
    after = f" after {uses} other {others} on this holdout" if uses else ""
    return f"; p {_p_value(comparison['p_better'])}, at most {alpha(policy, uses):.2g} is required{after}"


def _p_value(value: float) -> str:
    """Write a p value with two digits; below SMALLEST_P its digits are rounding errors of the sum."""
    return f"= {value:.2g}" if value >= SMALLEST_P else f"< {SMALLEST_P:g}"


def _numbers(evidence: Evidence, policy: Policy) -> dict[str, float | int | None]:
    comparison = dict[str, Any](evidence["comparison"] or {})
    champion = evidence["champion"]
    theirs = champion["minimal_pairs"] if champion else None
    known = _known_holdout(evidence)
    keys = ("difference", "low", "high", "probability", "p_better", "p_worse", "mcnemar", "agreement")
    return {
        **{key: comparison.get(key) for key in (*keys, "differing")},
        "alpha": alpha(policy, evidence["holdout_uses"]),
        "holdout_uses": evidence["holdout_uses"],
        "minimal_pairs": evidence["minimal_pairs"]["share"],
        "champion_minimal_pairs": theirs["share"] if theirs else None,
        "leak_remaining": evidence["leak"]["remaining"],
        **({"champion_holdout_known": known} if known else {}),
    }
