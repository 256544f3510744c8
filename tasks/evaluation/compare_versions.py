"""Compares two registered versions on the same holdout rows: measured again, or from their recorded evidence."""

from typing import Any, TypedDict

import numpy as np
import pandas as pd

from tasks.data.snapshots import read_snapshot
from tasks.evaluation.evidence import Evidence
from tasks.evaluation.measurement import (
    Comparison,
    HoldoutRows,
    Measurement,
    Probabilities,
    compare,
    evaluate,
    predict_labels,
    read_probabilities,
    round_probabilities,
)
from tasks.inference.classifier import Classifier
from tasks.inference.decision import threshold_of

DIFFERING_SENTENCES = 10  # most sentences with different predictions that are listed
COMPARED_FIGURES = ("accuracy", "f1", "auroc", "brier", "ece", "per_source", "per_length", "variant", "provider")


class VersionComparison(TypedDict):
    """Figures of both; `comparison` has the first in the candidate's role, `labels` names the classes 0 and 1."""

    labels: list[str]

    first: Measurement
    second: Measurement
    comparison: Comparison


def compare_bundles(first: str, second: str, snapshot: str, device: str, resamples: int) -> VersionComparison:
    """Measure two bundles on every row of a snapshot and compare them.

    Args:
        first: folder of a bundle.
        second: likewise.
        snapshot: path of the holdout.
        device: auto, cuda or cpu.
        resamples: of the bootstrap.

    Raises:
        VerdictError: if a bundle is damaged or the rows cannot be read.
    """
    table = read_snapshot(snapshot)
    sentences = table["sentence"].tolist()
    rows = HoldoutRows(
        label=[int(label) for label in table["label"]],
        source=[str(source) for source in table["source"]],
        words=[len(sentence.split()) for sentence in sentences],
    )
    loaded = [Classifier.from_bundle(bundle, device, spin=False) for bundle in (first, second)]
    ours, theirs = (round_probabilities(model.probabilities(sentences)[:, 1]) for model in loaded)
    sides = [
        evaluate(rows, given, model.provider, model.variant, resamples, model.threshold)
        for model, given in zip(loaded, (ours, theirs), strict=True)
    ]
    thresholds = loaded[0].threshold, loaded[1].threshold
    comparison = compare(rows, ours, theirs, resamples, thresholds)
    comparison["sentences"] = list_disagreements(table, ours, theirs, thresholds)
    labels = loaded[0].manifest["labels"]
    return VersionComparison(labels=labels, first=sides[0], second=sides[1], comparison=comparison)


def compare_recorded(first: Evidence, second: Evidence) -> VersionComparison | None:
    """Compare two versions by their recorded probabilities; None if these are of different rows."""
    if first["holdout_digest"] != second["holdout_digest"] or first["answers"]["label"] != second["answers"]["label"]:
        return None
    ours, theirs = (each["answers"]["variants"][each["candidate"]["variant"]] for each in (first, second))
    thresholds = threshold_of(first["candidate"]), threshold_of(second["candidate"])
    comparison = compare(first["answers"], ours, theirs, first["resamples"], thresholds)
    return VersionComparison(labels=[], first=first["candidate"], second=second["candidate"], comparison=comparison)


def figures_of(measured: Measurement) -> dict[str, Any]:
    """Return the figures of one version that are shown, as plain values."""
    interval = measured["interval"]
    named = {"mcc": interval["mcc"], "mcc_low": interval["low"], "mcc_high": interval["high"]}
    named["decision_threshold"] = threshold_of(measured)
    return named | {name: dict(measured)[name] for name in COMPARED_FIGURES}


def list_disagreements(
    table: pd.DataFrame, ours: Probabilities, theirs: Probabilities, thresholds: tuple[float, float]
) -> list[dict[str, Any]]:
    """List the first sentences with different predictions, largest difference of the probabilities first."""
    differing = np.flatnonzero(predict_labels(ours, thresholds[0]) != predict_labels(theirs, thresholds[1]))
    gaps = np.abs(read_probabilities(ours) - read_probabilities(theirs))[differing]
    first = differing[np.argsort(-gaps, kind="stable")][:DIFFERING_SENTENCES]
    labels, sentences = table["label"].tolist(), table["sentence"].tolist()
    return [
        {"label": int(labels[row]), "sentence": str(sentences[row]), "first": ours[row], "second": theirs[row]}
        for row in first
    ]
