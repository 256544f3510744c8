"""Splits rows into training, validation and holdout so that no sentence stands on two sides.

Sentences are compared folded (case, punctuation and spacing away): CoLA repeats some with a different full stop.
Validation is chosen by a hash of the folded sentence: the choice does not depend on row order, and adding rows later
moves no old row from one side to the other.
"""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from tasks.core.errors import DataRejected
from tasks.core.files import atomic_write
from tasks.data.normalization import normalise_all
from tasks.data.snapshots import read_snapshot

log = logging.getLogger(__name__)


class Split(TypedDict):
    """How the training file was divided, in rows; every row is counted once."""

    train: int
    validation: int
    in_holdout: int
    conflicting: int
    repeated: int


def split_rows(
    rows: pd.DataFrame, holdout_sentences: list[str], validation_share: float, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, Split]:
    """Divide training rows into (training, validation) and leave out what would leak or contradict itself.

    Rows leave for the first of these reasons that applies: the sentence stands in a holdout; it stands in the file with
    both labels; it stands in the file already.

    Args:
        rows: columns sentence and label at least.
        holdout_sentences: sentences of every holdout.
        validation_share: expected share of sentences that go to validation, between 0 and 1.
        seed: another seed, another choice.
    """
    folded = pd.Series(_assign(rows["sentence"]), index=rows.index)
    in_holdout = folded.isin(set(_assign(holdout_sentences)))
    conflicting = ~in_holdout & (rows.groupby(folded)["label"].transform("nunique") > 1)
    repeated = ~in_holdout & ~conflicting & folded.duplicated()
    usable = ~(in_holdout | conflicting | repeated)
    chosen = folded.map(lambda text: hash_fraction(text, str(seed)) < validation_share).astype(bool)
    train, validation = rows[usable & ~chosen], rows[usable & chosen]
    counts = Split(
        train=len(train),
        validation=len(validation),
        in_holdout=int(in_holdout.sum()),
        conflicting=int(conflicting.sum()),
        repeated=int(repeated.sum()),
    )
    return train.reset_index(drop=True), validation.reset_index(drop=True), counts


def split_snapshot(
    train: str, holdouts: list[str], folder: str, validation_share: float, seed: int
) -> tuple[str, str, Split]:
    """Split a training snapshot and write both sides to `folder`; return their paths and the counts.

    Args:
        train: snapshot of the training file.
        holdouts: snapshots whose sentences may not be trained on.
        folder: receives train.parquet and validation.parquet.
        validation_share: expected share of sentences that go to validation.
        seed: of the choice.

    Raises:
        DataRefused: if one side is empty.
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
    """Write the sentences of a text that have no label yet, each once, to `folder`/text.parquet.

    Args:
        text: snapshot of sentences without labels.
        known: snapshots of holdouts, validation and training rows: to have seen a sentence that judges is to know its
            label, and what trains has one of its own.
        folder: receives text.parquet.

    Returns:
        The path, and how many sentences were left out.
    """
    rows = read_snapshot(text)
    folded = pd.Series(_assign(rows["sentence"]), index=rows.index)
    labelled = {sentence for path in known for sentence in _assign(read_snapshot(path)["sentence"])}
    spare = rows[~folded.isin(labelled) & ~folded.duplicated()].reset_index(drop=True)
    with atomic_write(Path(folder) / "text.parquet") as temporary:
        spare.to_parquet(temporary)
    left = len(rows) - len(spare)
    log.info("text: %d sentences, %d left out that have a label or stand there twice", len(spare), left)
    return str(Path(folder) / "text.parquet"), left


def hash_fraction(text: str, key: str) -> float:
    """Map a text to a number in [0, 1) that looks uniform and depends on nothing but text and key."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=key.encode()).digest()
    return int.from_bytes(digest, "big") / 2**64


def _assign(sentences: Iterable[str]) -> NDArray[np.object_]:
    return normalise_all(pa.array(sentences, pa.string()))
