"""Each rule of the policy decides alone, and judging changes nothing."""

import copy
import json
from typing import Any

import pytest
from toy import policy

from tasks.evaluation.judge import Verdict, alpha, judge, stamp

POLICY = policy()
SUITE = {"pairs": 280, "share": 0.8, "phenomena": {}}


def measurement(mcc: float, variant: str = "fp32", **changes: Any) -> Any:
    values: dict[str, Any] = {
        "rows": 516,
        "provider": "CPUExecutionProvider",
        "variant": variant,
        "finite": True,
        "classes_predicted": 2,
        "interval": {"mcc": mcc, "low": mcc - 0.05, "high": mcc + 0.05},
        "accuracy": 0.8,
        "per_source": {"swb04": {"rows": 222, "accuracy": 0.8, "mcc": 0.5}, "c-05": {"rows": 49, "mcc": 0.5}},
        "per_length": {"1 to 5 words": {"rows": 50, "accuracy": 0.8, "mcc": 0.5}},
    }
    return values | changes


def champion(mcc: float | None, digest: str = "old", fault: str | None = None, **changes: Any) -> Any:
    values = {
        "version": "3",
        "digest": digest,
        "training_digest": "t",
        "measurement": None if mcc is None else measurement(mcc),
        "minimal_pairs": None if mcc is None else SUITE,
        "fault": fault,
    }
    return values | changes


def evidence(mcc: float = 0.6, active: Any = None, p_better: float = 0.5, p_worse: float = 0.5, **changes: Any) -> Any:
    """Return evidence on a fit candidate; the p values are those of two equal models."""
    measured = active["measurement"] if active else None
    difference = mcc - measured["interval"]["mcc"] if measured else 0.0
    comparison = {
        "rows": 516,
        "difference": difference,
        "low": difference - 0.07,
        "high": difference + 0.07,
        "probability": 0.5,
        "p_better": p_better,
        "p_worse": p_worse,
        "mcnemar": 0.5,
        "agreement": 0.9,
        "differing": 52,
    }
    candidate = measurement(mcc)
    values: dict[str, Any] = {
        "digest": "new",
        "holdout_digest": "h",
        "training_digest": "t",
        "champion_state": "active" if active else "none",
        "holdout_uses": 0,
        "drift": [],
        "leak": {"left": 3, "remaining": 0, "sentences": []},
        "candidate": candidate,
        "variants": {"fp32": candidate},
        "minimal_pairs": SUITE,
        "champion": active,
        "comparison": comparison if measured else None,
        "versions": {"python": "3"},
        "git_commit": "c",
        "policy": {},
    }
    return values | changes


BETTER = {"mcc": 0.62, "active": champion(0.55), "p_better": 0.01, "p_worse": 0.99}


def decide(given: Any, **changes: Any) -> tuple[str, list[str]]:
    verdict = judge(given, policy(**changes))
    return verdict["decision"], verdict["rules"]


def test_the_first_fit_candidate_is_promoted_and_the_verdict_says_about_what() -> None:
    verdict = judge(evidence(), POLICY)
    numbers = verdict.pop("numbers")  # type: ignore[misc]
    assert verdict == {
        "decision": "PROMOTE",
        "rules": ["first_champion"],
        "reasons": ["there is no champion yet"],
        "mcc": 0.6,
        "threshold": 0.454,
        "champion": None,
        "champion_mcc": None,
        "candidate_digest": "new",
        "champion_digest": None,
        "holdout_digest": "h",
        "training_digest": "t",
        "provider": "CPUExecutionProvider",
        "variant": "fp32",
        "policy": POLICY.recorded(),
        "policy_digest": POLICY.digest,
        "versions": {"python": "3"},
        "git_commit": "c",
        "time": None,
        "actor": None,
    }
    assert (numbers["holdout_uses"], numbers["minimal_pairs"], numbers["difference"]) == (0, 0.8, None)
    assert numbers["alpha"] == pytest.approx(0.02)


def chosen(threshold: float, gain: float) -> Any:
    choice = {"threshold": threshold, "variant": "fp32", "sentences": 80, "mcc": 0.4 + gain, "default_mcc": 0.4}
    return evidence(candidate=measurement(0.6, decision_threshold=threshold), threshold_choice=choice)


