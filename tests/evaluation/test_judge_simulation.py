"""Error rates of the promotion rule for one candidate of known quality, counted with the judge's own functions.

Many candidates in a row on one holdout, other rules and candidates selected by the holdout's figures: the benchmark
simulate_policy.py.
"""

import numpy as np
import pytest
from simulated import AGREEMENT, MCC, Holdouts, decisions, draw_candidates, draw_sliced, evidence_of
from toy import policy

from tasks.evaluation.judge import decide
from tasks.evaluation.metrics import mcc_from_counts
from tasks.evaluation.paired_tests import mcc_difference

RULE = policy(threshold=-1.0)  # so that only the comparison decides


def promoted(gain: float, histories: int, uses: int = 0) -> float:
    """Return the share of promotions of a candidate that is better by `gain` MCC, after `uses` holdout uses."""
    whole, *slices = draw_sliced(histories, seed=1, gain=gain)
    return float(np.mean(decisions(whole[:, None], RULE, uses, tuple(slices)) == "PROMOTE"))


def test_the_simulated_models_have_the_stated_mcc_and_agreement() -> None:
    holdouts = Holdouts(400, seed=0)
    equal, better = (holdouts.cells(holdouts.predict(holdouts.errors(), gain)) for gain in (0.0, 0.08))
    champion = mcc_from_counts(equal.reshape(-1, 2, 2, 2).sum(axis=2).reshape(-1, 4))
    assert champion.mean() == pytest.approx(MCC, abs=0.01)
    assert mcc_difference(equal).mean() == pytest.approx(0, abs=0.01)
    assert mcc_difference(better).mean() == pytest.approx(0.08, abs=0.01)
    assert equal[:, [0, 3, 4, 7]].sum() / equal.sum() == pytest.approx(AGREEMENT, abs=0.005)


def test_of_equal_models_at_most_one_in_forty_is_promoted() -> None:
    assert promoted(0.0, 2_000) <= 0.025


def test_a_model_better_by_eight_hundredths_is_promoted_more_often_than_not() -> None:
    assert promoted(0.08, 500) >= 0.5


def test_after_a_hundred_holdout_uses_a_better_model_is_still_promoted_at_times() -> None:
    shares = [promoted(0.08, 400, uses) for uses in (0, 10, 100)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] > 0.02


def test_of_equal_models_one_in_twenty_is_rejected() -> None:
    cells = draw_candidates(1_000, 1, seed=4)[:, 0]
    found = [decide(evidence_of(one, 0), RULE)[0] for one in cells]
    assert 0.03 < found.count("REJECT") / 1_000 < 0.07
