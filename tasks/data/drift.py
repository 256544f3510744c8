"""What a training file looked like, in some ten kilobytes, and how far another one is from it.

The profile travels inside the bundle, so that new data can be compared with what the champion was trained on wherever
the champion is. Each of four figures is a distance between two distributions, 0 where they are equal; beside it stands
the p value of the usual test. A shift counts as drift when the distance is over its limit and chance alone would not
explain it: small files differ by chance, and in large ones any trifle is significant.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.data.normalization import normalise_all
from tasks.data.snapshots import count_rows, iter_snapshot

TOP_K = 2_000  # words that a profile names; the others are counted together
DRIFT_SAMPLE_ROWS = 200_000  # rows, spread over the file, whose words are counted; more hardly move the shares
OTHER_CATEGORY = "\t"  # the key of the words and sources that are not named; none of them holds a tab
MIN_EXPECTED_COUNT = 5  # rows in the smaller file; the chi-squared test counts together what should have fewer

Histogram = dict[str, int]


class DataProfile(TypedDict):
    """Counts of a training snapshot: rows by label, by characters of the sentence, by source, by the words in it."""

    dataset: str
    rows: int
    labels: Histogram
    characters: Histogram
    sources: Histogram
    words: Histogram


class DriftResult(TypedDict):
    """One distance between two profiles, its p value, and whether it is over `limit` and no chance."""

    name: str
    statistic: str
    distance: float
    p: float
    limit: float
    drifted: bool


def profile_snapshot(path: str, digest: str) -> DataProfile:
    """Count what a snapshot holds, piece by piece.

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
            words.update(set(sentence.split()))  # once a row: the test below wants independent draws
        rows += batch.num_rows
    return DataProfile(
        dataset=digest,
        rows=rows,
        labels={str(label): labels[label] for label in sorted(labels)},
        characters={str(length): characters[length] for length in sorted(characters)},
        sources=_top_k(sources),
        words=_top_k(words),
    )


def compare_profiles(new: DataProfile, old: DataProfile, limits: dict[str, Any]) -> list[DriftResult]:
    """Return the four shifts from an old profile to a new one; none where one of them is of no rows.

    Args:
        new: of the data that is looked at.
        old: of the data that the champion was trained on.
        limits: largest distances by name: max_label_shift, max_length_shift, max_source_shift, max_vocabulary_shift;
            drift_level: p values that are not below it are chance.
    """
    if not new["rows"] or not old["rows"]:
        return []
    measured = {
        "label": ("difference of the acceptable share, chi-squared test", *_shares(new, old)),
        "length": ("Kolmogorov-Smirnov distance of characters", *_lengths(new["characters"], old["characters"])),
        "source": (
            "Jensen-Shannon distance of sources, chi-squared test",
            *_categories(new["sources"], old["sources"]),
        ),
        "vocabulary": ("Jensen-Shannon distance of words, chi-squared test", *_categories(new["words"], old["words"])),
    }
    shifts = []
    for name, (statistic, distance, p) in measured.items():
        limit = limits[f"max_{name}_shift"]
        drifted = distance > limit and p < limits["drift_level"]
        shifts.append(DriftResult(name=name, statistic=statistic, distance=distance, p=p, limit=limit, drifted=drifted))
    return shifts


def list_drifted(shifts: Sequence[DriftResult]) -> str:
    """Return what drifted, for people; none where nothing did."""
    return ", ".join(shift["name"] for shift in shifts if shift["drifted"]) or "none"


def _shares(new: DataProfile, old: DataProfile) -> tuple[float, float]:
    table = _align(new["labels"], old["labels"])
    shares = [profile["labels"].get("1", 0) / max(profile["rows"], 1) for profile in (new, old)]
    return abs(shares[0] - shares[1]), _chi_squared(table)


def _lengths(new: Histogram, old: Histogram) -> tuple[float, float]:
    from scipy.stats import ks_2samp

    result = ks_2samp(_expand(new), _expand(old))
    return float(result.statistic), float(result.pvalue)


def _categories(new: Histogram, old: Histogram) -> tuple[float, float]:
    from scipy.spatial.distance import jensenshannon

    table = _align(new, old)
    with np.errstate(invalid="ignore"):  # of nearly equal counts rounding may leave less than 0
        distance = np.nan_to_num(jensenshannon(table[0], table[1], base=2))
    return float(distance), _chi_squared(_merge_rare(table))


def _align(new: Histogram, old: Histogram) -> NDArray[np.float64]:
    """Return the counts of both [2, K] under the same K keys; the last column is what either does not name.

    A name that one profile lacks may hide among its unnamed ones, if it has any, so it counts as unnamed in both.
    """
    partial = [counts for counts in (new, old) if OTHER_CATEGORY in counts]
    names = sorted(
        name for name in (new.keys() | old.keys()) - {OTHER_CATEGORY} if all(name in counts for counts in partial)
    )
    named = np.array([[counts.get(name, 0) for name in names] for counts in (new, old)], np.float64)
    totals = np.array([[sum(counts.values())] for counts in (new, old)])
    return np.hstack([named, totals - named.sum(axis=1, keepdims=True)])


def _merge_rare(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Count rare columns [2, K] and the last, unnamed one together: for them the test would call chance a shift."""
    expected = table.sum(axis=0) * table.sum(axis=1).min() / table.sum()
    rare = expected < MIN_EXPECTED_COUNT
    rare[-1] = True
    return np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])


def _chi_squared(table: NDArray[np.float64]) -> float:
    """Return the p value of the test that both rows [2, K] come from one distribution."""
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
    """Keep the commonest names; ties go by the alphabet, so that a profile depends on the rows alone."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named, rest = ranked[:TOP_K], ranked[TOP_K:]
    others = sum(count for _, count in rest)
    return dict(named) | ({OTHER_CATEGORY: others} if others else {})
