"""Measures a bundle on a holdout through ONNX Runtime, and the champion beside it on the same rows.

What is measured is what will serve: the graph, the tokeniser and the provider, not the torch model they came from.
The verdict rests on the variant that serves on this device; the others are measured beside it. The holdout chooses no
variant: which ones a bundle holds was decided at export, on other sentences.

Evidence holds the probability that each model gave each row, so everything computed from them can be computed again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa

from tasks.core.errors import VerdictError
from tasks.core.files import read_json
from tasks.core.provenance import git_commit, library_versions
from tasks.data.normalization import normalise_all
from tasks.data.snapshots import iter_snapshot, read_snapshot
from tasks.data.splitting import Split
from tasks.evaluation.incumbency import ChampionState
from tasks.evaluation.measurement import (
    Comparison,
    HoldoutRows,
    Measurement,
    compare,
    evaluate,
    predict_labels,
    read_probabilities,
    round_probabilities,
)
from tasks.evaluation.minimal_pairs import MinimalPairResult, evaluate_minimal_pairs
from tasks.inference.bundle import DEVICE_VARIANT, PROFILE, variants_of
from tasks.inference.classifier import Classifier

WORST_SHOWN = 10  # sentences
DIFFERING_SHOWN = 50  # sentences on which candidate and champion differ; the whole count stands beside them
LEAKED_SHOWN = 5  # sentences

Probabilities = list[float | None]


class ChampionEvidence(TypedDict):
    """The reigning model and the digest of its training rows, None where its bundle does not say.

    Measurement and behaviour are missing when its bundle could not be loaded, and `fault` says why.
    """

    version: str
    digest: str
    training: str | None
    measurement: Measurement | None
    minimal_pairs: MinimalPairResult | None
    fault: str | None


class SnapshotRef(TypedDict):
    """A snapshot to measure on."""

    digest: str
    path: str


class ChampionBundle(TypedDict):
    """A registered bundle to measure beside the candidate."""

    version: str
    digest: str
    bundle: str


class JudgeContext(TypedDict):
    """What a verdict depends on and no measurement tells.

    `looks` counts the other candidates that were judged on this holdout before, `drift` names the distances from the
    champion's data that the gate warned of, `training` is the digest of the training rows, `policy` the policy's keys.
    """

    champion_state: ChampionState
    holdout_uses: int
    drift: list[str]
    training: str
    policy: dict[str, Any]


class Leak(TypedDict):
    """Training rows that left because they stand in a holdout, and holdout rows that were trained on nevertheless."""

    left: int
    remaining: int
    sentences: list[str]


class Answers(HoldoutRows):
    """The holdout's rows, and the probability of "acceptable" that each variant and the champion gave them."""

    variants: dict[str, Probabilities]
    champion: Probabilities | None


class Evidence(JudgeContext):
    """Everything a verdict rests on; `split` counts the rows that trained, and those that left with their reasons.

    `candidate` is the variant that serves on the device, `variants` is every one of the bundle, that one included.
    """

    digest: str
    holdout: str
    split: Split
    leak: Leak
    candidate: Measurement
    variants: dict[str, Measurement]
    minimal_pairs: MinimalPairResult
    secondary: Measurement | None
    champion: ChampionEvidence | None
    comparison: Comparison | None
    answers: Answers
    resamples: int
    versions: dict[str, str]
    git_commit: str


