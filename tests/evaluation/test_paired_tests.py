"""Paired tests: resampled counts are resampled rows, and the permutation test is exact."""

import itertools
import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.evaluation import paired_tests
from tasks.evaluation.metrics import mcc
from tasks.evaluation.paired_tests import (
    agreement,
    bootstrap,
    contingency,
    difference_quantile,
    mcc_difference,
    mcnemar,
    permutation_test,
)

unhurried = settings(deadline=None)
cells = st.lists(st.integers(0, 5), min_size=8, max_size=8).filter(any).map(np.array)
TYPICAL = np.array([80, 14, 14, 52, 14, 14, 12, 316])  # 516 sentences, two models that agree on nine in ten


def rows_of(counts: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, candidate and champion with these counts."""
    numbers = np.repeat(np.arange(8), counts)
    return numbers // 4, numbers // 2 % 2, numbers % 2


@unhurried
@given(cells)
def test_the_difference_is_that_of_two_mccs(counts: np.ndarray) -> None:
    labels, candidate, champion = rows_of(counts)
    assert contingency(labels, candidate, champion).tolist() == counts.tolist()
    expected = mcc(labels, candidate) - mcc(labels, champion)
    assert float(mcc_difference(counts)) == pytest.approx(expected, abs=1e-12)


def test_no_rows_have_no_difference() -> None:
    assert contingency([], [], []).tolist() == [0] * 8
    assert agreement(np.zeros(8, int)) == 1.0
    assert permutation_test(np.zeros(8, int)) == (1.0, 1.0)
    with pytest.raises(ValueError, match="at least one sentence"):
        bootstrap(np.zeros(8, int))


def test_the_interval_is_that_of_resampled_rows() -> None:
    labels, candidate, champion = rows_of(TYPICAL)
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, len(labels), (4_000, len(labels)))
    slow = [mcc(labels[rows], candidate[rows]) - mcc(labels[rows], champion[rows]) for rows in drawn]
    found = bootstrap(TYPICAL)
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(slow, [0.025, 0.975]).tolist(), abs=0.008)
    assert found["probability"] == pytest.approx(np.mean(np.array(slow) > 0), abs=0.03)
    assert found["low"] < found["difference"] < found["high"]


def test_one_sided_bounds_are_quantiles_of_the_same_resamples() -> None:
    found = bootstrap(TYPICAL)
    assert [difference_quantile(TYPICAL, 0.025), difference_quantile(TYPICAL, 0.975)] == [found["low"], found["high"]]
    assert found["difference"] < difference_quantile(TYPICAL, 0.95) < found["high"]
    assert difference_quantile(np.array([90, 0, 0, 10, 20, 0, 0, 300]), 0.95) == 0.0  # equal predictions


def test_a_bound_with_95_percent_confidence_is_wrong_in_a_twentieth_of_the_samples() -> None:
    shares = np.array([650, 2, 6, 150, 100, 6, 2, 1800]) / 2716  # the candidate differs on 0.6%, mostly to its harm
    lost = -float(mcc_difference(shares * 1e9))
    samples = np.random.default_rng(0).multinomial(867, shares, size=300)
    wrong = np.mean([-difference_quantile(cells, 0.95, resamples=1_000) > lost for cells in samples])
    assert lost == pytest.approx(0.0072, abs=1e-4)
    assert 0.01 < wrong < 0.1


def test_ten_thousand_resamples_take_less_than_a_second() -> None:
    started = time.process_time()  # another process may have the processor meanwhile
    bootstrap(TYPICAL * 1_000, 10_000)
    assert time.process_time() - started < 1


def test_the_same_seed_gives_the_same_interval_and_equal_models_tie() -> None:
    assert bootstrap(TYPICAL, 500, seed=3) == bootstrap(TYPICAL, 500, seed=3)
    equal = np.array([40, 0, 0, 10, 10, 0, 0, 40])
    assert bootstrap(equal) == {"difference": 0.0, "low": 0.0, "high": 0.0, "probability": 0.5}


def enumerate_swaps(counts: np.ndarray) -> tuple[float, float]:
    """Enumerate every swap of discordant rows: the definition of the permutation test."""
    labels, candidate, champion = rows_of(counts)
    seen = mcc(labels, candidate) - mcc(labels, champion)
    discordant = np.flatnonzero(candidate != champion)
    better = worse = 0
    for swap in itertools.product([False, True], repeat=len(discordant)):
        swapped = np.zeros(len(labels), bool)
        swapped[discordant] = swap
        ours, theirs = np.where(swapped, champion, candidate), np.where(swapped, candidate, champion)
        difference = mcc(labels, ours) - mcc(labels, theirs)
        better += difference >= seen - 1e-12
        worse += difference <= seen + 1e-12
    return better / 2 ** len(discordant), worse / 2 ** len(discordant)


@pytest.mark.parametrize(
    "counts",
    [[3, 1, 2, 4, 2, 0, 3, 5], [5, 2, 0, 3, 2, 4, 1, 9], [0, 0, 4, 1, 0, 3, 0, 2], [2, 0, 0, 2, 1, 0, 0, 3]],
)
def test_the_permutation_test_enumerates_every_swap(counts: list[int]) -> None:
    found = permutation_test(np.array(counts))
    assert tuple(found) == pytest.approx(enumerate_swaps(np.array(counts)), abs=1e-12)


@unhurried
@given(cells)
def test_exchanging_the_models_exchanges_the_p_values(counts: np.ndarray) -> None:
    exchanged = counts.reshape(2, 2, 2).transpose(0, 2, 1).reshape(8)
    found, other = permutation_test(counts), permutation_test(exchanged)
    assert tuple(found) == pytest.approx((other.worse, other.better), abs=1e-12)
    assert 1 - 1e-12 <= found.better + found.worse <= 2


def test_winning_all_of_n_discordant_rows_has_p_one_in_two_to_the_n() -> None:
    # The candidate alone is right on 8 acceptable sentences.
    assert permutation_test(np.array([50, 0, 0, 10, 10, 0, 8, 100])).better == pytest.approx(1 / 2**8)


def test_equal_models_are_called_better_no_more_often_than_alpha() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(1_500):
        negative, positive = rng.binomial(26, 0.5), rng.binomial(26, 0.5)
        counts = np.array([80, 26 - negative, negative, 52, 14, 26 - positive, positive, 290])
        found.append(permutation_test(counts).better)
    for level in (0.1, 0.02, 0.002):
        assert np.mean(np.array(found) <= level) <= level + 3 * math.sqrt(level / 1_500)


def test_many_discordant_rows_use_the_normal_approximation(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.array([1000, 300, 260, 900, 250, 210, 260, 4000])
    exact = permutation_test(counts)
    monkeypatch.setattr(paired_tests, "MAX_EXACT_SWAPS", 0)
    assert tuple(permutation_test(counts)) == pytest.approx(tuple(exact), abs=0.01)
    assert 0.1 < permutation_test(counts * 1_000_000).better + permutation_test(counts * 1_000_000).worse <= 1


@pytest.mark.parametrize(
    ("candidate", "champion", "expected"),
    [
        (0, 0, 1.0),
        (3, 0, 2 / 2**3),
        (5, 5, 1.0),
        (2, 9, 2 * (1 + 11 + 55) / 2**11),
        (9, 2, 2 * (1 + 11 + 55) / 2**11),
        (0, 24, 2 / 2**24),
        (0, 25, math.erfc(24 / 5 / math.sqrt(2))),
        (30, 12, math.erfc(17 / math.sqrt(42) / math.sqrt(2))),
        (40, 40, 1.0),
        (41, 40, 1.0),
    ],
)
def test_mcnemar_is_exact_for_few_discordant_rows_and_chi_squared_for_many(
    candidate: int, champion: int, expected: float
) -> None:
    counts = np.array([10, candidate, champion, 5, 7, 0, 0, 40])  # label 0: the candidate's 0 is right
    assert mcnemar(counts) == pytest.approx(expected, rel=1e-9)


def test_agreement_is_the_share_of_equal_predictions() -> None:
    assert agreement(np.array([4, 1, 1, 0, 0, 2, 0, 2])) == pytest.approx(0.6)
    assert agreement(TYPICAL) == pytest.approx(1 - 54 / 516)
