"""Two versions side by side on the same holdout sentences: measured again, or from what was recorded with them."""

from typing import Any, TypedDict

import pandas as pd

from tasks.data.snapshots import load_rows
from tasks.evaluation.evidence import Evidence
from tasks.evaluation.measurement import (
    Comparison,
    Measurement,
    Rows,
    compare_answers,
    measure_answers,
    predict_labels,
    round_probabilities,
)
from tasks.inference.classifier import Classifier

SHOWN = 10  # sentences on which the two differ
FIGURES = ("accuracy", "f1", "auroc", "brier", "ece", "per_source", "per_length", "variant", "provider")

Probabilities = list[float | None]


class SideBySide(TypedDict):
    """Figures of both, and the first's differences from the second."""

    first: Measurement
    second: Measurement
    comparison: Comparison


def compare_bundles(first: str, second: str, snapshot: str, device: str, resamples: int) -> SideBySide:
    """Ask two bundles every row of a snapshot and compare their answers.

    Args:
        first: folder of a bundle.
        second: likewise.
        snapshot: path of the holdout.
        device: auto, cuda or cpu.
        resamples: of the bootstrap.

    Raises:
        VerdictError: if a bundle is damaged or the rows cannot be read.
    """
    table = load_rows(snapshot)
    sentences = table["sentence"].tolist()
    rows = Rows(
        label=[int(label) for label in table["label"]],
        source=[str(source) for source in table["source"]],
        words=[len(sentence.split()) for sentence in sentences],
    )
    loaded = [Classifier.from_bundle(bundle, device) for bundle in (first, second)]
    ours, theirs = (round_probabilities(model.probabilities(sentences)[:, 1]) for model in loaded)
    sides = [
        measure_answers(rows, given, model.provider, model.variant, resamples)
        for model, given in zip(loaded, (ours, theirs), strict=True)
    ]
    comparison = compare_answers(rows, ours, theirs, resamples)
    comparison["sentences"] = _differing(table, ours, theirs)
    return SideBySide(first=sides[0], second=sides[1], comparison=comparison)


def compare_recorded(first: Evidence, second: Evidence) -> SideBySide | None:
    """Compare by the answers that two evidences hold; None where they are of other rows."""
    if first["holdout"] != second["holdout"] or first["answers"]["label"] != second["answers"]["label"]:
        return None
    ours, theirs = (each["answers"]["variants"][each["candidate"]["variant"]] for each in (first, second))
    comparison = compare_answers(first["answers"], ours, theirs, first["resamples"])
    return SideBySide(first=first["candidate"], second=second["candidate"], comparison=comparison)


def figures_of(measured: Measurement) -> dict[str, Any]:
    """Return what is shown of one side, as plain values."""
    interval = measured["interval"]
    named = {"mcc": interval["mcc"], "mcc_low": interval["low"], "mcc_high": interval["high"]}
    return named | {name: dict(measured)[name] for name in FIGURES}


def _differing(table: pd.DataFrame, ours: Probabilities, theirs: Probabilities) -> list[dict[str, Any]]:
    apart = [
        {"label": int(label), "sentence": str(sentence), "first": one, "second": other}
        for label, sentence, one, other, here, there in zip(
            *(table["label"], table["sentence"], ours, theirs, predict_labels(ours), predict_labels(theirs)),
            strict=True,
        )
        if here != there
    ]
    return sorted(apart, key=lambda row: -abs((row["first"] or 0.5) - (row["second"] or 0.5)))[:SHOWN]
