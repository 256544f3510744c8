"""Metrics have the values of their definitions; MCC is scikit-learn's, and its interval that of resampled rows."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, confusion_matrix, matthews_corrcoef

from tasks.evaluation.metrics import (
    CALIBRATION_BINS,
    MCC_BATCH,
    Confusion,
    accuracy,
    auroc,
    brier,
    calibration,
    calibration_error,
    confusion,
    f1,
    mcc,
    mcc_from_counts,
    mcc_interval,
    mcc_per_batch,
    mcc_per_group,
)

unhurried = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])  # slow is not wrong
cells = st.tuples(*[st.integers(0, 6)] * 4).filter(any)


def pairs(counts: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return labels and predictions with these counts of (tn, fp, fn, tp)."""
    tn, fp, fn, tp = counts
    return [0] * (tn + fp) + [1] * (fn + tp), [0] * tn + [1] * fp + [0] * fn + [1] * tp


@unhurried
@pytest.mark.filterwarnings("ignore")  # scikit-learn warns about one class
@given(cells)
def test_mcc_and_accuracy_are_those_of_scikit_learn(counts: tuple[int, ...]) -> None:
    labels, predictions = pairs(counts)
    assert mcc(labels, predictions) == pytest.approx(matthews_corrcoef(labels, predictions), abs=1e-12)
    assert accuracy(labels, predictions) == pytest.approx(accuracy_score(labels, predictions), abs=1e-12)
    assert list(confusion(labels, predictions)) == confusion_matrix(labels, predictions, labels=[0, 1]).ravel().tolist()


@pytest.mark.parametrize("seed", range(5))
def test_mcc_of_random_predictions_is_that_of_scikit_learn(seed: int) -> None:
    labels, predictions = np.random.default_rng(seed).integers(0, 2, (2, 1000))
    assert mcc(labels, predictions) == pytest.approx(matthews_corrcoef(labels, predictions), abs=1e-12)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((1, 0, 0, 1), 1.0),
        ((0, 1, 1, 0), -1.0),
        ((1, 1, 1, 1), 0.0),
        ((2, 1, 1, 2), 1 / 3),
        ((90, 4, 1, 5), 446 / np.sqrt(9 * 6 * 94 * 91)),
        ((0, 0, 0, 5), 0.0),
        ((5, 0, 0, 0), 0.0),
        ((3, 0, 2, 0), 0.0),
        ((0, 3, 0, 2), 0.0),
        ((0, 0, 0, 0), 0.0),
    ],
)
def test_mcc_has_these_values(counts: tuple[int, ...], expected: float) -> None:
    assert float(mcc_from_counts(counts)) == pytest.approx(expected, abs=1e-15)


def test_a_perfect_mcc_is_exactly_1() -> None:
    right = np.array([(tn, 0, 0, tp) for tn in range(1, 3_000, 37) for tp in range(1, 3_000, 41)])
    assert set(mcc_from_counts(right)) == {1.0}
    assert set(mcc_from_counts(right[:, [1, 0, 3, 2]])) == {-1.0}


def test_mcc_of_many_confusions_is_that_of_each() -> None:
    counts = np.random.default_rng(0).integers(0, 9, (3, 5, 4))
    values = mcc_from_counts(counts)
    assert values.shape == (3, 5)
    assert values.tolist() == [[float(mcc_from_counts(one)) for one in row] for row in counts]


@unhurried
@given(cells)
def test_swapping_labels_keeps_mcc_and_wrong_predictions_negate_it(counts: tuple[int, ...]) -> None:
    tn, fp, fn, tp = counts
    value = float(mcc_from_counts(counts))
    assert float(mcc_from_counts((tp, fn, fp, tn))) == pytest.approx(value, abs=1e-12)
    assert float(mcc_from_counts((fp, tn, tp, fn))) == pytest.approx(-value, abs=1e-12)


@unhurried
@given(st.tuples(*[st.integers(0, 10**9)] * 4))
def test_counts_up_to_a_thousand_million_do_not_overflow(counts: tuple[int, ...]) -> None:
    tn, fp, fn, tp = counts
    square = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)  # exact: Python's integers
    expected = (tp * tn - fp * fn) / square**0.5 if square else 0.0
    with np.errstate(all="raise"):
        assert float(mcc_from_counts(np.array(counts))) == pytest.approx(expected, abs=1e-9)


def test_largest_counts_keep_exact_values() -> None:
    n = 10**9
    values = mcc_from_counts([[n, n, n, n], [n, 0, 0, n], [0, n, n, 0]])
    assert values.tolist() == pytest.approx([0.0, 1.0, -1.0], abs=1e-15)


