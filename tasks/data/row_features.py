"""Per-row features of a snapshot, which the gate checks instead of the sentences.

A table of ten million sentences takes gigabytes, and Great Expectations copies what it filters; the features take a
tenth of that. Sentences are read batch by batch.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, TypedDict

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tasks.data.normalization import sentence_keys
from tasks.data.snapshots import SNAPSHOT_SCHEMA, iter_snapshot

CONTROL_CHARACTERS = r"[\x00-\x1f\x7f]"
WORD_PATTERN = r"[^\s\x0b\x1c-\x1f\x85\pZ]+"  # splits as str.split() does; Arrow's \s covers ASCII only
MAX_WORKERS = 2  # Arrow's functions release the GIL

IssueKind = Literal["control", "duplicate", "conflict", "leak"]
ISSUE_TEXTS: dict[IssueKind, str] = {
    "control": "rows with control characters",
    "duplicate": "rows that repeat a sentence",
    "conflict": "sentences with both labels",
    "leak": "rows also in the training data",
}


class QualityIssue(TypedDict):
    """How often something unusual occurs; `normalised` ignores case, punctuation and spacing, where that matters."""

    kind: IssueKind
    exact: int
    normalised: int | None


def compute_row_features(path: str) -> pd.DataFrame:
    """Return the features of a snapshot's N rows.

    Columns: file, line, source, label, characters and words (missing where the sentence is), control (whether the
    sentence holds control characters), exact_key and normalised_key (64-bit hashes of the sentence as it is and
    normalised).

    Raises:
        VerdictError: if the snapshot cannot be read.
    """
    batches = list(_compute_batches(path))
    batches = batches or [_compute(pa.RecordBatch.from_pylist([], schema=SNAPSHOT_SCHEMA))]  # a snapshot without rows
    return pa.Table.from_batches(batches).unify_dictionaries().to_pandas()


def flag_duplicates(rows: pd.DataFrame) -> None:
    """Add columns: duplicate (an earlier row has the same normalised sentence), conflicting (it has both labels)."""
    rows["duplicate"] = rows["normalised_key"].duplicated()
    rows["conflicting"] = _conflicting(rows, "normalised_key")


def flag_leakage(rows: pd.DataFrame, train: pd.DataFrame) -> None:
    """Add columns to a holdout's rows: leaked (its sentence is a training one), unseen_source (no training row's)."""
    rows["leaked"] = _is_known(rows["normalised_key"], train["normalised_key"])
    rows["unseen_source"] = ~rows["source"].isin(set(train["source"].unique())).to_numpy()


def count_quality_issues(rows: pd.DataFrame, train: pd.DataFrame | None = None) -> list[QualityIssue]:
    """Count what is unusual without being a format error; splitting the data deals with it.

    Args:
        rows: features of one role.
        train: features of the training rows, where `rows` is a holdout.
    """
    keys = ("exact_key", "normalised_key")
    exact, normalised = (int(rows[key].duplicated().sum()) for key in keys)
    exact_conflicts, conflicts = (int(rows.loc[_conflicting(rows, key), key].nunique()) for key in keys)
    issues = [
        QualityIssue(kind="control", exact=int(rows["control"].sum()), normalised=None),
        QualityIssue(kind="duplicate", exact=exact, normalised=normalised),
        QualityIssue(kind="conflict", exact=exact_conflicts, normalised=conflicts),
    ]
    if train is not None:
        exact, normalised = (int(_is_known(rows[key], train[key]).sum()) for key in keys)
        issues.append(QualityIssue(kind="leak", exact=exact, normalised=normalised))
    return issues


def _conflicting(rows: pd.DataFrame, key: str) -> pd.Series:
    flags = pd.Series(False, index=rows.index)
    repeats = rows.loc[rows[key].duplicated(keep=False), [key, "label"]]  # few rows: grouping all would cost far more
    labels = repeats.groupby(key)["label"].transform("nunique")
    flags[labels.index[labels > 1]] = True
    return flags


def _is_known(few: pd.Series, many: pd.Series) -> pd.Series:
    """Return which of few keys are among many; only the few are hashed into a table."""
    return few.isin(many[many.isin(few)])


def _compute_batches(path: str) -> Iterator[pa.RecordBatch]:
    """Compute batches in parallel; ThreadPoolExecutor.map would read all of them before the first is done."""
    waiting: deque[Future[pa.RecordBatch]] = deque()
    with ThreadPoolExecutor(MAX_WORKERS) as pool:
        for batch in iter_snapshot(path, ["file", "line", "source", "label", "sentence"]):
            if len(waiting) > MAX_WORKERS:
                yield waiting.popleft().result()
            waiting.append(pool.submit(_compute, batch))
        yield from (future.result() for future in waiting)


def _compute(batch: pa.RecordBatch) -> pa.RecordBatch:
    sentences = batch["sentence"]
    present = pc.fill_null(sentences, "")
    features = {
        "file": batch["file"],
        "line": batch["line"],
        "source": batch["source"].dictionary_encode(),
        "label": batch["label"],
        "characters": pc.utf8_length(sentences),
        "words": pc.count_substring_regex(sentences, WORD_PATTERN),
        "control": pc.match_substring_regex(present, CONTROL_CHARACTERS),
        "exact_key": pa.array(pd.util.hash_array(present.to_numpy(zero_copy_only=False), categorize=False)),
        "normalised_key": pa.array(sentence_keys(present)),
    }
    return pa.RecordBatch.from_pydict(features)
