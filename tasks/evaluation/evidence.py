"""Measures a candidate's bundle and the champion's on the same holdout rows, through ONNX Runtime.

The bundle is measured as it is served: its ONNX graph, tokenizer and execution provider, not the torch model. The
verdict rests on the variant that this device serves; the bundle's other variants are measured for the report. Which
variants a bundle contains was decided at export on other sentences, not by the holdout.

Evidence contains the probability that each model gave each row, so every figure can be recomputed from it (`rejudge`).
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from tasks.core.errors import VerdictError
from tasks.core.files import read_json
from tasks.core.provenance import git_commit, library_versions
from tasks.data.drift import DataProfile
from tasks.data.normalization import normalise_all
from tasks.data.snapshots import iter_snapshot, read_snapshot
from tasks.data.splitting import Split
from tasks.evaluation.baselines import Baseline
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
from tasks.evaluation.minimal_pairs import MinimalPairResult, evaluate_minimal_pairs
from tasks.evaluation.serving_costs import Costs
from tasks.evaluation.threshold_choice import ThresholdChoice
from tasks.inference.bundle import DEVICE_VARIANT, PROFILE, check_signature, variants_of
from tasks.inference.classifier import Classifier
from tasks.inference.decision import threshold_of

EVIDENCE_SCHEMA = 1  # version of evidence.json and of the verdict.json that is written with it
WORST_SHOWN = 10  # sentences
DIFFERING_SHOWN = 50  # sentences with different predictions; `Comparison.differing` counts all of them
LEAKED_SHOWN = 5  # sentences

log = logging.getLogger(__name__)

ChampionState = Literal["none", "active", "lost"]  # lost: there was a champion, and its alias or version was deleted


class ChampionEvidence(TypedDict):
    """The champion beside the candidate.

    `training_digest` is the digest of its training rows, None where its bundle has no profile. `holdout_known` counts
    the sentences of the holdout among these rows; it is absent where they are not on this machine. Measurement and
    minimal pairs are None if its bundle could not be loaded; `fault` is then the error message.
    """

    version: str
    digest: str
    training_digest: str | None
    holdout_known: NotRequired[int]
    measurement: Measurement | None
    minimal_pairs: MinimalPairResult | None
    fault: str | None


class SnapshotRef(TypedDict):
    """A snapshot file and its digest."""

    digest: str
    path: str


class ChampionBundle(TypedDict):
    """The champion's version, the digests that the registry holds and the folder of its bundle."""

    version: str
    digest: str
    manifest_digest: NotRequired[str]
    bundle: str


class JudgeContext(TypedDict):
    """What a verdict depends on besides measurements.

    `holdout_uses` counts the other candidates judged on this holdout before, `drift` names the drift tests that warned,
    `training_digest` is the digest of the training rows, `policy` the policy as plain values. `threshold_choice` is how
    the decision threshold was chosen; absent where it is fixed. `costs` is absent where nothing was measured.
    """

    champion_state: ChampionState
    holdout_uses: int
    drift: list[str]
    training_digest: str
    policy: dict[str, Any]
    threshold_choice: NotRequired[ThresholdChoice]
    costs: NotRequired[Costs]


class Leak(TypedDict):
    """Training rows removed because they occur in a holdout, and holdout rows that were trained on nevertheless."""

    left: int
    remaining: int
    sentences: list[str]


class Answers(HoldoutRows):
    """The holdout's rows with the probability of "acceptable" from each variant and from the champion."""

    variants: dict[str, Probabilities]
    champion: Probabilities | None


class Evidence(JudgeContext):
    """Everything a verdict rests on; the content of evidence.json.

    `digest` is the candidate's, `split` counts training rows by what became of them, `candidate` is the measurement of
    the variant that this device serves, and `variants` contains every variant, that one included. `baselines` is absent
    from evidence of older programs.
    """

    schema_version: int
    digest: str
    holdout_digest: str
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
    baselines: NotRequired[list[Baseline]]


@dataclasses.dataclass(frozen=True)
class CandidateMeasurement:
    """A candidate's bundle, measured."""

    digest: str
    variant: str
    """The variant that this device serves."""
    variants: dict[str, Measurement]
    probabilities: dict[str, Probabilities]
    """[N] of each variant."""
    minimal_pairs: MinimalPairResult
    secondary: Measurement | None