def test_confusion_counts_each_pair() -> None:
    assert confusion([0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 1, 1]) == Confusion(tn=2, fp=1, fn=1, tp=2)
    assert confusion([], []) == Confusion(0, 0, 0, 0)


def test_accuracy_has_these_values() -> None:
    assert accuracy([0, 1, 1, 0], [0, 1, 0, 0]) == 0.75
    assert accuracy([], []) == 0.0


@pytest.mark.parametrize("counts", [(40, 10, 5, 45), (5, 2, 1, 6), (20, 0, 1, 20), (100, 90, 90, 100), (0, 0, 0, 9)])
def test_interval_contains_the_point_estimate(counts: tuple[int, ...]) -> None:
    interval = mcc_interval(*pairs(counts), resamples=2000)
    assert interval["mcc"] == mcc(*pairs(counts))
    assert interval["low"] <= interval["mcc"] <= interval["high"]


def test_interval_shrinks_with_the_square_root_of_n() -> None:
    widths = []
    for n in (1, 4, 16):
        interval = mcc_interval(*pairs((30 * n, 10 * n, 10 * n, 30 * n)))
        assert interval["mcc"] == pytest.approx(0.5)
        widths.append(interval["high"] - interval["low"])
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.1)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.1)


def test_interval_is_that_of_resampled_rows() -> None:
    labels, predictions = map(np.array, pairs((60, 25, 15, 100)))
    rng = np.random.default_rng(1)
    rows = rng.integers(0, len(labels), (4000, len(labels)))
    slow = [mcc(labels[drawn], predictions[drawn]) for drawn in rows]
    interval = mcc_interval(labels, predictions, resamples=20_000)
    assert [interval["low"], interval["high"]] == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.015)


def test_interval_is_the_same_for_the_same_seed_only() -> None:
    labels, predictions = pairs((60, 25, 15, 100))
    same = [mcc_interval(labels, predictions, 500, seed=3) for _ in range(2)]
    assert same[0] == same[1]
    assert mcc_interval(labels, predictions, 500, seed=4) != same[0]


def test_interval_does_not_depend_on_row_order() -> None:
    labels, predictions = map(np.array, pairs((6, 2, 3, 9)))
    order = np.random.default_rng(0).permutation(20)
    assert mcc_interval(labels[order], predictions[order], 500) == mcc_interval(labels, predictions, 500)


def test_one_class_has_the_interval_zero_to_zero() -> None:
    assert mcc_interval([1, 1, 1], [1, 1, 0], 200) == {"mcc": 0.0, "low": 0.0, "high": 0.0}


def test_interval_of_no_sentences_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one sentence"):
        mcc_interval([], [])


def test_batches_are_consecutive_and_the_last_may_be_smaller() -> None:
    labels = [0, 1, 0, 1, 1]
    assert mcc_per_batch(labels, [0, 1, 1, 0, 1], size=2) == [1.0, -1.0, 0.0]
    assert mcc_per_batch([], []) == []


def test_batches_hold_32_sentences_as_in_the_book() -> None:
    labels, predictions = np.random.default_rng(0).integers(0, 2, (2, 70))
    expected = [
        mcc(labels[:32], predictions[:32]),
        mcc(labels[32:64], predictions[32:64]),
        mcc(labels[64:], predictions[64:]),
    ]
    assert MCC_BATCH == 32
    assert mcc_per_batch(labels, predictions) == expected


def test_groups_are_measured_separately_in_the_order_of_their_names() -> None:
    groups = mcc_per_group([0, 1, 0, 1, 1], [0, 1, 1, 0, 1], ["b", "b", "a", "a", "c"])
    assert list(groups.items()) == [
        ("a", {"rows": 2, "accuracy": 0.0, "mcc": -1.0}),
        ("b", {"rows": 2, "accuracy": 1.0, "mcc": 1.0}),
        ("c", {"rows": 1, "accuracy": 1.0, "mcc": None}),
    ]


@pytest.mark.parametrize("label", [0, 1])
def test_a_group_of_one_label_has_no_mcc_whatever_is_predicted(label: int) -> None:
    """A group of both labels for which one label is predicted has: 0."""
    found = mcc_per_group([label] * 4 + [0, 1], [0, 1, 0, 1, 1, 1], ["a"] * 4 + ["b"] * 2)
    assert found == {
        "a": {"rows": 4, "accuracy": 0.5, "mcc": None},
        "b": {"rows": 2, "accuracy": 0.5, "mcc": 0.0},
    }


def test_no_groups_without_sentences() -> None:
    assert mcc_per_group([], [], []) == {}


