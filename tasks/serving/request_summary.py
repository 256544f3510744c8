"""What the request log says of the champion: volume, drift of what is served, and its MCC, estimated without labels.

Drift and estimate are of the distinct sentences that the champion answered, so that a probe of health, which repeats
one sentence, moves neither.
"""

import dataclasses
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.core.printable import counted
from tasks.core.settings import GateSettings, WatchSettings
from tasks.core.timestamps import utc_now
from tasks.data.drift import DataProfile, DriftResult, Histogram, compare_profiles
from tasks.data.normalization import normalise_all
from tasks.evaluation.evidence import Evidence
from tasks.evaluation.measurement import Probabilities, predict_labels, read_probabilities
from tasks.evaluation.performance_estimate import MIN_ESTIMATE_SENTENCES, MccEstimate, estimate_mcc
from tasks.serving.logged_requests import ACCEPTABLE, with_sentences
from tasks.serving.request_log import REDACTED, REDACTIONS
from tasks.serving.summary_file import SUMMARY_SCHEMA, RequestSummary

UNSURE_MARGIN = 0.1  # from the decision threshold


@dataclasses.dataclass(frozen=True)
class ChampionReference:
    """What the served sentences are compared with."""

    version: str
    threshold: float
    profile: DataProfile | None
    """of its training data"""
    evidence: Evidence | None
    """of its verdict"""


def summarise_requests(
    table: pa.Table, champion: ChampionReference | None, gate: GateSettings, watch: WatchSettings
) -> RequestSummary:
    """Summarise logged answers.

    Args:
        table: of `read_requests`.
        champion: None where there is none, or nothing is known of it.
        gate: limits of drift.
        watch: further limits, and the period of the table.
    """
    served = distinct_answers(table, champion.version) if champion else table.slice(0, 0)
    evidence = champion.evidence if champion else None
    estimate, reason = _estimate(served, evidence)
    near = np.abs(acceptable_of(served) - champion.threshold) < UNSURE_MARGIN if champion else np.zeros(0)
    return RequestSummary(
        schema_version=SUMMARY_SCHEMA,
        time=utc_now(),
        hours=watch.request_hours,
        answers=table.num_rows,
        versions=dict(Counter(table["version"].to_pylist()).most_common()),
        latency_ms=[float(value) * 1_000 for value in np.quantile(table["seconds"], [0.5, 0.95])] if len(table) else [],
        truncated=float(np.mean(table["truncated"])) if len(table) else 0.0,
        version=champion.version if champion else None,
        sentences=len(served),
        unsure=float(near.mean()) if len(near) else 0.0,
        drift=served_drift(served, champion, gate, watch) if champion and len(served) else [],
        reference=champion.profile["dataset"] if champion and champion.profile else None,
        estimate=estimate,
        no_estimate=reason,
        holdout=evidence["candidate"]["interval"] if evidence else None,
    )


def distinct_answers(table: pa.Table, version: str) -> pa.Table:
    """Return the last answer of a version to each sentence; all answers where sentences are not logged."""
    rows = table.filter(pc.equal(table["version"], version))
    index = {sentence if sentence is not None else number: number for number, sentence in enumerate(_texts(rows))}
    return rows.take(pa.array(sorted(index.values()), pa.int64()))


def acceptable_of(table: pa.Table) -> NDArray[np.float64]:
    """Return the probability of "acceptable" [N]; the log holds that of the label."""
    of_label = table["probability"].to_numpy()
    return np.where(_labels(table) == 1, of_label, 1 - of_label)


def served_drift(
    served: pa.Table, champion: ChampionReference, gate: GateSettings, watch: WatchSettings
) -> list[DriftResult]:
    """Return the distances of served sentences: length and words from the champion's training data, labels and
    probabilities from those that it gave on its holdout, as a model does not give labels as often as people do.
    """
    results: list[DriftResult] = []
    answers = judged_probabilities(champion.evidence) if champion.evidence else []
    if champion.profile:
        labels = _histogram(predict_labels(answers, champion.threshold))
        expected = DataProfile(**{**champion.profile, "labels": labels, "sources": {"": champion.profile["rows"]}})
        profile = profile_answers(served)
        known = {"length": True, "label": bool(labels), "vocabulary": bool(profile["words"]), "source": False}
        results += [each for each in compare_profiles(profile, expected, gate) if known[each["name"]]]
    if answers:
        results.append(_probability_drift(served, read_probabilities(answers), gate, watch))
    return results


def profile_answers(served: pa.Table) -> DataProfile:
    """Return the profile of served sentences, without sources; without words where only hashes of them are logged."""
    words: Counter[str] = Counter()
    for sentence in normalise_all(with_sentences(served)["sentence"].combine_chunks()):
        words.update(set(sentence.split()))
    return DataProfile(
        dataset="",
        rows=served.num_rows,
        labels=_histogram(_labels(served)),
        characters=_histogram(served["characters"].to_numpy()),
        sources={"": served.num_rows},  # they have none
        words=dict(words),
    )


def judged_probabilities(evidence: Evidence) -> Probabilities:
    """Return the probability of "acceptable" that the judged variant gave each row of the holdout."""
    return evidence["answers"]["variants"][evidence["candidate"]["variant"]]


def _probability_drift(
    served: pa.Table, expected: NDArray[np.float64], gate: GateSettings, watch: WatchSettings
) -> DriftResult:
    from scipy.stats import ks_2samp

    result = ks_2samp(acceptable_of(served), expected)
    distance, p, limit = float(result.statistic), float(result.pvalue), watch.max_probability_shift
    return DriftResult(
        name="probability",
        statistic="Kolmogorov-Smirnov distance of probabilities",
        distance=distance,
        p=p,
        limit=limit,
        setting="watch.max_probability_shift",
        drifted=distance > limit and p < gate.drift_level,
    )


def _estimate(served: pa.Table, evidence: Evidence | None) -> tuple[MccEstimate | None, str]:
    """Return the estimated MCC, or None and why there is none."""
    if evidence is None:
        return None, "the champion's answers on its holdout are not recorded here"
    if len(served) < MIN_ESTIMATE_SENTENCES:
        marks = (*REDACTIONS, REDACTED)
        redacted = any(mark in text for text in _texts(served) if text for mark in marks)
        note = "; those that differ only in what the log redacts, such as numbers, count once" if redacted else ""
        return None, f"{counted(len(served), 'distinct sentence')}, at least {MIN_ESTIMATE_SENTENCES} are needed{note}"
    recorded, labels = read_probabilities(judged_probabilities(evidence)), evidence["answers"]["label"]
    return estimate_mcc(acceptable_of(served), _labels(served), recorded, labels), ""


def _texts(table: pa.Table) -> list[str | None]:
    texts: list[str | None] = table["sentence"].to_pylist()
    return texts


def _labels(table: pa.Table) -> NDArray[np.int64]:
    return pc.equal(table["label"], ACCEPTABLE).to_numpy().astype(np.int64)


def _histogram(values: NDArray[np.int64]) -> Histogram:
    return {str(value): count for value, count in sorted(Counter(values.tolist()).items())}