def gather_evidence(
    bundle: str,
    holdout: SnapshotRef,
    secondary: SnapshotRef | None,
    champion: ChampionBundle | None,
    *,
    split: Split,
    training: Sequence[str],
    context: JudgeContext,
    device: str,
    resamples: int,
) -> Evidence:
    """Measure a candidate and the champion on the holdout, and the candidate on the secondary holdout.

    Args:
        bundle: folder of the candidate's bundle.
        holdout: the snapshot that decides.
        secondary: a snapshot that is only reported.
        champion: None if there is none.
        split: how the training rows were divided.
        training: paths of all rows that trained or selected the epoch.
        context: what else the verdict depends on.
        device: auto, cuda or cpu.
        resamples: of the bootstrap.

    Raises:
        VerdictError: if the candidate cannot be loaded or rows cannot be read.
    """
    rows = read_snapshot(holdout["path"])
    measured = measure_candidate(bundle, rows, secondary, device, resamples)
    evidence = Evidence(
        **context,
        schema_version=EVIDENCE_SCHEMA,
        digest=measured.digest,
        holdout_digest=holdout["digest"],
        split=split,
        leak=find_leak(training, rows["sentence"].tolist(), split["in_holdout"]),
        candidate=measured.variants[measured.variant],
        variants=measured.variants,
        minimal_pairs=measured.minimal_pairs,
        secondary=measured.secondary,
        champion=None,
        comparison=None,
        answers=Answers(**_without_sentences(rows), variants=measured.probabilities, champion=None),
        resamples=resamples,
        versions=library_versions(),
        git_commit=git_commit(),
    )
    return _with_champion(evidence, rows, champion, holdout, device) if champion else evidence


def add_champion(evidence: Evidence, champion: ChampionBundle, holdout: SnapshotRef, device: str) -> Evidence:
    """Return the evidence with this champion, measured on the same holdout, in place of any other.

    Args:
        evidence: of the candidate.
        champion: to measure.
        holdout: the snapshot that the candidate was measured on; the champion's training rows are looked for beside it.
        device: auto, cuda or cpu.

    Raises:
        VerdictError: if the rows cannot be read.
    """
    return _with_champion(evidence, read_snapshot(holdout["path"]), champion, holdout, device)


def measure_again(
    evidence: Evidence, bundle: str, holdout: SnapshotRef, policy: dict[str, Any], device: str, resamples: int
) -> Evidence:
    """Return evidence of a candidate without champion in which every measurement on the holdout is a new one.

    Args:
        evidence: of the candidate; what was found out about its training rows is kept.
        bundle: folder of the candidate's bundle.
        holdout: the snapshot that decides.
        policy: as plain values.
        device: auto, cuda or cpu.
        resamples: of the bootstrap.

    Raises:
        VerdictError: if the bundle cannot be loaded or the rows cannot be read.
    """
    rows = read_snapshot(holdout["path"])
    measured = measure_candidate(bundle, rows, None, device, resamples)
    return Evidence(
        **{
            **evidence,
            "policy": policy,
            "digest": measured.digest,
            "holdout_digest": holdout["digest"],
            "candidate": measured.variants[measured.variant],
            "variants": measured.variants,
            "minimal_pairs": measured.minimal_pairs,
            "champion": None,
            "comparison": None,
            "answers": Answers(**_without_sentences(rows), variants=measured.probabilities, champion=None),
            "resamples": resamples,
            "versions": library_versions(),
            "git_commit": git_commit(),
        }
    )


def measure_candidate(
    bundle: str, rows: pd.DataFrame, secondary: SnapshotRef | None, device: str, resamples: int
) -> CandidateMeasurement:
    """Measure every variant of a bundle on the holdout's rows, the one that the device serves first.

    Raises:
        VerdictError: if the bundle cannot be loaded or the secondary rows cannot be read.
    """
    served = Classifier.from_bundle(bundle, device, spin=False)
    others = [name for name in variants_of(served.manifest) if name != served.variant]
    probabilities, variants = dict[str, Probabilities](), dict[str, Measurement]()
    for variant in [served.variant, *others]:
        classifier = served if variant == served.variant else _load_variant(bundle, device, variant)
        probabilities[variant] = _probabilities(classifier, rows)
        variants[variant] = _measure(classifier, rows, probabilities[variant], resamples)
    return CandidateMeasurement(
        digest=served.manifest["digest"],
        variant=served.variant,
        variants=variants,
        probabilities=probabilities,
        minimal_pairs=evaluate_minimal_pairs(served),
        secondary=_measure_secondary(served, secondary, resamples) if secondary else None,
    )


