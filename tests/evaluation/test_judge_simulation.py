"""How often the rule is wrong, counted with the judge's own functions on candidates whose quality is known.

The same with more histories, other rules beside it and candidates that learn from the figures: the benchmark
simulate_policy.py.
"""

import numpy as np
import pytest
from simulated import AGREEMENT, MCC, Holdouts, decisions, draw_candidates, draw_sliced, evidence_of
from toy import policy

from tasks.evaluation.judge import decide
from tasks.evaluation.metrics import mcc_from_counts
from tasks.evaluation.paired_tests import mcc_difference

RULE = policy(threshold=-1.0)  # what is counted is the comparison alone


def promoted(gain: float, histories: int, looks: int = 0) -> float:
    """Return how often the judge promotes a candidate that is better by so much."""
    whole, *slices = draw_sliced(histories, seed=1, gain=gain)
    return float(np.mean(decisions(whole[:, None], RULE, looks, tuple(slices)) == "PROMOTE"))


def test_the_simulated_models_are_as_good_and_agree_as_often_as_is_said() -> None:
    holdouts = Holdouts(400, seed=0)
    equal, better = (holdouts.cells(holdouts.answer(holdouts.errors(), gain)) for gain in (0.0, 0.08))
    champion = mcc_from_counts(equal.reshape(-1, 2, 2, 2).sum(axis=2).reshape(-1, 4))
    assert champion.mean() == pytest.approx(MCC, abs=0.01)
    assert mcc_difference(equal).mean() == pytest.approx(0, abs=0.01)
    assert mcc_difference(better).mean() == pytest.approx(0.08, abs=0.01)
    assert equal[:, [0, 3, 4, 7]].sum() / equal.sum() == pytest.approx(AGREEMENT, abs=0.005)


def test_of_equal_models_at_most_one_in_forty_is_promoted() -> None:
    assert promoted(0.0, 6_000) <= 0.025


def test_a_model_better_by_eight_hundredths_is_promoted_more_often_than_not() -> None:
    assert promoted(0.08, 2_000) >= 0.5


def test_a_hundred_equal_candidates_in_a_row_promote_falsely_in_at_most_a_twentieth_of_histories() -> None:
    decided = decisions(draw_candidates(1_500, 100, seed=2), RULE)
    assert np.mean((decided == "PROMOTE").any(axis=1)) <= 0.05


def test_a_rule_that_does_not_count_looks_promotes_falsely_again_and_again() -> None:
    decided = decisions(draw_candidates(200, 100, seed=3), policy(threshold=-1.0, alpha_decay=0.0))
    assert np.mean((decided == "PROMOTE").any(axis=1)) > 0.2


def test_after_a_hundred_looks_a_better_model_still_gets_through_at_times() -> None:
    shares = [promoted(0.08, 1_000, looks) for looks in (0, 10, 100)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] > 0.02


def test_of_equal_models_one_in_twenty_is_rejected() -> None:
    cells = draw_candidates(1_000, 1, seed=4)[:, 0]
    found = [decide(evidence_of(one, 0), RULE)[0] for one in cells]
    assert 0.03 < found.count("REJECT") / 1_000 < 0.07