@pytest.mark.parametrize(
    ("given", "rules", "reason"),
    [
        (chosen(0.97, 0.2), {}, None),
        (chosen(0.97, 0.2), {"max_decision_threshold": 0.9}, "its decision threshold is 0.970; 0 to 0.9 is allowed"),
        (chosen(0.03, 0.2), {"min_decision_threshold": 0.1}, "its decision threshold is 0.030; 0.1 to 1 is allowed"),
        (
            chosen(0.6, 0.01),
            {"min_threshold_gain": 0.02},
            "its decision threshold 0.600 gains 0.010 MCC over 0.5 on the validation sentences; at least 0.02 is "
            "required",
        ),
        (chosen(0.6, 0.03), {"min_threshold_gain": 0.02}, None),
        (evidence(), {"min_threshold_gain": 0.02, "max_decision_threshold": 0.5}, None),
    ],
)
def test_a_decision_threshold_is_refused_only_where_the_policy_says_so(
    given: Any, rules: dict[str, float], reason: str | None
) -> None:
    verdict = judge(given, policy(**rules))
    assert verdict["reasons"] == [reason or "there is no champion yet"]
    assert verdict["rules"] == ["decision_threshold" if reason else "first_champion"]


COSTS = {
    "hardware": "Some CPU, 2 cores",
    "variants": {"fp32": {"provider": "CPUExecutionProvider", "latency_ms": 7.5, "size_mb": 91.0}},
}


@pytest.mark.parametrize(
    ("costs", "limit", "value", "rule", "reason"),
    [
        (COSTS, "max_latency_ms", 7.5, None, None),
        (
            COSTS,
            "max_latency_ms",
            7,
            "too_slow",
            "the latency of fp32 on Some CPU, 2 cores is 7.5 ms; at most 7 ms is allowed",
        ),
        (COSTS, "max_size_mb", 91, None, None),
        (COSTS, "max_size_mb", 90, "too_large", "the size of fp32 is 91 MB; at most 90 MB is allowed"),
        (None, "max_latency_ms", 0, None, None),
        (None, "max_latency_ms", 7, "too_slow", "the latency of fp32 was not measured; at most 7 ms is allowed"),
    ],
)
def test_a_slow_or_large_variant_is_rejected_only_where_the_policy_has_a_limit(
    costs: Any, limit: str, value: float, rule: str | None, reason: str | None
) -> None:
    verdict = judge(evidence(**({"costs": costs} if costs else {})), policy(**{limit: value}))
    assert verdict["rules"] == [rule or "first_champion"]
    assert verdict["reasons"] == [reason or "there is no champion yet"]
    assert (limit in verdict["policy"]) == bool(value)


def test_better_candidate_is_promoted() -> None:
    verdict = judge(evidence(**BETTER), POLICY)
    assert (verdict["decision"], verdict["rules"]) == ("PROMOTE", ["better_than_champion"])
    assert verdict["reasons"] == [
        "better than the champion: MCC 0.620 against 0.550 of champion 3 on the same 516 sentences; p = 0.01, at "
        "most 0.02 is required"
    ]
    certain = judge(evidence(**{**BETTER, "p_better": 1e-17}), POLICY)["reasons"][0]
    assert certain.endswith("sentences; p < 1e-14, at most 0.02 is required")
    assert (verdict["champion"], verdict["champion_mcc"], verdict["champion_digest"]) == ("3", 0.55, "old")
    assert verdict["numbers"]["difference"] == pytest.approx(0.07)


def test_no_worse_on_other_rows_is_promoted_only_where_the_policy_says_so() -> None:
    active = champion(0.6, training_digest="older")
    close = evidence(0.6, active)
    close["comparison"]["low"] = -0.02
    assert decide(close) == ("HOLD", ["not_better"])
    assert decide(close, promote_on_new_data=True) == ("PROMOTE", ["no_worse_on_new_data"])
    assert decide(close, promote_on_new_data=True, margin=0.02) == ("HOLD", ["not_better"])
    assert decide({**close, "training_digest": "older"}, promote_on_new_data=True) == ("HOLD", ["not_better"])
    assert decide({**close, "champion": {**active, "training_digest": None}}, promote_on_new_data=True) == (
        "HOLD",
        ["not_better"],
    )


