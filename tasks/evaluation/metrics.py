"""Metrics of a binary classifier: MCC with a bootstrap interval, accuracy, F1, AUROC, Brier score, calibration.

Labels are 1 (acceptable) and 0 (unacceptable), probabilities are those of label 1. Confusion counts are ordered
(tn, fp, fn, tp). MCC: Matthews 1975, https://doi.org/10.1016/0005-2795(75)90109-9; it is 0 where its denominator is 0,
as in scikit-learn.

F1, AUROC and Brier score are scikit-learn's, imported when called. Confusion, MCC and accuracy are NumPy: training
computes them after each epoch without scikit-learn's import, and the bootstrap needs the MCC of R confusions at once.
So is calibration: scikit-learn's `calibration_curve` returns no row counts, which the calibration error needs.
Shape letters: N sentences, R resamples.
"""

from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

MCC_BATCH = 32  # rows; the batch size of the book's MCC plot
CALIBRATION_BINS = 10  # equal-width bins of the probability; the calibration error depends on their number


class Confusion(NamedTuple):
    """Counts of (label, prediction) pairs: true and false negatives and positives."""

    tn: int
    fp: int
    fn: int
    tp: int


class MccInterval(TypedDict):
    """An MCC with its 95% confidence interval."""

    mcc: float
    low: float
    high: float


class SliceFigures(TypedDict):
    """One group of rows; `mcc` is None where all their labels are the same, whatever is predicted."""

    rows: int
    accuracy: float
    mcc: float | None


class CalibrationBin(TypedDict):
    """Rows whose probability lies in [low, high): their mean probability and the fraction with label 1."""

    low: float
    high: float
    rows: int
    probability: float
    acceptable: float


def confusion(labels: ArrayLike, predictions: ArrayLike) -> Confusion:
    """Return the confusion counts.

    Args:
        labels: [N] of 0 and 1.
        predictions: [N] of 0 and 1.
    """
    counts = np.bincount(2 * np.asarray(labels, np.int64) + np.asarray(predictions, np.int64), minlength=4)
    return Confusion(*(int(count) for count in counts))


def mcc_from_counts(counts: ArrayLike) -> NDArray[np.float64]:
    """Return the MCC, in [-1, 1], of confusion counts [..., 4] in the order (tn, fp, fn, tp)."""
    tn, fp, fn, tp = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    # In float64, as the product of the four sums would overflow int64; one root of it all, so that 1 and -1 are exact.
    scale = np.sqrt(((tp + fp) * (tp + fn)) * ((tn + fp) * (tn + fn)))
    values = np.divide(tp * tn - fp * fn, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.clip(values, -1.0, 1.0)  # rounding can exceed 1 by one ulp


def mcc(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Return the MCC of [N] predictions against [N] labels."""
    return float(mcc_from_counts(confusion(labels, predictions)))


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Return the fraction of [N] predictions that equal their labels; 0 for N = 0."""
    return float(np.mean(np.equal(labels, predictions))) if np.size(labels) else 0.0


def f1(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Return the F1 score of label 1 over [N] predictions; 0 if there is no true positive."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0))


def auroc(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the area under the ROC curve of [N] probabilities; 0.5 if only one class is present."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, probabilities)) if len(np.unique(labels)) == 2 else 0.5


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the Brier score, the mean squared error of [N] probabilities."""
    from sklearn.metrics import brier_score_loss

    return float(brier_score_loss(labels, probabilities, pos_label=1))


def calibration(labels: ArrayLike, probabilities: ArrayLike, bins: int = CALIBRATION_BINS) -> list[CalibrationBin]:
    """Return the reliability diagram over equal-width bins [low, high); empty bins are omitted.

    Args:
        labels: [N] of 0 and 1.
        probabilities: [N] in [0, 1]; 1 belongs to the last bin.
        bins: number of bins.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    bin_of_row = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    found = []
    for number in np.unique(bin_of_row):
        here = bin_of_row == number
        found.append(
            CalibrationBin(
                low=float(number / bins),
                high=float((number + 1) / bins),
                rows=int(here.sum()),
                probability=float(probabilities[here].mean()),
                acceptable=float(labels[here].mean()),
            )
        )
    return found


def calibration_error(bins: list[CalibrationBin]) -> float:
    """Return the expected calibration error: mean |probability - acceptable|, weighted by rows; 0 for no bins."""
    rows = sum(each["rows"] for each in bins)
    gaps = sum(each["rows"] * abs(each["probability"] - each["acceptable"]) for each in bins)
    return gaps / rows if rows else 0.0


def mcc_interval(labels: ArrayLike, predictions: ArrayLike, resamples: int = 10_000, seed: int = 0) -> MccInterval:
    """Return the MCC with its 95% percentile bootstrap interval.

    Confusion counts of N rows drawn with replacement are one multinomial draw, so R resamples need R x 4 numbers
    instead of R x N.

    Args:
        labels: [N] of 0 and 1.
        predictions: [N] of 0 and 1.
        resamples: R.
        seed: of the random generator.

    Raises:
        ValueError: if N is 0.
    """
    counts = confusion(labels, predictions)
    total = sum(counts)
    if total == 0:
        raise ValueError("an interval needs at least one sentence")
    drawn = np.random.default_rng(seed).multinomial(total, np.array(counts) / total, size=resamples)
    low, high = np.quantile(mcc_from_counts(drawn), [0.025, 0.975])
    return MccInterval(mcc=float(mcc_from_counts(counts)), low=float(low), high=float(high))


def mcc_per_batch(labels: ArrayLike, predictions: ArrayLike, size: int = MCC_BATCH) -> list[float]:
    """Return the MCC of each consecutive batch of `size` rows; the last batch may be smaller."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    return [mcc(labels[i : i + size], predictions[i : i + size]) for i in range(0, len(labels), size)]


def mcc_per_group(labels: ArrayLike, predictions: ArrayLike, groups: ArrayLike) -> dict[str, SliceFigures]:
    """Return rows, accuracy and MCC of each group, sorted by group name."""
    labels, predictions, groups = np.asarray(labels), np.asarray(predictions), np.asarray(groups)
    slices = {str(name): groups == name for name in np.unique(groups)}
    return {
        name: SliceFigures(
            rows=int(here.sum()),
            accuracy=accuracy(labels[here], predictions[here]),
            mcc=mcc(labels[here], predictions[here]) if len(np.unique(labels[here])) == 2 else None,
        )
        for name, here in slices.items()
    }
