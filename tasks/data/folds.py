"""Divides training rows into folds: each row validates in one of them and is trained on in the others.

By sources, scikit-learn's GroupKFold makes folds of about as many rows, each of whole sources; by sentences, a hash of
the normalised sentence decides, so that rows added later move no old row.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.core.errors import DataRejected
from tasks.data.snapshots import read_snapshot
from tasks.data.splitting import Group, find_usable, hash_fraction, write_side


class Fold(NamedTuple):
    """Snapshots of the rows of a fold."""

    train: str
    validation: str


def split_folds(train: str, holdouts: list[str], folder: str, count: int, seed: int, group: Group) -> list[Fold]:
    """Divide a training snapshot into folds and write both sides of each below `folder`.

    Rows are dropped as by `tasks.data.splitting.split_rows`, before they are divided.

    Args:
        train: snapshot of the training file.
        holdouts: snapshots whose sentences may not be trained on.
        folder: receives N/train.parquet and N/validation.parquet, N from 1 to `count`.
        count: of the folds, at least 2.
        seed: key of the hash that divides sentences.
        group: what stays together: rows of one normalised sentence, or of one source.

    Raises:
        DataRejected: if there are fewer sources than folds, or a side is empty or, by sources, has one label.
    """
    sentences = [sentence for path in holdouts for sentence in read_snapshot(path)["sentence"]]
    rows = read_snapshot(train)
    usable = find_usable(rows, sentences, group)
    kept, normalised = rows[usable.rows], usable.normalised[usable.rows]
    numbers = _by_source(kept["source"], count) if group == "source" else _by_hash(normalised, count, seed)
    folds = []
    for number in range(count):
        validates = numbers == number
        if not 0 < validates.sum() < len(kept):
            raise DataRejected(
                f"{len(kept)} usable rows of {train} leave a fold of {count} empty; expected fewer folds"
            )
        target = Path(folder) / str(number + 1)
        target.mkdir(parents=True, exist_ok=True)
        sides = {"train": kept[~validates], "validation": kept[validates]}
        folds.append(Fold(*(write_side(side, name, target, group, "fewer folds") for name, side in sides.items())))
    return folds


def _by_source(sources: pd.Series, count: int) -> NDArray[np.int64]:
    """Return the fold of each row [N].

    Raises:
        DataRejected: if there are fewer sources than folds.
    """
    from sklearn.model_selection import GroupKFold  # takes a second to import

    if (different := sources.nunique()) < count:
        raise DataRejected(
            f"{different} sources of training rows cannot be divided into {count} folds; expected at most {different} "
            "folds, or --set data.group=sentence"
        )
    numbers = np.empty(len(sources), np.int64)
    for number, (_, validates) in enumerate(GroupKFold(count).split(sources, groups=sources)):
        numbers[validates] = number
    return numbers


def _by_hash(normalised: pd.Series, count: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each row [N], given its normalised sentence."""
    return np.array([int(count * hash_fraction(text, str(seed))) for text in normalised], np.int64)
