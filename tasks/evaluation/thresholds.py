"""Figures of one model at every decision threshold: ROC curve, precision and recall, MCC.

A sentence is predicted as acceptable where its probability exceeds the threshold; which one serves, its bundle states.
scikit-learn's `roc_curve` and `precision_recall_curve` keep different thresholds and no counts, and MCC needs all four
counts of each.
Shape letters: N sentences, T thresholds.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tasks.evaluation.measurement import read_probabilities
from tasks.evaluation.metrics import mcc_from_counts
from tasks.inference.decision import DEFAULT_THRESHOLD, threshold_of

if TYPE_CHECKING:
    from tasks.evaluation.evidence import Evidence

MAX_THRESHOLDS = 400  # of a curve; more would not be seen in a picture


class ThresholdCurve(NamedTuple):
    """Figures at T thresholds, in descending order; precision is 1 where nothing is predicted as acceptable."""

    thresholds: NDArray[np.float64]
    """[T]; the first predicts nothing as acceptable, the last everything"""
    recall: NDArray[np.float64]
    """[T], share of the acceptable sentences that are predicted so; also the true positive rate"""
    false_positive_rate: NDArray[np.float64]
    precision: NDArray[np.float64]
    mcc: NDArray[np.float64]
    served_threshold: float

    @property
    def best(self) -> tuple[float, float]:
        """Threshold and MCC of the best one: chosen on the sentences that it is measured on, so it is optimistic."""
        index = int(np.argmax(self.mcc))
        return float(self.thresholds[index]), float(self.mcc[index])

    @property
    def served(self) -> int:
        """Index of the threshold that serves."""
        return int(np.flatnonzero(self.thresholds == self.served_threshold)[0])


def threshold_curve(labels: ArrayLike, probabilities: ArrayLike, served: float = DEFAULT_THRESHOLD) -> ThresholdCurve:
    """Return the figures at the served threshold and between all distinct probabilities, thinned to MAX_THRESHOLDS.

    Args:
        labels: [N] of 0 and 1.
        probabilities: [N] of label 1.
        served: the threshold that serves.

    Raises:
        ValueError: if N is 0.
    """
    labels, probabilities = np.asarray(labels, np.int64), np.asarray(probabilities, np.float64)
    if not len(labels):
        raise ValueError("a curve needs at least one sentence")
    values = np.unique(probabilities)
    between = (np.concatenate([[0.0], values]) + np.concatenate([values, [1.0]])) / 2
    kept = np.unique(np.linspace(0, len(between) - 1, MAX_THRESHOLDS).round().astype(np.int64))
    thresholds = np.union1d(between[kept], served)[::-1]
    counts = confusions_at(labels, probabilities, thresholds)
    _, fp, _, tp = counts.T
    acceptable = int(labels.sum())
    return ThresholdCurve(
        thresholds,
        recall=tp / max(acceptable, 1),
        false_positive_rate=fp / max(len(labels) - acceptable, 1),
        precision=np.divide(tp, tp + fp, out=np.ones(len(tp)), where=tp + fp > 0),
        mcc=mcc_from_counts(counts),
        served_threshold=served,
    )


def confusions_at(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], thresholds: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the counts (tn, fp, fn, tp) [T, 4] of labels [N] and probabilities [N] at thresholds [T]."""
    ordered = np.argsort(probabilities)
    below = np.searchsorted(probabilities[ordered], thresholds, side="right")  # predicted as unacceptable
    fn = np.concatenate([[0], np.cumsum(labels[ordered])])[below]
    tn, tp = below - fn, labels.sum() - fn
    return np.stack([tn, len(labels) - labels.sum() - tn, fn, tp], axis=-1)


def curves_of(evidence: "Evidence") -> list[ThresholdCurve]:
    """Return the curve of the candidate, and that of a measured champion after it."""
    answers, champion = evidence["answers"], evidence["champion"]
    sides = [(answers["variants"][evidence["candidate"]["variant"]], evidence["candidate"])]
    if champion and champion["measurement"] and answers["champion"] is not None:
        sides.append((answers["champion"], champion["measurement"]))
    return [threshold_curve(answers["label"], read_probabilities(given), threshold_of(side)) for given, side in sides]
