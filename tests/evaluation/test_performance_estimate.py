"""The estimated MCC equals the closed form for calibrated probabilities, and its interval covers the true one."""

from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.evaluation.metrics import mcc_from_counts
from tasks.evaluation.performance_estimate import estimate_mcc, expected_confusion, fit_calibration


class Population(NamedTuple):
    """Sentences with a score of the model and the probability that they are acceptable."""

    scores: NDArray[np.float64]
    acceptable: NDArray[np.float64]


def draw(random: np.random.Generator, rows: int, mean: float) -> Population:
    """Draw sentences whose scores are overconfident: the share of acceptable ones is nearer to a half."""
    latent = random.normal(mean, 1.5, rows)
    return Population(1 / (1 + np.exp(-3 * latent)), 1 / (1 + np.exp(-latent)))


def test_expected_counts_are_sums_of_probabilities() -> None:
    acceptable, predictions = [0.9, 0.8, 0.6, 0.3, 0.1], [1, 1, 1, 0, 0]
    counts = expected_confusion(acceptable, predictions)
    np.testing.assert_allclose(counts, [1.6, 0.7, 0.4, 2.3], rtol=1e-12)
    expected = (2.3 * 1.6 - 0.7 * 0.4) / np.sqrt(3.0 * 2.7 * 2.3 * 2.0)
    assert mcc_from_counts(counts) == pytest.approx(expected, rel=1e-12)


def test_probabilities_that_are_calibrated_stay_as_they_are() -> None:
    # A thousand labelled sentences for each score, of which exactly the score's share is acceptable.
    scores = np.repeat([0.1, 0.3, 0.6, 0.9], 1_000)
    labels = np.concatenate([np.arange(1_000) < 1_000 * share for share in (0.1, 0.3, 0.6, 0.9)]).astype(np.int64)
    values = np.array([0.05, 0.3, 0.5, 0.95])
    np.testing.assert_allclose(fit_calibration(scores, labels)(values), values, atol=1e-4)
    answers = np.array([0.9, 0.9, 0.6, 0.3, 0.1])
    found = estimate_mcc(answers, answers > 0.5, scores, labels, resamples=20)
    np.testing.assert_allclose(found["confusion"], [1.6, 0.6, 0.4, 2.4], atol=1e-3)
    assert found["mcc"] == pytest.approx((2.4 * 1.6 - 0.6 * 0.4) / np.sqrt(3.0 * 2.8 * 2.2 * 2.0), abs=1e-3)
    assert found["low"] <= found["mcc"] <= found["high"]
    assert (found["sentences"], found["calibrated_on"]) == (5, 4_000)


def test_the_interval_covers_the_true_mcc_of_shifted_traffic_from_overconfident_scores() -> None:
    random = np.random.default_rng(3)
    everything = draw(random, 200_000, mean=-0.4)
    true = mcc_from_counts(expected_confusion(everything.acceptable, everything.scores > 0.5))
    covered, estimates = 0, []
    for seed in range(20):
        holdout, traffic = draw(random, 400, mean=0.8), draw(random, 600, mean=-0.4)
        labels = random.random(400) < holdout.acceptable
        found = estimate_mcc(traffic.scores, traffic.scores > 0.5, holdout.scores, labels, 39, seed)
        covered += bool(found["low"] <= true <= found["high"])
        estimates.append(found["mcc"])
    assert covered >= 18
    assert np.mean(estimates) == pytest.approx(true, abs=0.03)


def test_labelled_sentences_of_one_label_give_that_label() -> None:
    np.testing.assert_array_equal(fit_calibration([0.2, 0.8], [1, 1])(np.array([0.1, 0.9])), [1, 1])


def test_nothing_to_estimate_from_is_an_error() -> None:
    for answers, labels in (([], [1]), ([0.5], [])):
        with pytest.raises(ValueError, match="an estimate needs answers and labelled sentences"):
            estimate_mcc(answers, [0] * len(answers), [0.5] * len(labels), labels)
