"""Chooses a bundle's decision threshold on the validation sentences, through the exported graph, never on the holdout.

Of all thresholds the one with the highest MCC is often chance: on a few hundred sentences the curve has spikes. The MCC
of each threshold is therefore averaged over its neighbours before the highest is taken.
Shape letters: N sentences, T thresholds.
"""

from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tasks.data.snapshots import read_snapshot
from tasks.evaluation.measurement import PROBABILITY_DIGITS, read_probabilities, round_probabilities
from tasks.evaluation.metrics import mcc, mcc_from_counts
from tasks.evaluation.thresholds import confusions_at
from tasks.inference.classifier import Classifier
from tasks.inference.decision import DEFAULT_THRESHOLD, choose_labels

SMOOTHED_SHARE = 0.01  # of the thresholds, on each side of one, that its MCC is averaged over


class ThresholdChoice(TypedDict):
    """The chosen threshold, the variant and the number of validation sentences that it was chosen with.

    `mcc` is the variant's on these sentences at the threshold, `default_mcc` at 0.5.
    """

    threshold: float
    variant: str
    sentences: int
    mcc: float
    default_mcc: float


def choose_on_validation(bundle: str, rows: str, device: str) -> ThresholdChoice:
    """Choose the threshold for a bundle with the variant that serves on a device.

    Args:
        bundle: folder of a bundle with a manifest.
        rows: snapshot of the validation rows.
        device: auto, cuda or cpu.

    Raises:
        VerdictError: if the bundle cannot be loaded or the rows cannot be read.
    """
    classifier, table = Classifier.from_bundle(bundle, device, spin=False), read_snapshot(rows)
    labels = table["label"].to_numpy(np.int64)
    given = round_probabilities(classifier.probabilities(table["sentence"].tolist())[:, 1])
    probabilities = read_probabilities(given)
    threshold = choose_threshold(labels, probabilities)
    return ThresholdChoice(
        threshold=threshold,
        variant=classifier.variant,
        sentences=len(labels),
        mcc=mcc(labels, choose_labels(probabilities, threshold)),
        default_mcc=mcc(labels, choose_labels(probabilities, DEFAULT_THRESHOLD)),
    )


def choose_threshold(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the threshold with the highest MCC, averaged over neighbours; of equal ones the one nearest 0.5.

    Thresholds are the midpoints between neighbouring probabilities. The default stays where the chosen one has no
    higher MCC.

    Args:
        labels: [N] of 0 and 1.
        probabilities: [N] of label 1.
    """
    labels, probabilities = np.asarray(labels, np.int64), np.asarray(probabilities, np.float64)
    values = np.unique(probabilities)
    thresholds = np.round((values[:-1] + values[1:]) / 2, PROBABILITY_DIGITS)
    if not len(thresholds):
        return DEFAULT_THRESHOLD
    figures = mcc_from_counts(confusions_at(labels, probabilities, thresholds))
    smooth = _average(figures, round(SMOOTHED_SHARE * len(thresholds)))
    best = np.flatnonzero(smooth >= smooth.max() - 1e-12)
    chosen = best[np.argmin(np.abs(thresholds[best] - DEFAULT_THRESHOLD))]
    default = mcc(labels, choose_labels(probabilities, DEFAULT_THRESHOLD))
    return float(thresholds[chosen]) if figures[chosen] > default else DEFAULT_THRESHOLD


def _average(values: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Return the mean of each value and of `reach` values on either side; fewer at the ends."""
    window = np.ones(2 * reach + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