def gather_evidence(
    bundle: str,
    holdout: SnapshotRef,
    reported: SnapshotRef | None,
    champion: ChampionBundle | None,
    *,
    split: Split,
    training: Sequence[str],
    circumstances: JudgeContext,
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
        training: paths of all rows that trained or chose the epoch.
        circumstances: what else the verdict depends on.
        device: auto, cuda or cpu.
        resamples: of the bootstrap.

    Raises:
        VerdictError: if the candidate cannot be loaded or rows cannot be read.
    """
    rows = read_snapshot(holdout["path"])
    classifier = Classifier.from_bundle(bundle, device)
    answers = Answers(**_strip(rows), variants={}, champion=None)
    variants: dict[str, Measurement] = {}
    others = [name for name in variants_of(classifier.manifest) if name != classifier.variant]
    for variant in [classifier.variant, *others]:
        loaded = classifier if variant == classifier.variant else _load(bundle, device, variant)
        answers["variants"][variant] = given = _probabilities(loaded, rows)
        variants[variant] = _describe(loaded, rows, given, resamples)
    evidence = Evidence(
        **circumstances,
        digest=classifier.manifest["digest"],
        holdout=holdout["digest"],
        split=split,
        leak=find_leak(training, rows["sentence"].tolist(), split["in_holdout"]),
        candidate=variants[classifier.variant],
        variants=variants,
        minimal_pairs=evaluate_minimal_pairs(classifier),
        secondary=measure_snapshot(classifier, reported["path"], resamples) if reported else None,
        champion=None,
        comparison=None,
        answers=answers,
        resamples=resamples,
        versions=library_versions(),
        git_commit=git_commit(),
    )
    return add_champion(evidence, champion, holdout["path"], device) if champion else evidence


def add_champion(evidence: Evidence, champion: ChampionBundle, holdout: str, device: str) -> Evidence:
    """Measure a champion on the candidate's holdout and return the evidence with it, in place of any other.

    A champion that cannot be loaded is evidence too, not a reason to lose the training.

    Args:
        evidence: of the candidate.
        champion: version, digest and folder of the reigning bundle.
        holdout: path of the snapshot that the candidate was measured on.
        device: auto, cuda or cpu.
    """
    found = ChampionEvidence(
        version=champion["version"],
        digest=champion["digest"],
        training=None,
        measurement=None,
        minimal_pairs=None,
        fault=None,
    )
    given: Probabilities | None = None
    comparison = None
    try:
        classifier = Classifier.from_bundle(champion["bundle"], device)
        profile = Path(champion["bundle"]) / PROFILE
        found["training"] = read_json(profile)["dataset"] if profile.is_file() else None
    except VerdictError as error:
        found["fault"] = str(error)
    else:
        rows = read_snapshot(holdout)
        given = _probabilities(classifier, rows)
        found["measurement"] = _describe(classifier, rows, given, evidence["resamples"])
        found["minimal_pairs"] = evaluate_minimal_pairs(classifier)
        ours = evidence["answers"]["variants"][evidence["candidate"]["variant"]]
        comparison = compare(evidence["answers"], ours, given, evidence["resamples"])
        comparison["sentences"] = _list_differing(rows, ours, given)
    answers = Answers(**{**evidence["answers"], "champion": given})
    return Evidence(
        **{**evidence, "champion_state": "active", "champion": found, "comparison": comparison, "answers": answers}
    )


def measure_snapshot(classifier: Classifier, snapshot: str, resamples: int) -> Measurement:
    """Measure a classifier on every row of a snapshot."""
    rows = read_snapshot(snapshot)
    return _describe(classifier, rows, _probabilities(classifier, rows), resamples)


def find_leak(training: Sequence[str], sentences: list[str], left: int) -> Leak:
    """Look for holdout sentences among the rows that trained; they are compared folded.

    Args:
        training: paths of the rows.
        sentences: of the holdout.
        left: training rows that the split left out because they stand in a holdout.

    Raises:
        VerdictError: if rows cannot be read.
    """
    folded = pd.Series(normalise_all(pa.array(sentences, pa.string())))
    trained: set[str] = set()
    for path in training:
        for batch in iter_snapshot(path, ["sentence"]):
            here = pd.Series(normalise_all(batch["sentence"]))
            trained |= set(here[here.isin(folded)])
    leaked = np.flatnonzero(folded.isin(trained))
    return Leak(left=left, remaining=len(leaked), sentences=[sentences[row] for row in leaked[:LEAKED_SHOWN]])


def _load(bundle: str, device: str, variant: str) -> Classifier:
    """Load a variant where it would serve: int8 on the CPU even beside a GPU."""
    return Classifier.from_bundle(bundle, "cpu" if variant == DEVICE_VARIANT["cpu"] else device, variant)


def _strip(rows: pd.DataFrame) -> HoldoutRows:
    return HoldoutRows(
        label=[int(label) for label in rows["label"]],
        source=[str(source) for source in rows["source"]],
        words=[len(sentence.split()) for sentence in rows["sentence"]],
    )


def _probabilities(classifier: Classifier, rows: pd.DataFrame) -> Probabilities:
    return round_probabilities(classifier.probabilities(rows["sentence"].tolist())[:, 1])


def _describe(classifier: Classifier, rows: pd.DataFrame, given: Probabilities, resamples: int) -> Measurement:
    """Compute a model's figures and list the sentences whose label got the least probability."""
    result = evaluate(_strip(rows), given, classifier.provider, classifier.variant, resamples)
    acceptable = read_probabilities(given)
    to_label = np.where(rows["label"].to_numpy() == 1, acceptable, 1 - acceptable)
    for row in np.argsort(to_label, kind="stable")[:WORST_SHOWN]:
        probability = float(to_label[row]) if given[row] is not None else None
        result["worst"].append(_show(rows, row) | {"probability": probability})
    return result


def _list_differing(rows: pd.DataFrame, ours: Probabilities, theirs: Probabilities) -> list[dict[str, Any]]:
    """List the sentences that the two label differently, with both probabilities of "acceptable"."""
    differing = np.flatnonzero(predict_labels(ours) != predict_labels(theirs))
    apart = np.abs(read_probabilities(ours) - read_probabilities(theirs))[differing]
    first = differing[np.argsort(-apart, kind="stable")][:DIFFERING_SHOWN]
    return [_show(rows, row) | {"candidate": ours[row], "champion": theirs[row]} for row in first]


def _show(rows: pd.DataFrame, row: int) -> dict[str, Any]:
    return {
        "line": int(rows["line"].iloc[row]),
        "source": str(rows["source"].iloc[row]),
        "label": int(rows["label"].iloc[row]),
        "sentence": str(rows["sentence"].iloc[row]),
    }
