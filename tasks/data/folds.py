"""Divides training rows into folds: each row validates in one of them and is trained on in the others.

By sources, scikit-learn's GroupKFold makes folds of about as many rows, each of whole sources; by sentences, a hash of
the normalised sentence decides, so that rows added later move no old row.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.core.errors import DataRejected
from tasks.core.printable import counted
from tasks.data.snapshots import read_snapshot
from tasks.data.splitting import Group, find_usable, hash_fraction, write_side

log = logging.getLogger(__name__)


class Fold(NamedTuple):
    """Snapshots of the rows of a fold."""

    train: str
    validation: str


def split_folds(
    train: str, holdouts: list[str], folder: str, count: int, seed: int, groups: Sequence[Group]
) -> list[Fold]:
    """Divide a training snapshot into folds and write both sides of each below `folder`.

    Rows are dropped as by `tasks.data.splitting.split_rows`, before they are divided.

    Args:
        train: snapshot of the training file.
        holdouts: snapshots whose sentences may not be trained on.
        folder: receives N/train.parquet and N/validation.parquet, N from 1 to `count`.
        count: of the folds, at least 2.
        seed: key of the hash that divides sentences.
        groups: what stays together, rows of one source or of one normalised sentence: the first that makes such folds.

    Raises:
        DataRejected: if none does: there are fewer sources than folds, or a side has not both labels.
    """
    sentences = [sentence for path in holdouts for sentence in read_snapshot(path)["sentence"]]
    rows = read_snapshot(train).reset_index(drop=True)
    *preferred, last = groups
    for group in preferred:
        try:
            return _write_folds(rows, sentences, Path(folder), count, seed, group)
        except DataRejected as error:
            log.info("folds keep equal sentences together: %s", error)
    return _write_folds(rows, sentences, Path(folder), count, seed, last)


def _write_folds(
    rows: pd.DataFrame, holdout_sentences: list[str], folder: Path, count: int, seed: int, group: Group
) -> list[Fold]:
    """Write folds that keep rows of a group together.

    Raises:
        DataRejected: if there are fewer sources than folds, or a side has not both labels.
    """
    usable = find_usable(rows, holdout_sentences, group)
    kept, normalised = rows[usable.rows], usable.normalised[usable.rows]
    numbers = _by_source(kept["source"], count) if group == "source" else _by_hash(normalised, count, seed)
    folds = []
    for number in range(count):
        target = folder / str(number + 1)
        target.mkdir(parents=True, exist_ok=True)
        sides = {"train": kept[numbers != number], "validation": kept[numbers == number]}
        for name, side in sides.items():
            if side["label"].nunique() < 2:
                where = f"the {name} side of fold {number + 1} of {count}"
                raise DataRejected(
                    f"{where} has not both labels ({counted(len(side), 'row')}); expected both: fewer folds"
                )
        folds.append(Fold(*(write_side(side, name, target) for name, side in sides.items())))
    return folds


def _by_source(sources: pd.Series, count: int) -> NDArray[np.int64]:
    """Return the fold of each row [N].

    Raises:
        DataRejected: if there are fewer sources than folds.
    """
    from sklearn.model_selection import GroupKFold  # takes a second to import

    if (different := sources.nunique()) < count:
        raise DataRejected(
            f"{counted(different, 'source')} of training rows cannot be divided into {count} folds; expected as many "
            "sources as folds, or --set data.group=sentence"
        )
    numbers = np.empty(len(sources), np.int64)
    for number, (_, validates) in enumerate(GroupKFold(count).split(sources, groups=sources)):
        numbers[validates] = number
    return numbers


def _by_hash(normalised: pd.Series, count: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each row [N], given its normalised sentence."""
    return np.array([int(count * hash_fraction(text, str(seed))) for text in normalised], np.int64)