def measure_champion(
    champion: ChampionBundle, rows: pd.DataFrame, holdout: SnapshotRef, device: str, resamples: int
) -> tuple[ChampionEvidence, Probabilities | None]:
    """Measure a champion on the holdout's rows; also return its probabilities [N].

    A bundle that cannot be loaded is recorded as a fault instead of raised, so that the candidate's training is kept.
    """
    found = ChampionEvidence(
        version=champion["version"],
        digest=champion["digest"],
        training_digest=None,
        measurement=None,
        minimal_pairs=None,
        fault=None,
    )
    try:
        check_signature(Path(champion["bundle"]))
        classifier = Classifier.from_bundle(
            champion["bundle"], device, spin=False, expected=champion.get("manifest_digest", "")
        )
        path = Path(champion["bundle"]) / PROFILE
        profile = cast(DataProfile, read_json(path)) if path.is_file() else None
    except VerdictError as error:
        found["fault"] = str(error)
        return found, None
    if profile:
        found["training_digest"] = profile["dataset"]
        known = count_known(profile, holdout, rows["sentence"].tolist())
        if known is not None:
            found["holdout_known"] = known
    probabilities = _probabilities(classifier, rows)
    found["measurement"] = _measure(classifier, rows, probabilities, resamples)
    found["minimal_pairs"] = evaluate_minimal_pairs(classifier)
    return found, probabilities


def count_known(profile: DataProfile, holdout: SnapshotRef, sentences: Sequence[str]) -> int | None:
    """Count the sentences of a holdout that a model was trained on, or chosen by.

    Args:
        profile: of the model's training data; sentences of the holdouts that it names were left out of the training.
        holdout: snapshots of the training data and of these holdouts are looked for beside it.
        sentences: of the holdout.

    Returns:
        None where one of the snapshots is not there, or the profile, of an earlier release, names no holdouts.
    """
    left_out = profile.get("holdouts")
    if left_out and holdout["digest"] in left_out:
        return 0
    rows, *others = (
        Path(holdout["path"]).with_name(f"{name}.parquet") for name in (profile["dataset"], *(left_out or []))
    )
    if left_out is None or not all(path.is_file() for path in (rows, *others)):
        return None
    unread = {key for path in others for key in normalise_all(pa.array(read_snapshot(str(path))["sentence"]))}
    keys = normalise_all(pa.array(sentences, pa.string()))
    open_to_training = [sentence for sentence, key in zip(sentences, keys, strict=True) if key not in unread]
    return find_leak([str(rows)], open_to_training, 0)["remaining"]


def read_evidence(path: Path) -> Evidence:
    """Read an evidence.json.

    Raises:
        VerdictError: if it is not JSON or not of this schema version.
    """
    return parse_evidence(read_json(path), str(path))


def parse_evidence(document: Any, origin: str) -> Evidence:
    """Check the schema version and the keys of a document that was read.

    Raises:
        VerdictError: if it is not evidence of this schema version; the message begins with `origin`.
    """
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version is None:
        raise VerdictError(f"{origin} is no evidence; expected the evidence.json that a run wrote")
    if version != EVIDENCE_SCHEMA:
        raise VerdictError(
            f"{origin} has schema version {version}, this program reads {EVIDENCE_SCHEMA}; expected an evidence.json "
            "of this version; run: verdict retrain --force"
        )
    if missing := sorted(Evidence.__required_keys__ - document.keys()):
        raise VerdictError(f"{origin} lacks {missing[0]}; expected an evidence.json of this version")
    return cast(Evidence, document)