def test_rounding_does_not_leave_the_range() -> None:
    assert mcc_from_counts([1, 0, 0, 3]) == 1.0
    assert mcc_from_counts([0, 1, 3, 0]) == -1.0


# Probabilities from a coarse grid, so that ties and the edges of bins occur.
scored = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20).map(lambda part: part / 20)), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((5, 1, 2, 3), 2 * 3 / (2 * 3 + 1 + 2)),
        ((0, 0, 0, 4), 1.0),
        ((0, 4, 4, 0), 0.0),
        ((5, 0, 0, 0), 0.0),
        ((5, 0, 3, 0), 0.0),
        ((0, 3, 0, 3), 2 / 3),
    ],
)
def test_f1_is_that_of_the_acceptable_sentences(counts: tuple[int, ...], expected: float) -> None:
    assert f1(*pairs(counts)) == pytest.approx(expected, abs=1e-15)


@unhurried
@given(scored)
def test_auroc_is_the_share_of_pairs_ranked_correctly_and_keeps_under_monotone_maps(
    rows: list[tuple[int, float]],
) -> None:
    labels, probabilities = map(np.array, zip(*rows, strict=True))
    gaps = probabilities[labels == 1][:, None] - probabilities[labels == 0]
    expected = float(np.mean((gaps > 0) + (gaps == 0) / 2)) if gaps.size else 0.5
    assert auroc(labels, probabilities) == pytest.approx(expected, abs=1e-12)
    assert auroc(labels, probabilities**3) == pytest.approx(expected, abs=1e-12)
    assert auroc(labels, 1 - probabilities) == pytest.approx(1 - expected, abs=1e-12)


@unhurried
@given(scored)
def test_brier_score_is_the_mean_squared_error(rows: list[tuple[int, float]]) -> None:
    labels, probabilities = zip(*rows, strict=True)
    expected = sum((label - probability) ** 2 for label, probability in rows) / len(rows)
    assert brier(labels, probabilities) == pytest.approx(expected, abs=1e-12)


@unhurried
@given(scored)
def test_the_calibration_error_is_the_mean_gap_of_the_bins(rows: list[tuple[int, float]]) -> None:
    labels, probabilities = map(np.array, zip(*rows, strict=True))
    bins = calibration(labels, probabilities)
    expected = 0.0
    for number in range(CALIBRATION_BINS):
        low, high = number / CALIBRATION_BINS, (number + 1) / CALIBRATION_BINS
        here = (probabilities >= low) & ((probabilities < high) | (number == CALIBRATION_BINS - 1))
        if here.any():
            expected += here.sum() * abs(probabilities[here].mean() - labels[here].mean()) / len(rows)
    assert sum(each["rows"] for each in bins) == len(rows)
    assert calibration_error(bins) == pytest.approx(expected, abs=1e-12)


def test_the_calibration_curve_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.random(500)
    labels = (rng.random(500) < probabilities**2).astype(int)
    bins = calibration(labels, probabilities)
    acceptable, predicted = calibration_curve(labels, probabilities, n_bins=CALIBRATION_BINS)
    assert [each["acceptable"] for each in bins] == pytest.approx(acceptable.tolist())
    assert [each["probability"] for each in bins] == pytest.approx(predicted.tolist())


@pytest.mark.parametrize(
    ("labels", "probabilities", "expected"),
    [
        ([0, 1], [0.1, 0.9], 1.0),
        ([0, 1], [0.9, 0.1], 0.0),
        ([0, 1], [0.5, 0.5], 0.5),
        ([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.9], 0.875),
        ([1, 1], [0.1, 0.9], 0.5),
        ([0], [0.1], 0.5),
        ([], [], 0.5),
    ],
)
def test_auroc_has_these_values(labels: list[int], probabilities: list[float], expected: float) -> None:
    assert auroc(labels, probabilities) == expected


def test_certain_predictions_have_the_extreme_scores() -> None:
    assert (brier([0, 1], [0.0, 1.0]), brier([0, 1], [1.0, 0.0]), brier([1, 1], [1.0, 0.5])) == (0.0, 1.0, 0.125)
    assert calibration_error(calibration([0, 1], [0.0, 1.0])) == 0.0
    assert calibration_error(calibration([0, 1], [1.0, 0.0])) == 1.0
    assert calibration_error(calibration([], [])) == 0.0


def test_bins_hold_their_lower_edge_and_the_last_holds_one() -> None:
    found = calibration([1, 0, 1], [0.1, 0.19, 1.0])
    assert [(each["low"], each["high"], each["rows"]) for each in found] == [(0.1, 0.2, 2), (0.9, 1.0, 1)]
