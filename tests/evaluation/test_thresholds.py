"""Laws of the figures at every decision threshold."""

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef, precision_recall_curve, roc_curve

from tasks.evaluation.thresholds import MAX_THRESHOLDS, threshold_curve

LABELS = np.array([1, 0, 1, 1, 0, 0, 1, 0])
PROBABILITIES = np.array([0.9, 0.9, 0.8, 0.6, 0.6, 0.4, 0.3, 0.1])


def test_each_threshold_has_the_figures_of_its_predictions() -> None:
    curve = threshold_curve(LABELS, PROBABILITIES)
    assert curve.thresholds == pytest.approx([0.95, 0.85, 0.7, 0.5, 0.35, 0.2, 0.05])
    for threshold, recall, rate, found in zip(
        curve.thresholds, curve.recall, curve.false_positive_rate, curve.mcc, strict=True
    ):
        predictions = (threshold < PROBABILITIES).astype(int)
        assert recall == pytest.approx(predictions[LABELS == 1].mean())
        assert rate == pytest.approx(predictions[LABELS == 0].mean())
        assert found == pytest.approx(matthews_corrcoef(LABELS, predictions))


def test_the_curves_are_those_of_scikit_learn() -> None:
    curve = threshold_curve(LABELS, PROBABILITIES)
    rates, recalls, _ = roc_curve(LABELS, PROBABILITIES, drop_intermediate=False)
    assert curve.false_positive_rate == pytest.approx(rates)  # here 0.5 lies in the middle of two probabilities
    assert curve.recall == pytest.approx(recalls)
    precision, _, _ = precision_recall_curve(LABELS, PROBABILITIES)
    assert curve.precision == pytest.approx(precision[::-1])


def test_the_best_threshold_of_perfect_scores_separates_them() -> None:
    assert threshold_curve([0, 0, 1, 1], [0.52, 0.53, 0.55, 0.56]).best == pytest.approx((0.54, 1.0))


def test_labels_at_the_served_threshold_are_those_that_are_served() -> None:
    probabilities = [0.1, 0.45, 0.52, 0.9]
    curve = threshold_curve([0, 1, 1, 1], probabilities)
    assert curve.thresholds[curve.served] == 0.5
    assert curve.recall[curve.served] == pytest.approx(2 / 3)
    stricter = threshold_curve([0, 1, 1, 1], probabilities, served=0.6)
    assert stricter.thresholds[stricter.served] == 0.6
    assert stricter.recall[stricter.served] == pytest.approx(1 / 3)


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, 0]])
def test_one_class_has_an_mcc_of_0_everywhere(labels: list[int]) -> None:
    curve = threshold_curve(labels, [0.2, 0.5, 0.9])
    assert not curve.mcc.any()
    assert np.isfinite(curve.precision).all()


def test_a_curve_of_many_sentences_is_thinned_and_keeps_its_ends() -> None:
    rng = np.random.default_rng(0)
    curve = threshold_curve(rng.integers(0, 2, 5_000), rng.random(5_000))
    assert len(curve.thresholds) in (MAX_THRESHOLDS, MAX_THRESHOLDS + 1)
    assert (curve.recall[0], curve.recall[-1]) == (0.0, 1.0)


def test_no_sentence_has_no_curve() -> None:
    with pytest.raises(ValueError, match="at least one sentence"):
        threshold_curve([], [])
