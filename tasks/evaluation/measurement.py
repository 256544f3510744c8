"""All figures of one model on a holdout, and of two models on the same rows, from labels and probabilities.

Pure functions of plain lists, so that the figures in an evidence file can be recomputed from the rows in it.
Shape letter: N rows.
"""

import math
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from tasks.evaluation.metrics import (
    CalibrationBin,
    MccInterval,
    SliceFigures,
    accuracy,
    auroc,
    brier,
    calibration,
    calibration_error,
    confusion,
    f1,
    mcc_interval,
    mcc_per_batch,
    mcc_per_group,
)
from tasks.evaluation.paired_tests import agreement, bootstrap, contingency, mcnemar, permutation_test
from tasks.inference.decision import DEFAULT_THRESHOLD, choose_labels

PROBABILITY_DIGITS = 9  # decimals kept; the last bit of an fp32 logit changes the seventh
LENGTH_BOUNDS = (5, 8, 12)  # words; about the quartiles of CoLA's sentences

Probabilities = list[float | None]  # of "acceptable", [N]; None stands for NaN or Inf


class HoldoutRows(TypedDict):
    """A holdout without its sentences: label, source and number of words of each row."""

    label: list[int]
    source: list[str]
    words: list[int]


class Measurement(TypedDict):
    """One model on one holdout; `finite` is false if a probability was NaN or Inf.

    `provider` is ONNX Runtime's execution provider, `ece` the expected calibration error of `calibration`,
    `decision_threshold` the bundle's; absent where it is 0.5.
    """

    rows: int
    provider: str
    variant: str
    decision_threshold: NotRequired[float]
    finite: bool
    classes_predicted: int
    interval: MccInterval
    accuracy: float
    f1: float
    auroc: float
    brier: float
    ece: float
    calibration: list[CalibrationBin]
    confusion: dict[str, int]
    mcc_per_batch: list[float]
    per_source: dict[str, SliceFigures]
    per_length: dict[str, SliceFigures]
    worst: list[dict[str, Any]]


class Comparison(TypedDict):
    """Candidate and champion on the same rows; `difference` is the candidate's MCC minus the champion's.

    `low` and `high` bound its 95% interval, `probability` is the fraction of resamples in which it is positive.
    `p_better` and `p_worse` are one-sided p values of the permutation test, `mcnemar` a two-sided one.
    `candidate_alone` and `champion_alone` count rows that only that model labels correctly, `differing` rows with
    different predictions, of which `sentences` shows the first, largest difference of the probabilities first.
    """

    rows: int
    difference: float
    low: float
    high: float
    probability: float
    p_better: float
    p_worse: float
    mcnemar: float
    agreement: float
    candidate_alone: int
    champion_alone: int
    differing: int
    sentences: list[dict[str, Any]]


def round_probabilities(values: NDArray[np.float64]) -> Probabilities:
    """Return probabilities [N] as recorded in evidence: rounded, None for NaN and Inf."""
    return [round(float(value), PROBABILITY_DIGITS) if math.isfinite(value) else None for value in values]


def read_probabilities(values: Probabilities) -> NDArray[np.float64]:
    """Return recorded probabilities [N] as an array; None becomes 0.5."""
    return np.array([0.5 if value is None else value for value in values], np.float64)


def predict_labels(values: Probabilities, threshold: float) -> NDArray[np.int64]:
    """Return the predicted labels [N] of recorded probabilities; None is predicted as unacceptable."""
    return choose_labels(np.array(values, np.float64), threshold)


def evaluate(
    rows: HoldoutRows,
    acceptable: Probabilities,
    provider: str,
    variant: str,
    resamples: int,
    threshold: float = DEFAULT_THRESHOLD,
) -> Measurement:
    """Compute every figure of a model; `worst` is left empty, as it needs the sentences.

    Args:
        rows: the holdout.
        acceptable: [N], the model's probability of "acceptable" for each row.
        provider: ONNX Runtime's execution provider.
        variant: of the bundle.
        resamples: of the bootstrap.
        threshold: the decision threshold.

    Raises:
        ValueError: if N is 0.
    """
    labels, probabilities = np.array(rows["label"], np.int64), read_probabilities(acceptable)
    predictions = predict_labels(acceptable, threshold)
    bins = calibration(labels, probabilities)
    lengths = np.array([name_length(count) for count in rows["words"]])
    by_length = mcc_per_group(labels, predictions, lengths)
    measured = Measurement(
        rows=len(labels),
        provider=provider,
        variant=variant,
        finite=None not in acceptable,
        classes_predicted=len(np.unique(predictions)),
        interval=mcc_interval(labels, predictions, resamples),
        accuracy=accuracy(labels, predictions),
        f1=f1(labels, predictions),
        auroc=auroc(labels, probabilities),
        brier=brier(labels, probabilities),
        ece=calibration_error(bins),
        calibration=bins,
        confusion=confusion(labels, predictions)._asdict(),
        mcc_per_batch=mcc_per_batch(labels, predictions),
        per_source=mcc_per_group(labels, predictions, rows["source"]),
        per_length={name: by_length[name] for name in _length_names() if name in by_length},
        worst=[],
    )
    if threshold != DEFAULT_THRESHOLD:
        measured["decision_threshold"] = threshold
    return measured


def compare(
    rows: HoldoutRows,
    candidate: Probabilities,
    champion: Probabilities,
    resamples: int,
    thresholds: tuple[float, float] = (DEFAULT_THRESHOLD, DEFAULT_THRESHOLD),
) -> Comparison:
    """Compare two models on the same rows; `sentences` is left empty.

    Args:
        rows: the holdout.
        candidate: [N], its probability of "acceptable" for each row.
        champion: [N], likewise.
        resamples: of the bootstrap.
        thresholds: the decision threshold of each.

    Raises:
        ValueError: if N is 0.
    """
    labels = np.array(rows["label"], np.int64)
    ours, theirs = predict_labels(candidate, thresholds[0]), predict_labels(champion, thresholds[1])
    cells = contingency(labels, ours, theirs)
    p_values = permutation_test(cells)
    return Comparison(
        rows=len(labels),
        **bootstrap(cells, resamples),
        p_better=p_values.better,
        p_worse=p_values.worse,
        mcnemar=mcnemar(cells),
        agreement=agreement(cells),
        candidate_alone=int(((ours == labels) & (theirs != labels)).sum()),
        champion_alone=int(((ours != labels) & (theirs == labels)).sum()),
        differing=int((ours != theirs).sum()),
        sentences=[],
    )


def name_length(words: int) -> str:
    """Return the name of the length slice for a number of words."""
    return _length_names()[sum(words > last for last in LENGTH_BOUNDS)]


def _length_names() -> list[str]:
    first = [1, *(last + 1 for last in LENGTH_BOUNDS)]
    bounded = [f"{low} to {high} words" for low, high in zip(first, LENGTH_BOUNDS, strict=False)]
    return [*bounded, f"{first[-1]} words or more"]
