"""Matthews correlation coefficient and friends, in NumPy.

Labels are 1 (acceptable) and 0 (not). A confusion is counted as (tn, fp, fn, tp). Probabilities are those of label 1.
MCC: Matthews 1975, https://doi.org/10.1016/0005-2795(75)90109-9; where its denominator is 0 it is 0, as elsewhere.
Shape letters: N sentences, R resamples.
"""

from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

MCC_BATCH = 32  # the book prints MCC for each batch of 32
CALIBRATION_BINS = (
    10  # of equal width, of the probability of "acceptable"; the calibration error depends on how many there are
)


class Confusion(NamedTuple):
    """Counts of (label, prediction) pairs."""

    tn: int
    fp: int
    fn: int
    tp: int


class MccInterval(TypedDict):
    """A measured MCC with its 95% interval."""

    mcc: float
    low: float
    high: float


class CalibrationBin(TypedDict):
    """Sentences whose probability lies in [low, high): its mean, and the share that is acceptable."""

    low: float
    high: float
    rows: int
    probability: float
    acceptable: float


def confusion(labels: ArrayLike, predictions: ArrayLike) -> Confusion:
    """Count the four outcomes.

    Args:
        labels: [N] of 0 and 1.
        predictions: [N] of 0 and 1.
    """
    counts = np.bincount(2 * np.asarray(labels, np.int64) + np.asarray(predictions, np.int64), minlength=4)
    return Confusion(*(int(count) for count in counts))


def mcc_from_counts(counts: ArrayLike) -> NDArray[np.float64]:
    """Return the MCC, in [-1, 1], of each confusion in an array [..., 4] of (tn, fp, fn, tp)."""
    tn, fp, fn, tp = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    # Square roots first: the product of the four sums overflows no float64, but their exact product would an int64.
    scale = np.sqrt(tp + fp) * np.sqrt(tp + fn) * np.sqrt(tn + fp) * np.sqrt(tn + fn)
    values = np.divide(tp * tn - fp * fn, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.clip(values, -1.0, 1.0)  # rounding can leave the range by one digit


def mcc(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Return the MCC of [N] predictions against [N] labels."""
    return float(mcc_from_counts(confusion(labels, predictions)))


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Return the share of right predictions; 0 for none at all."""
    return float(np.mean(np.equal(labels, predictions))) if np.size(labels) else 0.0


def f1(counts: ArrayLike) -> float:
    """Return F1 of the acceptable sentences from one (tn, fp, fn, tp); 0 where none is acceptable or predicted so."""
    _, fp, fn, tp = np.asarray(counts, np.float64)
    return float(2 * tp / (2 * tp + fp + fn)) if tp else 0.0


def auroc(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Return how often an acceptable sentence has the higher probability of two; a tie counts half.

    The mean rank of the acceptable ones says it (Mann and Whitney), equal probabilities sharing their mid-rank. Where
    one class is missing there is nothing to rank, and it is 0.5.

    Args:
        labels: [N] of 0 and 1.
        probabilities: [N].
    """
    positive = np.asarray(labels) == 1
    few, many = int(positive.sum()), int((~positive).sum())
    if not few or not many:
        return 0.5
    _, place, counts = np.unique(np.asarray(probabilities, np.float64), return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # from 1; the middle of those that are equal
    return float((ranks[place][positive].sum() - few * (few + 1) / 2) / (few * many))


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the mean squared distance of [N] probabilities from [N] labels; 0 for none at all."""
    gaps = np.asarray(probabilities, np.float64) - np.asarray(labels, np.float64)
    return float(np.mean(gaps**2)) if gaps.size else 0.0


def calibration(labels: ArrayLike, probabilities: ArrayLike, bins: int = CALIBRATION_BINS) -> list[CalibrationBin]:
    """Return what was said and what was true in bins of equal width; empty bins are left out.

    Args:
        labels: [N] of 0 and 1.
        probabilities: [N] in [0, 1]; 1 belongs to the last bin.
        bins: how many.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    places = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    found = []
    for place in np.unique(places):
        here = places == place
        found.append(
            CalibrationBin(
                low=float(place / bins),
                high=float((place + 1) / bins),
                rows=int(here.sum()),
                probability=float(probabilities[here].mean()),
                acceptable=float(labels[here].mean()),
            )
        )
    return found


def calibration_error(bins: list[CalibrationBin]) -> float:
    """Return the expected calibration error: the mean gap between said and true, over all sentences; 0 for none."""
    rows = sum(each["rows"] for each in bins)
    gaps = sum(each["rows"] * abs(each["probability"] - each["acceptable"]) for each in bins)
    return gaps / rows if rows else 0.0


def mcc_interval(labels: ArrayLike, predictions: ArrayLike, resamples: int = 10_000, seed: int = 0) -> MccInterval:
    """Return the MCC with its 95% percentile bootstrap interval.

    Drawing N sentences with replacement and counting them is one draw of a multinomial over the four cells, so the
    R resamples need R x 4 numbers instead of R x N.

    Args:
        labels: [N] of 0 and 1.
        predictions: [N] of 0 and 1.
        resamples: R.
        seed: of the resampling.

    Raises:
        ValueError: if there are no sentences.
    """
    counts = confusion(labels, predictions)
    total = sum(counts)
    if total == 0:
        raise ValueError("an interval needs at least one sentence")
    drawn = np.random.default_rng(seed).multinomial(total, np.array(counts) / total, size=resamples)
    low, high = np.quantile(mcc_from_counts(drawn), [0.025, 0.975])
    return MccInterval(mcc=float(mcc_from_counts(counts)), low=float(low), high=float(high))


def mcc_per_batch(labels: ArrayLike, predictions: ArrayLike, size: int = MCC_BATCH) -> list[float]:
    """Return the MCC of each consecutive batch of sentences, the last one possibly smaller."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    return [mcc(labels[i : i + size], predictions[i : i + size]) for i in range(0, len(labels), size)]


def mcc_per_group(labels: ArrayLike, predictions: ArrayLike, groups: ArrayLike) -> dict[str, dict[str, float]]:
    """Return rows, accuracy and MCC for each group name, in the order of the names."""
    labels, predictions, groups = np.asarray(labels), np.asarray(predictions), np.asarray(groups)
    slices = {str(name): groups == name for name in np.unique(groups)}
    return {
        name: {
            "rows": int(here.sum()),
            "accuracy": accuracy(labels[here], predictions[here]),
            "mcc": mcc(labels[here], predictions[here]),
        }
        for name, here in slices.items()
    }
