"""Matthews correlation coefficient and friends, in NumPy.

Labels are 1 (acceptable) and 0 (not). A confusion is counted as (tn, fp, fn, tp).
MCC: Matthews 1975, https://doi.org/10.1016/0005-2795(75)90109-9; where its denominator is 0 it is 0, as elsewhere.
Shape letters: N sentences, R resamples.
"""

from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

BATCH = 32  # the book prints MCC for each batch of 32


class Confusion(NamedTuple):
    """Counts of (label, prediction) pairs."""

    tn: int
    fp: int
    fn: int
    tp: int


class Interval(TypedDict):
    """A measured MCC with its 95% interval."""

    mcc: float
    low: float
    high: float


def confusion(labels: ArrayLike, predictions: ArrayLike) -> Confusion:
    """Count the four outcomes.

    Args:
        labels: [N] of 0 and 1.
        predictions: [N] of 0 and 1.
    """
    counts = np.bincount(2 * np.asarray(labels, np.int64) + np.asarray(predictions, np.int64), minlength=4)
    return Confusion(*(int(count) for count in counts))


def matthews(counts: ArrayLike) -> NDArray[np.float64]:
    """Return the MCC, in [-1, 1], of each confusion in an array [..., 4] of (tn, fp, fn, tp)."""
    tn, fp, fn, tp = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    # Square roots first: the product of the four sums overflows no float64, but their exact product would an int64.
    scale = np.sqrt(tp + fp) * np.sqrt(tp + fn) * np.sqrt(tn + fp) * np.sqrt(tn + fn)
    values = np.divide(tp * tn - fp * fn, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.clip(values, -1.0, 1.0)  # rounding can leave the range by one digit


def mcc(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Return the MCC of [N] predictions against [N] labels."""
    return float(matthews(confusion(labels, predictions)))


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Return the share of right predictions; 0 for none at all."""
    return float(np.mean(np.equal(labels, predictions))) if np.size(labels) else 0.0


def mcc_interval(labels: ArrayLike, predictions: ArrayLike, resamples: int = 10_000, seed: int = 0) -> Interval:
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
    low, high = np.quantile(matthews(drawn), [0.025, 0.975])
    return Interval(mcc=float(matthews(counts)), low=float(low), high=float(high))


def mcc_per_batch(labels: ArrayLike, predictions: ArrayLike, size: int = BATCH) -> list[float]:
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