# Each fault alone rejects a candidate that would be promoted.
REJECTS = {
    "non_finite_output": {"candidate": measurement(0.62, finite=False)},
    "one_class": {"candidate": measurement(0.62, classes_predicted=1)},
    "below_threshold": {"candidate": measurement(0.45)},
    "variant_differs": {"variants": {"fp32": measurement(0.62), "int8": measurement(0.58, "int8")}},
    "holdout_leak": {"leak": {"left": 0, "remaining": 2, "sentences": ["The cat sat."]}},
    "worse_than_champion": {},
}


@pytest.mark.parametrize("rule", REJECTS)
@pytest.mark.parametrize("active", [None, champion(0.55), champion(None, fault="gone"), champion(0.9, digest="new")])
def test_each_reject_rule_alone_rejects_whatever_the_champion_is(rule: str, active: Any) -> None:
    if rule == "worse_than_champion":
        assert decide(evidence(0.5, champion(0.6), p_better=0.99, p_worse=0.04)) == ("REJECT", [rule])
    else:
        given = evidence(0.62, active, p_better=0.01) | REJECTS[rule]
        assert decide(given) == ("REJECT", [rule])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (REJECTS["non_finite_output"], "an output is NaN or Inf"),
        (REJECTS["one_class"], "every sentence got the same label"),
        (REJECTS["below_threshold"], "MCC 0.450 is below the threshold 0.454"),
        ({"candidate": measurement(float("nan"))}, "MCC nan is below the threshold 0.454"),
        (REJECTS["variant_differs"], "int8 has MCC 0.580, fp32 0.620; at most 0.03 apart is allowed"),
        (REJECTS["holdout_leak"], "2 sentences of the holdout were trained on, for example 'The cat sat.'"),
        (
            {"variants": {"fp32": measurement(0.62), "fp16": measurement(0.62, "fp16", finite=False)}},
            "an output of fp16 is NaN or Inf",
        ),
    ],
)
def test_a_reject_rule_gives_its_numbers(given: Any, reason: str) -> None:
    assert judge(evidence(**BETTER) | given, POLICY)["reasons"] == [reason]


def test_every_reject_rule_that_applies_is_a_reason() -> None:
    assert decide(evidence(candidate=measurement(0.0, finite=False, classes_predicted=1))) == (
        "REJECT",
        ["non_finite_output", "one_class", "below_threshold"],
    )


def test_worse_with_95_percent_confidence_is_rejected_and_a_little_worse_is_held() -> None:
    worse = evidence(0.5, champion(0.6), p_worse=0.049)
    assert decide(worse) == ("REJECT", ["worse_than_champion"])
    assert decide(worse, reject_confidence=0.96) == ("HOLD", ["not_better"])
    assert decide(evidence(0.58, champion(0.6), p_worse=0.051)) == ("HOLD", ["not_better"])


def test_a_champion_that_was_trained_on_the_holdout_rejects_nothing_and_waits_for_a_person() -> None:
    knowing = champion(0.75, holdout_known=3)
    worse = evidence(0.58, knowing, p_worse=1e-9)
    assert decide(evidence(0.58, champion(0.75, holdout_known=0), p_worse=1e-9))[0] == "REJECT"
    verdict = judge(worse, POLICY)
    assert (verdict["decision"], verdict["rules"]) == ("HOLD", ["not_better", "champion_knows_holdout"])
    assert verdict["numbers"]["champion_holdout_known"] == 3
    assert verdict["reasons"][-1].startswith(
        "3 sentences of the holdout are among the rows that champion 3 was trained"
    )
    assert decide(evidence(0.8, knowing, p_better=0.001)) == ("PROMOTE", ["better_than_champion"])


def test_a_variant_may_differ_either_way_by_as_much_as_is_allowed() -> None:
    for mcc, decision in ((0.59, "PROMOTE"), (0.65, "PROMOTE"), (0.588, "REJECT"), (0.652, "REJECT")):
        variants = {"fp32": measurement(0.62), "int8": measurement(mcc, "int8")}
        given = evidence(**BETTER) | {"variants": variants}
        assert decide(given, variant_difference=0.0305)[0] == decision


