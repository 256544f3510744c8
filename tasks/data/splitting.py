"""Splits rows into training and validation so that no sentence is in two of training, validation and holdout.

Sentences are compared normalised (without case, punctuation and spacing): CoLA repeats some with a different full stop.
A hash of the normalised sentence decides: the split does not depend on row order, and rows added later move no old row
from one side to the other.
"""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from tasks.core.errors import DataRejected
from tasks.core.files import atomic_write
from tasks.data.normalization import normalise_all
from tasks.data.snapshots import iter_snapshot, read_snapshot

PLANNED_ROWS = 20_000  # of a larger file no more are planned than show that both sides have both labels

log = logging.getLogger(__name__)


class Split(TypedDict):
    """How many rows of the training file went where; every row is counted once.

    Args:
        train: rows to train on.
        validation: rows that select the best epoch.
        in_holdout: dropped, because the sentence is in a holdout.
        conflicting: dropped, because the sentence has both labels.
        repeated: dropped, because an earlier row has the sentence.
    """

    train: int
    validation: int
    in_holdout: int
    conflicting: int
    repeated: int


class SplitPlan(NamedTuple):
    """Where the first rows of a training file will go: all of them, unless both sides soon have both labels."""

    validates: NDArray[np.bool_]
    """[N], whether a row goes to validation if it is not dropped."""
    rows: NDArray[np.int64]
    """Rows by side (training, validation) and label, [2, 2]."""


def split_rows(
    rows: pd.DataFrame, holdout_sentences: list[str], validation_share: float, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, Split]:
    """Divide training rows into (training, validation) and drop rows that would leak or contradict each other.

    A row is dropped for the first reason that applies: its sentence is in a holdout; it has both labels in the file;
    an earlier row has it.

    Args:
        rows: columns sentence and label at least.
        holdout_sentences: sentences of every holdout.
        validation_share: expected share of sentences that go to validation, between 0 and 1.
        seed: key of the hash that chooses.
    """
    normalised = pd.Series(_normalise(rows["sentence"]), index=rows.index)
    in_holdout = normalised.isin(set(_normalise(holdout_sentences)))
    conflicting = ~in_holdout & (rows.groupby(normalised)["label"].transform("nunique") > 1)
    repeated = ~in_holdout & ~conflicting & normalised.duplicated()
    usable = ~(in_holdout | conflicting | repeated)
    validates = _validates(normalised, validation_share, seed)
    train, validation = rows[usable & ~validates], rows[usable & validates]
    counts = Split(
        train=len(train),
        validation=len(validation),
        in_holdout=int(in_holdout.sum()),
        conflicting=int(conflicting.sum()),
        repeated=int(repeated.sum()),
    )
    return train.reset_index(drop=True), validation.reset_index(drop=True), counts


def plan_split(path: str, rows: pd.DataFrame, validation_share: float, seed: int) -> SplitPlan:
    """Find out where `split_rows` will put the rows of a training snapshot.

    Args:
        path: the snapshot.
        rows: its label and whether it is dropped, of each row: columns label and dropped.
        validation_share: expected share of sentences that go to validation.
        seed: key of the hash that chooses.

    Raises:
        VerdictError: if the snapshot cannot be read.
    """
    cells = np.zeros(4, np.int64)
    sides = [np.zeros(0, np.bool_)]
    seen = 0
    for batch in iter_snapshot(path, ["sentence"], PLANNED_ROWS):
        sides.append(_validates(normalise_all(batch["sentence"]), validation_share, seed))
        here = rows.iloc[seen : seen + batch.num_rows]
        kept = ~here["dropped"].to_numpy()
        cells += np.bincount((2 * sides[-1] + here["label"].to_numpy())[kept], minlength=4)
        seen += batch.num_rows
        if cells.all():
            break
    return SplitPlan(np.concatenate(sides), cells.reshape(2, 2))


def split_snapshot(
    train: str, holdouts: list[str], folder: str, validation_share: float, seed: int
) -> tuple[str, str, Split]:
    """Split a training snapshot and write both sides to `folder`; return their paths and the counts.

    Args:
        train: snapshot of the training file.
        holdouts: snapshots whose sentences may not be trained on.
        folder: receives train.parquet and validation.parquet.
        validation_share: expected share of sentences that go to validation.
        seed: key of the hash that chooses.

    Raises:
        DataRejected: if one side is empty.
    """
    sentences = [sentence for path in holdouts for sentence in read_snapshot(path)["sentence"]]
    *sides, counts = split_rows(read_snapshot(train), sentences, validation_share, seed)
    paths = []
    for name, rows in zip(("train", "validation"), sides, strict=True):
        if rows.empty:
            raise DataRejected(f"no {name} row is left after the split ({counts}); expected more rows in {train}")
        with atomic_write(Path(folder) / f"{name}.parquet") as temporary:
            rows.to_parquet(temporary)
        paths.append(str(Path(folder) / f"{name}.parquet"))
    return paths[0], paths[1], counts


def drop_labelled(text: str, known: list[str], folder: str) -> tuple[str, int]:
    """Write the sentences of a text that are in no labelled snapshot, each once, to `folder`/text.parquet.

    Args:
        text: snapshot of sentences without labels.
        known: snapshots of holdouts, validation and training rows. A holdout sentence in the text would leak, since the
            corruption stage takes every sentence of the text for acceptable.
        folder: receives text.parquet.

    Returns:
        The path, and how many rows were dropped.
    """
    rows = read_snapshot(text)
    normalised = pd.Series(_normalise(rows["sentence"]), index=rows.index)
    labelled = {sentence for path in known for sentence in _normalise(read_snapshot(path)["sentence"])}
    kept = rows[~normalised.isin(labelled) & ~normalised.duplicated()].reset_index(drop=True)
    with atomic_write(Path(folder) / "text.parquet") as temporary:
        kept.to_parquet(temporary)
    dropped = len(rows) - len(kept)
    log.info("text: %d sentences, %d dropped that have a label or are repeated", len(kept), dropped)
    return str(Path(folder) / "text.parquet"), dropped


def hash_fraction(text: str, key: str) -> float:
    """Hash a text to a number that is uniform in [0, 1) and depends on text and key only."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=key.encode()).digest()
    return int.from_bytes(digest, "big") / 2**64


def _validates(normalised: Iterable[str], validation_share: float, seed: int) -> NDArray[np.bool_]:
    """Return which of [N] normalised sentences go to validation."""
    return np.array([hash_fraction(text, str(seed)) < validation_share for text in normalised], np.bool_)


def _normalise(sentences: Iterable[str]) -> NDArray[np.object_]:
    return normalise_all(pa.array(sentences, pa.string()))
