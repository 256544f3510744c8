"""Each rule of the policy decides alone, and judging changes nothing."""

import copy
from typing import Any

import pytest

from tasks.evidence import Champion, Evidence, Measurement
from tasks.judge import Verdict, judge

THRESHOLD = 0.454


def measurement(mcc: float, **changes: Any) -> Measurement:
    values: dict[str, Any] = {
        "rows": 516,
        "provider": "CPUExecutionProvider",
        "finite": True,
        "classes_predicted": 2,
        "interval": {"mcc": mcc, "low": mcc - 0.05, "high": mcc + 0.05},
        "accuracy": 0.8,
        "confusion": {"tn": 1, "fp": 1, "fn": 1, "tp": 1},
        "mcc_per_batch": [mcc],
        "per_source": {},
        "worst": [],
    }
    return values | changes  # type: ignore[return-value]


def champion(mcc: float | None = None, digest: str = "old", fault: str | None = None) -> Champion:
    return Champion(version="3", digest=digest, measurement=None if mcc is None else measurement(mcc), fault=fault)


def evidence(candidate: Measurement, reigning: Champion | None = None) -> Evidence:
    return Evidence(digest="new", holdout="h", candidate=candidate, reported=None, champion=reigning)


def test_first_fit_candidate_is_promoted() -> None:
    assert judge(evidence(measurement(0.6)), THRESHOLD) == Verdict(
        decision="PROMOTE",
        reasons=["there is no champion yet"],
        mcc=0.6,
        threshold=THRESHOLD,
        champion=None,
        champion_mcc=None,
    )


def test_better_candidate_is_promoted() -> None:
    assert judge(evidence(measurement(0.6), champion(0.55)), THRESHOLD) == Verdict(
        decision="PROMOTE",
        reasons=["better than the champion: MCC 0.600 against 0.550 of champion 3 on the same 516 sentences"],
        mcc=0.6,
        threshold=THRESHOLD,
        champion="3",
        champion_mcc=0.55,
    )


@pytest.mark.parametrize("reigning", [0.6, 0.65])
def test_equal_or_worse_candidate_is_held(reigning: float) -> None:
    verdict = judge(evidence(measurement(0.6), champion(reigning)), THRESHOLD)
    assert verdict["decision"] == "HOLD"
    assert verdict["reasons"] == [
        f"not better than the champion: MCC 0.600 against {reigning:.3f} of champion 3 on the same 516 sentences"
    ]


def test_any_difference_decides() -> None:
    assert judge(evidence(measurement(0.6 + 1e-12), champion(0.6)), THRESHOLD)["decision"] == "PROMOTE"
    assert judge(evidence(measurement(0.6), champion(0.6 + 1e-12)), THRESHOLD)["decision"] == "HOLD"


def test_candidate_below_the_threshold_is_rejected() -> None:
    verdict = judge(evidence(measurement(0.3)), THRESHOLD)
    assert (verdict["decision"], verdict["reasons"]) == ("REJECT", ["MCC 0.300 is below the threshold 0.454"])


def test_candidate_at_the_threshold_is_fit() -> None:
    assert judge(evidence(measurement(THRESHOLD)), THRESHOLD)["decision"] == "PROMOTE"


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (measurement(0.6, finite=False), "an output is not a number"),
        (measurement(0.6, classes_predicted=1), "every sentence got the same label"),
        (measurement(0.45), "MCC 0.450 is below the threshold 0.454"),
        (measurement(-1.0), "MCC -1.000 is below the threshold 0.454"),
        (measurement(float("nan")), "MCC nan is below the threshold 0.454"),
    ],
)
@pytest.mark.parametrize("reigning", [None, champion(-1.0), champion(fault="gone"), champion(0.9, digest="new")])
def test_unfit_candidate_is_rejected_whatever_reigns(
    candidate: Measurement, reason: str, reigning: Champion | None
) -> None:
    verdict = judge(evidence(candidate, reigning), THRESHOLD)
    assert (verdict["decision"], verdict["reasons"]) == ("REJECT", [reason])
    assert verdict["champion"] == (reigning["version"] if reigning else None)


def test_every_fault_is_a_reason() -> None:
    reasons = judge(evidence(measurement(0.0, finite=False, classes_predicted=1)), THRESHOLD)["reasons"]
    assert reasons == [
        "an output is not a number",
        "every sentence got the same label",
        "MCC 0.000 is below the threshold 0.454",
    ]


def test_candidate_is_held_when_the_champion_cannot_be_measured() -> None:
    verdict = judge(evidence(measurement(0.6), champion(fault="model.onnx is missing")), THRESHOLD)
    assert verdict["decision"] == "HOLD"
    assert verdict["reasons"] == ["champion 3 cannot be measured: model.onnx is missing"]
    assert (verdict["champion"], verdict["champion_mcc"]) == ("3", None)


@pytest.mark.parametrize("reigning", [champion(0.6, digest="new"), champion(digest="new", fault="gone")])
def test_the_champion_itself_is_held(reigning: Champion) -> None:
    verdict = judge(evidence(measurement(0.6), reigning), THRESHOLD)
    assert verdict["decision"] == "HOLD"
    assert verdict["reasons"] == ["it is champion 3 itself: the same bundle came out again"]


def test_champion_without_a_number_is_not_beaten() -> None:
    assert judge(evidence(measurement(0.6), champion(float("nan"))), THRESHOLD)["decision"] == "HOLD"


@pytest.mark.parametrize("reigning", [None, champion(0.5), champion(0.7), champion(fault="gone")])
@pytest.mark.parametrize("mcc", [0.2, 0.6])
def test_judging_again_gives_the_same_and_changes_nothing(mcc: float, reigning: Champion | None) -> None:
    given = evidence(measurement(mcc), reigning)
    before = copy.deepcopy(given)
    assert judge(given, THRESHOLD) == judge(given, THRESHOLD)
    assert given == before


@pytest.mark.parametrize("reigning", [None, champion(0.5), champion(fault="gone")])
def test_a_better_candidate_never_gets_a_worse_verdict(reigning: Champion | None) -> None:
    ranks = [
        ["REJECT", "HOLD", "PROMOTE"].index(judge(evidence(measurement(i / 20), reigning), THRESHOLD)["decision"])
        for i in range(-20, 21)
    ]
    assert ranks == sorted(ranks)


def test_reported_holdout_and_interval_do_not_judge() -> None:
    given = evidence(measurement(0.6), champion(0.5))
    given["reported"] = measurement(-1.0, finite=False, classes_predicted=1)
    given["candidate"]["interval"] |= {"low": -1.0, "high": 1.0}
    assert judge(given, THRESHOLD)["decision"] == "PROMOTE"