# Each of these alone holds a candidate that would be promoted.
HOLDS = {
    "slice_dropped": {"candidate": measurement(0.62, per_source={"swb04": {"rows": 222, "mcc": 0.29}})},
    "minimal_pairs_dropped": {"minimal_pairs": SUITE | {"share": 0.74}},
    "drift": {"drift": ["label", "length"]},
    "holdout_uses_exhausted": {"holdout_uses": 150},
}


@pytest.mark.parametrize("rule", HOLDS)
def test_each_hold_rule_alone_holds_a_better_candidate(rule: str) -> None:
    given = evidence(**{**BETTER, "p_better": 1e-9}) | HOLDS[rule]
    assert decide(given) == ("HOLD", [rule])
    last = judge(given, POLICY)["reasons"][-1]
    assert last.startswith("without that it would be promoted: better than the champion")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            HOLDS["slice_dropped"],
            "source swb04 (222 sentences): MCC 0.290 against the champion's 0.500; a drop of at most 0.2 is allowed",
        ),
        (
            {"candidate": measurement(0.62, per_length={"1 to 5 words": {"rows": 50, "mcc": 0.0}})},
            "length 1 to 5 words (50 sentences): MCC 0.000 against the champion's 0.500; a drop of at most 0.2 is "
            "allowed",
        ),
        (
            HOLDS["minimal_pairs_dropped"],
            "it ranks 74.0% of 280 minimal pairs correctly, the champion 80.0%; a drop of at most 5.0% is allowed",
        ),
        (HOLDS["drift"], "its data drifted from the champion's: label, length"),
        (
            HOLDS["holdout_uses_exhausted"],
            "150 other candidates were judged on this holdout, expected fewer than 150; use another holdout",
        ),
    ],
)
def test_a_hold_rule_gives_its_numbers(given: Any, reason: str) -> None:
    assert judge(evidence(**{**BETTER, "p_better": 1e-9}) | given, POLICY)["reasons"][0] == reason


def test_small_slices_and_small_falls_do_not_hold() -> None:
    slices = {"c-05": {"rows": 49, "mcc": 0.0}, "swb04": {"rows": 222, "mcc": 0.31}}
    assert decide(evidence(**BETTER) | {"candidate": measurement(0.62, per_source=slices)})[0] == "PROMOTE"
    assert decide(evidence(**BETTER) | {"minimal_pairs": SUITE | {"share": 0.76}})[0] == "PROMOTE"


@pytest.mark.parametrize(("now", "before"), [(None, None), (None, 0.9), (0.1, None)])
def test_a_slice_of_one_label_has_no_mcc_and_does_not_hold(now: float | None, before: float | None) -> None:
    given = evidence(**BETTER) | {"candidate": measurement(0.62, per_source={"swb04": {"rows": 222, "mcc": now}})}
    given["champion"]["measurement"]["per_source"]["swb04"]["mcc"] = before
    assert decide(given)[0] == "PROMOTE"


def test_drift_does_not_hold_where_the_policy_says_so() -> None:
    assert decide(evidence(**BETTER, drift=["label"]), hold_on_drift=False)[0] == "PROMOTE"


def test_a_lost_champion_is_not_a_first_run() -> None:
    verdict = judge(evidence(champion_state="lost"), POLICY)
    assert (verdict["decision"], verdict["rules"]) == ("HOLD", ["champion_lost"])
    assert "its alias is gone" in verdict["reasons"][0]


def test_candidate_is_held_when_the_champion_cannot_be_measured() -> None:
    verdict = judge(evidence(active=champion(None, fault="model.onnx is missing")), POLICY)
    assert (verdict["decision"], verdict["rules"]) == ("HOLD", ["champion_unmeasured"])
    assert verdict["reasons"] == ["champion 3 cannot be measured: model.onnx is missing"]
    assert (verdict["champion"], verdict["champion_mcc"]) == ("3", None)


@pytest.mark.parametrize("active", [champion(0.6, digest="new"), champion(None, digest="new", fault="gone")])
def test_the_champion_itself_is_held(active: Any) -> None:
    verdict = judge(evidence(active=active), POLICY)
    assert (verdict["decision"], verdict["rules"]) == ("HOLD", ["same_bundle"])
    assert verdict["reasons"] == ["it is the same bundle as champion 3"]