def predictions_of(evidence: Evidence) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Return the labels [N] that candidate and champion gave the rows, each with its own decision threshold.

    The champion's are None where it was not measured.
    """
    answers, ours, champion = evidence["answers"], evidence["candidate"], evidence["champion"]
    candidate = predict_labels(answers["variants"][ours["variant"]], threshold_of(ours))
    if answers["champion"] is None or champion is None or champion["measurement"] is None:
        return candidate, None
    return candidate, predict_labels(answers["champion"], threshold_of(champion["measurement"]))


def measure_snapshot(classifier: Classifier, snapshot: str, resamples: int) -> Measurement:
    """Measure a classifier on every row of a snapshot file."""
    rows = read_snapshot(snapshot)
    return _measure(classifier, rows, _probabilities(classifier, rows), resamples)


def find_leak(training: Sequence[str], sentences: list[str], left: int) -> Leak:
    """Find holdout sentences among the rows that trained, after normalisation of both.

    Args:
        training: paths of the rows.
        sentences: of the holdout.
        left: training rows that the split removed because they occur in a holdout.

    Raises:
        VerdictError: if rows cannot be read.
    """
    normalised = pd.Series(normalise_all(pa.array(sentences, pa.string())))
    trained: set[str] = set()
    for path in training:
        for batch in iter_snapshot(path, ["sentence"]):
            candidates = pd.Series(normalise_all(batch["sentence"]))
            trained |= set(candidates[candidates.isin(normalised)])
    leaked = np.flatnonzero(normalised.isin(trained))
    return Leak(left=left, remaining=len(leaked), sentences=[sentences[row] for row in leaked[:LEAKED_SHOWN]])


def _measure_secondary(classifier: Classifier, secondary: SnapshotRef, resamples: int) -> Measurement | None:
    """Measure the secondary holdout; None, with a warning, where all its labels are the same: there is no MCC."""
    labels = np.unique(read_snapshot(secondary["path"])["label"])
    if len(labels) < 2:
        log.warning("the secondary holdout has label %d only, expected 0 and 1; it is not reported", *labels)
        return None
    return measure_snapshot(classifier, secondary["path"], resamples)


def _with_champion(
    evidence: Evidence, rows: pd.DataFrame, champion: ChampionBundle, holdout: SnapshotRef, device: str
) -> Evidence:
    measured, theirs = measure_champion(champion, rows, holdout, device, evidence["resamples"])
    ours = evidence["answers"]["variants"][evidence["candidate"]["variant"]]
    comparison = None
    if theirs is not None:
        thresholds = threshold_of(evidence["candidate"]), threshold_of(measured["measurement"] or {})
        comparison = compare(evidence["answers"], ours, theirs, evidence["resamples"], thresholds)
        comparison["sentences"] = _list_differing(rows, ours, theirs, thresholds)
    answers = Answers(**{**evidence["answers"], "champion": theirs})
    return Evidence(
        **{**evidence, "champion_state": "active", "champion": measured, "comparison": comparison, "answers": answers}
    )


def _load_variant(bundle: str, device: str, variant: str) -> Classifier:
    """Load a variant on the device that would serve it: int8 on the CPU even if there is a GPU."""
    on = "cpu" if variant == DEVICE_VARIANT["cpu"] else device
    return Classifier.from_bundle(bundle, on, variant, spin=False)


def _without_sentences(rows: pd.DataFrame) -> HoldoutRows:
    return HoldoutRows(
        label=[int(label) for label in rows["label"]],
        source=[str(source) for source in rows["source"]],
        words=[len(sentence.split()) for sentence in rows["sentence"]],
    )


def _probabilities(classifier: Classifier, rows: pd.DataFrame) -> Probabilities:
    return round_probabilities(classifier.probabilities(rows["sentence"].tolist())[:, 1])


def _measure(classifier: Classifier, rows: pd.DataFrame, probabilities: Probabilities, resamples: int) -> Measurement:
    """Compute a model's figures and list the sentences whose label got the lowest probability."""
    how = classifier.provider, classifier.variant, resamples, classifier.threshold
    result = evaluate(_without_sentences(rows), probabilities, *how)
    acceptable = read_probabilities(probabilities)
    of_label = np.where(rows["label"].to_numpy() == 1, acceptable, 1 - acceptable)
    for row in np.argsort(of_label, kind="stable")[:WORST_SHOWN]:
        probability = float(of_label[row]) if probabilities[row] is not None else None
        result["worst"].append(_show_row(rows, row) | {"probability": probability})
    return result


def _list_differing(
    rows: pd.DataFrame, ours: Probabilities, theirs: Probabilities, thresholds: tuple[float, float]
) -> list[dict[str, Any]]:
    """List sentences with different predictions, largest difference first, with both probabilities of "acceptable"."""
    differing = np.flatnonzero(predict_labels(ours, thresholds[0]) != predict_labels(theirs, thresholds[1]))
    gaps = np.abs(read_probabilities(ours) - read_probabilities(theirs))[differing]
    first = differing[np.argsort(-gaps, kind="stable")][:DIFFERING_SHOWN]
    return [_show_row(rows, row) | {"candidate": ours[row], "champion": theirs[row]} for row in first]


def _show_row(rows: pd.DataFrame, row: int) -> dict[str, Any]:
    return {
        "line": int(rows["line"].iloc[row]),
        "source": str(rows["source"].iloc[row]),
        "label": int(rows["label"].iloc[row]),
        "sentence": str(rows["sentence"].iloc[row]),
    }
