"""Measures each row of a snapshot once, so that the gate looks at a slim table and not at all sentences again.

A table of ten million sentences takes gigabytes and Great Expectations copies what it filters; its measures take a
tenth of that. Sentences are read piece by piece.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tasks.data.normalization import sentence_keys
from tasks.data.snapshots import SNAPSHOT_SCHEMA, iter_snapshot

CONTROL_CHARACTERS = r"[\x00-\x1f\x7f]"
WORD_PATTERN = r"[^\s\x0b\x1c-\x1f\x85\pZ]+"  # what str.split() finds; Arrow's \s is ASCII alone
MAX_WORKERS = 2  # Arrow's functions run outside of Python's lock


def compute_row_features(path: str) -> pd.DataFrame:
    """Return the measures of a snapshot's N rows.

    Columns: file, line, source, label, characters and words (missing where the sentence is), control (whether the
    sentence holds control characters), text and folded (64-bit keys of the sentence, as it stands and folded).

    Raises:
        VerdictError: if the snapshot cannot be read.
    """
    pieces = list(_compute_chunks(path))
    pieces = pieces or [_compute(pa.RecordBatch.from_pylist([], schema=SNAPSHOT_SCHEMA))]  # a snapshot without rows
    return pa.Table.from_batches(pieces).unify_dictionaries().to_pandas()


def flag_duplicates(rows: pd.DataFrame) -> None:
    """Add columns: repeated (an earlier row has the same folded sentence), conflicting (it has both labels)."""
    rows["repeated"] = rows["folded"].duplicated()
    rows["conflicting"] = _conflicting(rows, "folded")


def flag_leakage(rows: pd.DataFrame, train: pd.DataFrame) -> None:
    """Add columns to a holdout's rows: leaked (the sentence trains too), unseen_source (its source does not train)."""
    rows["leaked"] = _known(rows["folded"], train["folded"])
    rows["unseen_source"] = ~rows["source"].isin(set(train["source"].unique())).to_numpy()


def count_quality_issues(rows: pd.DataFrame, train: pd.DataFrame | None = None) -> dict[str, int]:
    """Count what is unusual and no fault of format; the split treats it.

    Args:
        rows: measures of one role.
        train: measures of the training rows, where `rows` is a holdout.
    """
    counts = {"rows with control characters": int(rows["control"].sum())}
    for key, how in (("text", "exactly"), ("folded", "folded")):
        conflicts = rows.loc[_conflicting(rows, key), key]
        counts[f"rows that repeat a sentence, {how}"] = int(rows[key].duplicated().sum())
        counts[f"sentences with both labels, {how}"] = int(conflicts.nunique())
        if train is not None:
            counts[f"rows that train too, {how}"] = int(_known(rows[key], train[key]).sum())
    return counts


def _conflicting(rows: pd.DataFrame, key: str) -> pd.Series:
    flags = pd.Series(False, index=rows.index)
    again = rows.loc[rows[key].duplicated(keep=False), [key, "label"]]  # few rows: grouping all would cost far more
    labels = again.groupby(key)["label"].transform("nunique")
    flags[labels.index[labels > 1]] = True
    return flags


def _known(few: pd.Series, many: pd.Series) -> pd.Series:
    """Tell which of few keys are among many; only the few go into a hash table, the many are looked up in it."""
    return few.isin(many[many.isin(few)])


def _compute_chunks(path: str) -> Iterator[pa.RecordBatch]:
    """Measure pieces side by side; a pool's own map would read all of them before the first is done."""
    waiting: deque[Future[pa.RecordBatch]] = deque()
    with ThreadPoolExecutor(MAX_WORKERS) as pool:
        for piece in iter_snapshot(path, ["file", "line", "source", "label", "sentence"]):
            if len(waiting) > MAX_WORKERS:
                yield waiting.popleft().result()
            waiting.append(pool.submit(_compute, piece))
        yield from (future.result() for future in waiting)


def _compute(batch: pa.RecordBatch) -> pa.RecordBatch:
    sentences = batch["sentence"]
    present = pc.fill_null(sentences, "")
    measured = {
        "file": batch["file"],
        "line": batch["line"],
        "source": batch["source"].dictionary_encode(),
        "label": batch["label"],
        "characters": pc.utf8_length(sentences),
        "words": pc.count_substring_regex(sentences, WORD_PATTERN),
        "control": pc.match_substring_regex(present, CONTROL_CHARACTERS),
        "text": pa.array(pd.util.hash_array(present.to_numpy(zero_copy_only=False), categorize=False)),
        "folded": pa.array(sentence_keys(present)),
    }
    return pa.RecordBatch.from_pydict(measured)
