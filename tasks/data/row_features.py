"""Per-row features of a snapshot, which the gate checks instead of the sentences.

A table of ten million sentences takes gigabytes, and Great Expectations copies what it filters; the features take a
tenth of that. Sentences are read batch by batch.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tasks.data.encoder_view import EncodedSentences
from tasks.data.normalization import sentence_keys
from tasks.data.snapshots import SNAPSHOT_SCHEMA, iter_snapshot

CONTROL_CHARACTERS = r"[\x00-\x1f\x7f]"
WORD_PATTERN = r"[^\s\x0b\x1c-\x1f\x85\pZ]+"  # splits as str.split() does; Arrow's \s covers ASCII only
MAX_WORKERS = 2  # Arrow's functions release the GIL

IssueKind = Literal["control", "truncated", "duplicate", "conflict", "leak"]
ISSUE_TEXTS: dict[IssueKind, str] = {
    "control": "rows with control characters",
    "truncated": "sentences that the encoder truncates",
    "duplicate": "rows that repeat a sentence",
    "conflict": "sentences with both labels",
    "leak": "rows also in the training data",
}


class QualityIssue(TypedDict):
    """How often something unusual occurs, and where it is about equal sentences, how often by weaker comparisons.

    Args:
        kind: what is counted.
        exact: sentences that are the same text, or all rows that it is about.
        normalised: likewise without case, punctuation and spacing.
        tokens: likewise as the encoder reads them: the same token ids after truncation. None where they are not known.
        read: rows that were looked at, where these are a sample.
    """

    kind: IssueKind
    exact: int
    normalised: int | None
    tokens: int | None
    read: int | None


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


def flag_truncated(rows: pd.DataFrame, encoded: EncodedSentences) -> None:
    """Add columns: truncated (1 or 0, NaN where a row was not tokenised) and, where all were, token_key."""
    flags = np.full(len(rows), np.nan, np.float32)
    flags[:: encoded.step] = encoded.truncated
    rows["truncated"] = flags
    if encoded.step == 1:
        rows["token_key"] = encoded.keys


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
    issues = [_count_flag("control", rows["control"])]
    if "truncated" in rows:
        issues.append(_count_flag("truncated", rows["truncated"]))
    issues.append(_count_equal("duplicate", rows, lambda key: rows[key].duplicated().sum()))
    issues.append(_count_equal("conflict", rows, lambda key: rows.loc[_conflicting(rows, key), key].nunique()))
    return issues if train is None else [*issues, count_leaks(rows, train)]


def count_leaks(rows: pd.DataFrame, train: pd.DataFrame) -> QualityIssue:
    """Count the rows of one role whose sentence is also in another."""
    common = rows[[name for name in rows if name in train]]
    return _count_equal("leak", common, lambda key: int(_is_known(rows[key], train[key]).sum()))


def describe_issues(issues: list[QualityIssue]) -> str:
    """Return a line such as "23 rows that repeat a sentence (normalised 40, as tokens 38)"; empty without any issue."""
    return "; ".join(
        f"{issue['exact']} {ISSUE_TEXTS[issue['kind']]}{_in_brackets(issue)}"
        for issue in issues
        if issue["exact"] or issue["normalised"] or issue["tokens"]
    )


def _in_brackets(issue: QualityIssue) -> str:
    counts = {"normalised": issue["normalised"], "as tokens": issue["tokens"], "of a sample of": issue["read"]}
    shown = ", ".join(f"{name} {count}" for name, count in counts.items() if count is not None)
    return f" ({shown})" if shown else ""


def _count_flag(kind: IssueKind, flags: pd.Series) -> QualityIssue:
    read = int(flags.count())
    sampled = read if read < len(flags) else None
    return QualityIssue(kind=kind, exact=int(flags.sum()), normalised=None, tokens=None, read=sampled)


def _count_equal(kind: IssueKind, rows: pd.DataFrame, count: Callable[[str], int]) -> QualityIssue:
    """Count by each key that the rows have."""
    tokens = int(count("token_key")) if "token_key" in rows else None
    exact, normalised = int(count("exact_key")), int(count("normalised_key"))
    return QualityIssue(kind=kind, exact=exact, normalised=normalised, tokens=tokens, read=None)


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
