"""Measures a bundle on a holdout through ONNX Runtime, and the champion beside it on the same rows.

What is measured is what will serve: the graph, the tokeniser and the provider, not the torch model they came from.
The verdict rests on the variant that serves on this device; the others are measured beside it. The holdout chooses no
variant: which ones a bundle holds was decided at export, on other sentences.
"""

from typing import Any, TypedDict

import numpy as np

from tasks.bundle import SERVING, variants_of
from tasks.errors import VerdictError
from tasks.metrics import Interval, accuracy, confusion, mcc_interval, mcc_per_batch, mcc_per_group
from tasks.predict import Classifier
from tasks.reading import load_rows
from tasks.splitting import Split

WORST = 10  # sentences


class Measurement(TypedDict):
    """One model on one holdout; `finite` is false when a logit was no number."""

    rows: int
    provider: str
    variant: str
    finite: bool
    classes_predicted: int
    interval: Interval
    accuracy: float
    confusion: dict[str, int]
    mcc_per_batch: list[float]
    per_source: dict[str, dict[str, float]]
    worst: list[dict[str, Any]]


class Champion(TypedDict):
    """The reigning model; a measurement is missing when its bundle could not be loaded, and `fault` says why."""

    version: str
    digest: str
    measurement: Measurement | None
    fault: str | None


class Rows(TypedDict):
    """A snapshot to measure on."""

    digest: str
    path: str


class Reigning(TypedDict):
    """A registered bundle to measure beside the candidate."""

    version: str
    digest: str
    bundle: str


class Evidence(TypedDict):
    """Everything a verdict rests on; `split` counts the rows that trained, and those that left with their reasons.

    `candidate` is the variant that serves on the device, `variants` is every one of the bundle, that one included.
    """

    digest: str
    holdout: str
    split: Split
    candidate: Measurement
    variants: dict[str, Measurement]
    reported: Measurement | None
    champion: Champion | None


def gather_evidence(
    bundle: str,
    holdout: Rows,
    reported: Rows | None,
    champion: Reigning | None,
    *,
    split: Split,
    device: str,
    resamples: int,
) -> Evidence:
    """Measure a candidate and the champion on the judging holdout, and the candidate on the reported one.

    Args:
        bundle: folder of the candidate's bundle.
        holdout: digest and path of the judging snapshot.
        reported: digest and path of a snapshot that is only reported.
        champion: version, digest and folder of the reigning bundle; None when there is none.
        split: how the training rows were divided.
        device: auto, cuda or cpu.
        resamples: of the bootstrap.
    """
    classifier = Classifier.from_bundle(bundle, device)
    candidate = measure(classifier, holdout["path"], resamples)
    variants = {candidate["variant"]: candidate}
    for variant in variants_of(classifier.manifest):
        if variant not in variants:
            variants[variant] = measure(_load(bundle, device, variant), holdout["path"], resamples)
    return Evidence(
        digest=classifier.manifest["digest"],
        holdout=holdout["digest"],
        split=split,
        candidate=candidate,
        variants=variants,
        reported=measure(classifier, reported["path"], resamples) if reported else None,
        champion=_measure_champion(champion, holdout["path"], device, resamples) if champion else None,
    )


def measure(classifier: Classifier, snapshot: str, resamples: int) -> Measurement:
    """Measure a classifier on every row of a snapshot."""
    rows = load_rows(snapshot)
    labels = rows["label"].to_numpy(np.int64)
    probabilities = classifier.probabilities(rows["sentence"].tolist())
    predictions = probabilities.argmax(axis=1)
    given = probabilities[np.arange(len(labels)), labels]
    worst = np.argsort(given, kind="stable")[:WORST]
    return Measurement(
        rows=len(rows),
        provider=classifier.provider,
        variant=classifier.variant,
        finite=bool(np.isfinite(probabilities).all()),
        classes_predicted=len(np.unique(predictions)),
        interval=mcc_interval(labels, predictions, resamples),
        accuracy=accuracy(labels, predictions),
        confusion=confusion(labels, predictions)._asdict(),
        mcc_per_batch=mcc_per_batch(labels, predictions),
        per_source=mcc_per_group(labels, predictions, rows["source"]),
        worst=[
            {
                "line": int(rows["line"][row]),
                "source": rows["source"][row],
                "label": int(labels[row]),
                "sentence": rows["sentence"][row],
                "probability": float(given[row]) if np.isfinite(given[row]) else None,
            }
            for row in worst
        ],
    )


def _load(bundle: str, device: str, variant: str) -> Classifier:
    """Load a variant where it would serve: int8 on the CPU even beside a GPU."""
    return Classifier.from_bundle(bundle, "cpu" if variant == SERVING["cpu"] else device, variant)


def _measure_champion(champion: Reigning, snapshot: str, device: str, resamples: int) -> Champion:
    """Re-score the champion; one that cannot be loaded is evidence too, not a reason to lose the training."""
    result = Champion(version=champion["version"], digest=champion["digest"], measurement=None, fault=None)
    try:
        result["measurement"] = measure(Classifier.from_bundle(champion["bundle"], device), snapshot, resamples)
    except VerdictError as error:
        result["fault"] = str(error)
    return result
