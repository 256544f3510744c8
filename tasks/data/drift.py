"""Profiles of training data (about ten kilobytes) and the drift from one profile to another.

The profile is part of the bundle, so that new data can be compared with the champion's training data wherever the
champion is. Each of four figures is a distance between two distributions, 0 where they are equal, with the p value of
the usual test. It counts as drift when the distance exceeds its limit and the p value is below the level: small files
differ by chance, and in large ones any small difference is significant.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.data.normalization import normalise_all
from tasks.data.snapshots import count_rows, iter_snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tasks.core.settings import GateSettings

TOP_K = 2_000  # words that a profile lists; the others are counted together
DRIFT_SAMPLE_ROWS = 200_000  # rows, spread over the file, whose words are counted; more hardly change the shares
OTHER_CATEGORY = "\t"  # key of the words and sources that are not listed; none of them holds a tab
MIN_EXPECTED_COUNT = 5  # the chi-squared test merges categories with fewer expected rows in the smaller file

Histogram = dict[str, int]


class DataProfile(TypedDict):
    """Number of rows of a training snapshot by label, by characters of the sentence, by source and by word in it.

    `holdouts` are the digests of the snapshots whose sentences training left out.
    """

    dataset: str
    holdouts: NotRequired[list[str]]  # not in profiles of earlier releases
    rows: int
    labels: Histogram
    characters: Histogram
    sources: Histogram
    words: Histogram


class DriftResult(TypedDict):
    """One distance between two profiles; `drifted` if it exceeds the limit and is significant."""

    name: str
    statistic: str
    distance: float
    p: float
    limit: float
    setting: str
    drifted: bool


def profile_snapshot(path: str, digest: str, holdouts: Sequence[str] = ()) -> DataProfile:
    """Count the rows of a snapshot, batch by batch.

    Raises:
        VerdictError: if the snapshot cannot be read.
    """
    labels: Counter[int] = Counter()
    characters: Counter[int] = Counter()
    sources: Counter[str] = Counter()
    words: Counter[str] = Counter()
    rows = 0
    step = max(1, count_rows(path) // DRIFT_SAMPLE_ROWS)
    for batch in iter_snapshot(path, ["source", "label", "sentence"]):
        _count(labels, batch["label"])
        _count(characters, pc.utf8_length(batch["sentence"]))
        _count(sources, batch["source"])
        for sentence in normalise_all(batch["sentence"][-rows % step :: step]):
            words.update(set(sentence.split()))  # once a row: the chi-squared test assumes independent draws
        rows += batch.num_rows
    return DataProfile(
        dataset=digest,
        holdouts=list(holdouts),
        rows=rows,
        labels={str(label): labels[label] for label in sorted(labels)},
        characters={str(length): characters[length] for length in sorted(characters)},
        sources=_top_k(sources),
        words=_top_k(words),
    )


def compare_profiles(new: DataProfile, old: DataProfile, limits: GateSettings) -> list[DriftResult]:
    """Return the four distances between two profiles; none if one of them has no rows.

    Args:
        new: profile of the data under test.
        old: profile of the champion's training data.
        limits: largest distances (max_label_shift and others), and drift_level, the significance level.
    """
    if not new["rows"] or not old["rows"]:
        return []
    lengths = _lengths(new["characters"], old["characters"])
    sources, words = _categories(new["sources"], old["sources"]), _categories(new["words"], old["words"])
    measured = [
        ("label", "difference of the acceptable share, chi-squared test", _labels(new, old), "max_label_shift"),
        ("length", "Kolmogorov-Smirnov distance of characters", lengths, "max_length_shift"),
        ("source", "Jensen-Shannon distance of sources, chi-squared test", sources, "max_source_shift"),
        ("vocabulary", "Jensen-Shannon distance of words, chi-squared test", words, "max_vocabulary_shift"),
    ]
    results = []
    for name, statistic, (distance, p), setting in measured:
        limit = float(getattr(limits, setting))
        results.append(
            DriftResult(
                name=name,
                statistic=statistic,
                distance=distance,
                p=p,
                limit=limit,
                setting=f"gate.{setting}",
                drifted=distance > limit and p < limits.drift_level,
            )
        )
    return results


def drifted_names(shifts: Sequence[DriftResult]) -> list[str]:
    """Return the names of what drifted."""
    return [shift["name"] for shift in shifts if shift["drifted"]]


def describe_drifted(shifts: Sequence[DriftResult]) -> str:
    """Return the names of what drifted as text."""
    return ", ".join(drifted_names(shifts)) or "none"


def _labels(new: DataProfile, old: DataProfile) -> tuple[float, float]:
    table = _align(new["labels"], old["labels"])
    shares = [each["labels"].get("1", 0) / max(sum(each["labels"].values()), 1) for each in (new, old)]
    return abs(shares[0] - shares[1]), _chi_squared(table)


def _lengths(new: Histogram, old: Histogram) -> tuple[float, float]:
    from scipy.stats import ks_2samp

    result = ks_2samp(_expand(new), _expand(old))
    return float(result.statistic), float(result.pvalue)


def _categories(new: Histogram, old: Histogram) -> tuple[float, float]:
    from scipy.spatial.distance import jensenshannon

    table = _align(new, old)
    with np.errstate(invalid="ignore"):  # for nearly equal counts rounding may give the root of a negative number
        distance = np.nan_to_num(jensenshannon(table[0], table[1], base=2))
    return float(distance), _chi_squared(_merge_rare(table))


def _align(new: Histogram, old: Histogram) -> NDArray[np.float64]:
    """Return the counts of both [2, K] under the same K keys; the last column counts what either does not list.

    A name that one of them lists and the other may have among its unlisted ones gets the count there that brings both
    closest: no more than the rarest listed name has, and all such names together no more than are unlisted. So the
    distance is about the smallest that the whole profiles can have.
    """
    names = sorted((new.keys() | old.keys()) - {OTHER_CATEGORY})
    counts = np.array([[profile.get(name, np.nan) for name in names] for profile in (new, old)], np.float64)
    totals = np.array([sum(new.values()), sum(old.values())], np.float64)
    is_missing = np.isnan(counts)
    for row, profile in enumerate((new, old)):
        missing = is_missing[row]
        alike = counts[1 - row, missing] * totals[row] / totals[1 - row]
        counts[row, missing] = _share_out(profile.get(OTHER_CATEGORY, 0), alike, np.nanmin(counts[row], initial=np.inf))
    alike = is_missing.any(axis=0) & np.isclose(counts[0] * totals[1], counts[1] * totals[0])
    named = counts[:, ~alike]
    return np.column_stack([named, np.maximum(totals - named.sum(axis=1), 0.0)])


def _share_out(unlisted: int, wanted: NDArray[np.float64], most: float) -> NDArray[np.float64]:
    """Divide a count among names: at most what each wants [K] and `most`; where it is too little, in proportion."""
    shares = np.minimum(wanted, most)
    return shares * min(1.0, unlisted / max(float(shares.sum()), 1.0))


def _merge_rare(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Merge columns with a low expected count, and the last one: the chi-squared test is not valid for them."""
    expected = table.sum(axis=0) * table.sum(axis=1).min() / table.sum()
    rare = expected < MIN_EXPECTED_COUNT
    rare[-1] = True
    return np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])


def _chi_squared(table: NDArray[np.float64]) -> float:
    """Return the p value of the null hypothesis that both rows [2, K] come from one distribution."""
    from scipy.stats import chi2_contingency

    table = table[:, table.sum(axis=0) > 0]
    return float(chi2_contingency(table).pvalue) if table.shape[1] > 1 and table.sum(axis=1).all() else 1.0


def _expand(counts: Histogram) -> NDArray[np.int64]:
    values = np.array([int(key) for key in counts], np.int64)
    return np.repeat(values, list(counts.values()))


def _count(total: Counter[Any], values: pa.Array) -> None:
    counted = pc.value_counts(values)
    total.update(dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)))


def _top_k(counts: Counter[str]) -> Histogram:
    """Keep the most frequent names, ties in alphabetical order, so that row order does not matter."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named, rest = ranked[:TOP_K], ranked[TOP_K:]
    others = sum(count for _, count in rest)
    return dict(named) | ({OTHER_CATEGORY: others} if others else {})