@pytest.mark.parametrize("active", [0.6, 0.65])
def test_a_tie_and_a_little_less_are_held(active: float) -> None:
    verdict = judge(evidence(0.6, champion(active), p_better=0.0), POLICY)
    assert (verdict["decision"], verdict["rules"]) == ("HOLD", ["not_better"])
    assert verdict["reasons"] == [
        f"not better than the champion: MCC 0.600 against {active:.3f} of champion 3 on the same 516 sentences"
    ]


def test_better_but_not_significantly_is_held_and_gives_p_and_alpha() -> None:
    verdict = judge(evidence(**{**BETTER, "p_better": 0.021}), POLICY)
    assert (verdict["decision"], verdict["rules"]) == ("HOLD", ["not_better"])
    assert verdict["reasons"][0].startswith("not significantly better than the champion: MCC 0.620")
    assert verdict["reasons"][0].endswith("sentences; p = 0.021, at most 0.02 is required")


def test_holdout_uses_lower_alpha() -> None:
    assert decide(evidence(**BETTER, holdout_uses=0)) == ("PROMOTE", ["better_than_champion"])
    assert decide(evidence(**BETTER, holdout_uses=1)) == ("HOLD", ["not_better"])
    reason = judge(evidence(**BETTER, holdout_uses=10), POLICY)["reasons"][0]
    assert reason.endswith("at most 0.00055 is required after 10 other candidates on this holdout")


def test_alpha_shrinks_with_holdout_uses_down_to_a_minimum() -> None:
    levels = [alpha(POLICY, uses) for uses in range(1_000)]
    assert levels[0] == pytest.approx(0.02)
    assert levels[9] == pytest.approx(0.02 / 10**1.5)
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] == POLICY.min_alpha
    # The probability of a false promotion among 100 equal candidates is at most the sum; simulated, it is 4.3%.
    assert sum(levels[:100]) == pytest.approx(0.076, abs=0.001)
    assert alpha(policy(confidence=0.9999), 0) == pytest.approx(0.0001)
    assert alpha(policy(alpha_decay=0.0), 500) == pytest.approx(0.02)


@pytest.mark.parametrize("active", [None, champion(0.5), champion(0.7), champion(None, fault="gone")])
@pytest.mark.parametrize("mcc", [0.2, 0.6])
def test_judging_again_gives_the_same_and_changes_nothing(mcc: float, active: Any) -> None:
    given = evidence(mcc, active)
    before = copy.deepcopy(given)
    assert judge(given, POLICY) == judge(given, POLICY)
    assert given == before


@pytest.mark.parametrize("active", [None, champion(0.5), champion(None, fault="gone")])
def test_a_better_candidate_never_gets_a_worse_verdict(active: Any) -> None:
    ranks = []
    for i in range(-20, 21):
        ahead = 1 / (1 + 10.0 ** (i - 10))  # the p value shrinks as the candidate gets ahead
        decision = judge(evidence(i / 20, active, ahead, 1 - ahead), POLICY)["decision"]
        ranks.append(["REJECT", "HOLD", "PROMOTE"].index(decision))
    assert ranks == sorted(ranks)
    assert ranks[0] == 0


def test_secondary_holdout_and_interval_do_not_decide() -> None:
    given = evidence(**BETTER)
    given["secondary"] = measurement(-1.0, finite=False, classes_predicted=1)
    given["candidate"]["interval"] |= {"low": -1.0, "high": 1.0}
    assert judge(given, POLICY)["decision"] == "PROMOTE"


def test_a_verdict_is_strict_json_and_stamping_adds_only_time_and_actor() -> None:
    verdict = judge(evidence(**BETTER), POLICY)
    signed = stamp(verdict, "2026-01-01T00:00:00+00:00", "somebody")
    assert json.loads(json.dumps(signed, allow_nan=False)) == signed
    assert signed == {**verdict, "time": "2026-01-01T00:00:00+00:00", "actor": "somebody"}
    assert set(signed) == set(Verdict.__annotations__)
