"""What one model's answers to a holdout amount to: every figure that follows from labels and probabilities.

Pure functions of plain lists, so that the figures in an evidence file can be computed again from the rows in it.
"""

import math
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from tasks.evaluation.metrics import (
    CalibrationBin,
    MccInterval,
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

PROBABILITY_DIGITS = 9  # of a probability; a logit's last bit moves the seventh
LENGTH_BOUNDS = (5, 8, 12)  # words; a quarter of CoLA's sentences lies about between each two of them


class HoldoutRows(TypedDict):
    """A holdout without its sentences, one entry a row: the label, the source, how many words."""

    label: list[int]
    source: list[str]
    words: list[int]


class Measurement(TypedDict):
    """One model on one holdout; `finite` is false when a probability was no number.

    `calibration` and `ece` are of the probability of "acceptable" in ten bins of equal width.
    """

    rows: int
    provider: str
    variant: str
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
    per_source: dict[str, dict[str, float]]
    per_length: dict[str, dict[str, float]]
    worst: list[dict[str, Any]]


class Comparison(TypedDict):
    """Candidate and champion on the same rows; differences are the candidate's less the champion's.

    `chance_better` and `chance_worse`: how often two models that are as good as each other would differ at least as
    much to the candidate's advantage or disadvantage. `candidate_alone` and `champion_alone` count the rows on which
    only that one is right. `sentences` are the first of the `differing` ones, those furthest apart first.
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


def round_probabilities(values: NDArray[np.float64]) -> list[float | None]:
    """Return probabilities [N] as an evidence file keeps them; None for what is no number."""
    return [round(float(value), PROBABILITY_DIGITS) if math.isfinite(value) else None for value in values]


def read_probabilities(values: list[float | None]) -> NDArray[np.float64]:
    """Return kept probabilities [N] as an array; what was no number is one half, which counts as unacceptable."""
    return np.array([0.5 if value is None else value for value in values], np.float64)


def predict_labels(values: list[float | None]) -> NDArray[np.int64]:
    """Return the labels [N] that kept probabilities stand for."""
    return (read_probabilities(values) > 0.5).astype(np.int64)


def evaluate(
    rows: HoldoutRows, acceptable: list[float | None], provider: str, variant: str, resamples: int
) -> Measurement:
    """Compute every figure of a model; the list of its worst sentences is left empty.

    Args:
        rows: the holdout.
        acceptable: [N] probability of "acceptable" that the model gave each row.
        provider: what computed it.
        variant: of the bundle.
        resamples: of the bootstrap.

    Raises:
        ValueError: if there are no rows.
    """
    labels, probabilities = np.array(rows["label"], np.int64), read_probabilities(acceptable)
    predictions = predict_labels(acceptable)
    bins = calibration(labels, probabilities)
    lengths = np.array([name_length(count) for count in rows["words"]])
    by_length = mcc_per_group(labels, predictions, lengths)
    return Measurement(
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


def compare(
    rows: HoldoutRows, candidate: list[float | None], champion: list[float | None], resamples: int
) -> Comparison:
    """Compare two models row by row; the list of differing sentences is left empty.

    Args:
        rows: the holdout.
        candidate: [N] probability of "acceptable" that it gave each row.
        champion: [N] likewise.
        resamples: of the bootstrap.

    Raises:
        ValueError: if there are no rows.
    """
    labels = np.array(rows["label"], np.int64)
    ours, theirs = predict_labels(candidate), predict_labels(champion)
    cells = contingency(labels, ours, theirs)
    chances = permutation_test(cells)
    return Comparison(
        rows=len(labels),
        **bootstrap(cells, resamples),
        p_better=chances.better,
        p_worse=chances.worse,
        mcnemar=mcnemar(cells),
        agreement=agreement(cells),
        candidate_alone=int(((ours == labels) & (theirs != labels)).sum()),
        champion_alone=int(((ours != labels) & (theirs == labels)).sum()),
        differing=int((ours != theirs).sum()),
        sentences=[],
    )


def name_length(words: int) -> str:
    """Name the slice that a sentence of so many words belongs to."""
    return _length_names()[sum(words > last for last in LENGTH_BOUNDS)]


def _length_names() -> list[str]:
    first = [1, *(last + 1 for last in LENGTH_BOUNDS)]
    bounded = [f"{low} to {high} words" for low, high in zip(first, LENGTH_BOUNDS, strict=False)]
    return [*bounded, f"{first[-1]} words or more"]
