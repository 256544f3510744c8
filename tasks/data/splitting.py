"""Splits rows into training and validation so that no sentence is in two of training, validation and holdout.

Sentences are compared normalised (without case, punctuation and spacing): CoLA repeats some with a different full stop.
A hash of the normalised sentence decides: the split does not depend on row order, and rows added later move no old row
from one side to the other. Grouped by source, whole sources go to validation, in the order of a hash of their names,
as many as come closest to the share: nothing of them is trained on, as nothing of a holdout by other authors is.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.core.errors import DataRejected
from tasks.core.files import atomic_write
from tasks.data.normalization import normalise_all
from tasks.data.snapshots import iter_snapshot, read_snapshot

PLANNED_ROWS = 20_000  # of a larger file no more are planned than show that both sides have both labels
NAMED_SOURCES = 5  # sources that a message names

Group = Literal["sentence", "source"]

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


class UsableRows(NamedTuple):
    """Which training rows a split may use, and why not the others."""

    rows: pd.Series
    """Whether it may, of each row."""
    normalised: pd.Series
    """The sentence of each row."""
    in_holdout: int
    conflicting: int
    repeated: int


def find_usable(rows: pd.DataFrame, holdout_sentences: list[str], group: Group) -> UsableRows:
    """Find the training rows that neither leak nor contradict each other.

    A row is dropped for the first reason that applies: its sentence is in a holdout; it has both labels in the file;
    an earlier row has it, or, grouped by source, a row of a source whose name sorts before.

    Args:
        rows: columns sentence and label at least; source, to group by it.
        holdout_sentences: sentences of every holdout.
        group: what stays together.
    """
    normalised = pd.Series(_normalise(rows["sentence"]), index=rows.index)
    in_holdout = normalised.isin(set(_normalise(holdout_sentences)))
    conflicting = ~in_holdout & (rows.groupby(normalised)["label"].transform("nunique") > 1)
    ordered = rows["source"].sort_values(kind="stable").index if group == "source" else rows.index
    repeated = ~in_holdout & ~conflicting & normalised.loc[ordered].duplicated().reindex(rows.index)
    usable = ~(in_holdout | conflicting | repeated)
    return UsableRows(usable, normalised, int(in_holdout.sum()), int(conflicting.sum()), int(repeated.sum()))


def split_rows(
    rows: pd.DataFrame, holdout_sentences: list[str], validation_share: float, seed: int, group: Group = "sentence"
) -> tuple[pd.DataFrame, pd.DataFrame, Split]:
    """Divide training rows into (training, validation) and drop rows that would leak or contradict each other.

    Args:
        rows: columns sentence and label at least; source, to group by it.
        holdout_sentences: sentences of every holdout.
        validation_share: expected share of sentences that go to validation, between 0 and 1.
        seed: key of the hash that chooses.
        group: what stays together: rows of one normalised sentence, or of one source.

    Raises:
        DataRejected: if rows of one source only are to be grouped by it.
    """
    usable = find_usable(rows, holdout_sentences, group)
    if group == "source":
        validates = rows["source"].isin(_choose_sources(rows["source"], validation_share, seed)).to_numpy()
    else:
        validates = _validates(usable.normalised, validation_share, seed)
    train, validation = rows[usable.rows & ~validates], rows[usable.rows & validates]
    counts = Split(
        train=len(train),
        validation=len(validation),
        in_holdout=usable.in_holdout,
        conflicting=usable.conflicting,
        repeated=usable.repeated,
    )
    return train.reset_index(drop=True), validation.reset_index(drop=True), counts


def plan_split(
    path: str, rows: pd.DataFrame, validation_share: float, seed: int, group: Group = "sentence"
) -> SplitPlan:
    """Find out where `split_rows` will put the rows of a training snapshot.

    Args:
        path: the snapshot.
        rows: its label and whether it is dropped, of each row: columns label and dropped.
        validation_share: expected share of sentences that go to validation.
        seed: key of the hash that chooses.
        group: what stays together.

    Raises:
        DataRejected: if rows of one source only are to be grouped by it.
        VerdictError: if the snapshot cannot be read.
    """
    cells = np.zeros(4, np.int64)
    sides = [np.zeros(0, np.bool_)]
    seen = 0
    by_source = group == "source"
    if by_source:
        sources = (source for batch in iter_snapshot(path, ["source"]) for source in batch["source"].to_pylist())
        chosen = pa.array(_choose_sources(sources, validation_share, seed), pa.string())
    for batch in iter_snapshot(path, ["source" if by_source else "sentence"], PLANNED_ROWS):
        if by_source:
            sides.append(pc.is_in(batch["source"], value_set=chosen).to_numpy(zero_copy_only=False))
        else:
            sides.append(_validates(normalise_all(batch["sentence"]), validation_share, seed))
        here = rows.iloc[seen : seen + batch.num_rows]
        kept = ~here["dropped"].to_numpy()
        cells += np.bincount((2 * sides[-1] + here["label"].to_numpy())[kept], minlength=4)
        seen += batch.num_rows
        if cells.all():
            break
    return SplitPlan(np.concatenate(sides), cells.reshape(2, 2))


def split_snapshot(
    train: str, holdouts: list[str], folder: str, validation_share: float, seed: int, group: Group = "sentence"
) -> tuple[str, str, Split]:
    """Split a training snapshot and write both sides to `folder`; return their paths and the counts.

    Args:
        train: snapshot of the training file.
        holdouts: snapshots whose sentences may not be trained on.
        folder: receives train.parquet and validation.parquet.
        validation_share: expected share of sentences that go to validation.
        seed: key of the hash that chooses.
        group: what stays together: rows of one normalised sentence, or of one source.

    Raises:
        DataRejected: if one side is empty; grouped by source, if there is one source only, or a side has one label.
    """
    sentences = [sentence for path in holdouts for sentence in read_snapshot(path)["sentence"]]
    *sides, counts = split_rows(read_snapshot(train), sentences, validation_share, seed, group)
    paths = []
    for name, rows in zip(("train", "validation"), sides, strict=True):
        if rows.empty:
            raise DataRejected(f"no {name} row is left after the split ({counts}); expected more rows in {train}")
        if group == "source" and rows["label"].nunique() < 2:
            raise DataRejected(
                f"the {name} rows are those of the sources {_name_some(rows['source'])}, which all have the label "
                f"{rows['label'].iloc[0]}; expected both labels: another finetune.seed or data.validation_share, or "
                "--set data.group=sentence"
            )
        paths.append(write_side(rows, name, Path(folder)))
    return paths[0], paths[1], counts


def write_side(rows: pd.DataFrame, name: str, folder: Path) -> str:
    """Write one side of a split to `folder`, as NAME.parquet; return its path."""
    path = folder / f"{name}.parquet"
    with atomic_write(path) as temporary:
        rows.reset_index(drop=True).to_parquet(temporary)
    return str(path)


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


def validation_sources(rows: Mapping[str, int], validation_share: float, seed: int) -> list[str]:
    """Return the sources that go to validation: in the order of a hash of their names, each that brings rows closer.

    Large and small sources alike: of CoLA the small ones are papers, which are harder, and rank models otherwise.
    Where every source has more than twice the rows wanted, it is the smallest.

    Args:
        rows: of each source.
        validation_share: wanted share of the rows.
        seed: key of the hash.
    """
    wanted, taken = validation_share * sum(rows.values()), 0
    chosen = []
    order = sorted(rows, key=lambda source: (hash_fraction(source, f"{seed}/source"), source))
    for source in order:
        if abs(taken + rows[source] - wanted) < abs(taken - wanted):
            chosen.append(source)
            taken += rows[source]
    return chosen or [min(order, key=lambda source: rows[source])]


def _choose_sources(sources: Iterable[str], validation_share: float, seed: int) -> list[str]:
    """Return which of the sources of [N] rows go to validation.

    Raises:
        DataRejected: if there are not two sources.
    """
    rows = Counter(sources)
    if len(rows) < 2:
        raise DataRejected(
            f"all {rows.total()} training rows have the source {next(iter(rows), '')!r}; expected at least two sources "
            "to keep whole ones for validation: name the column of sources, --columns source=NAME, or --set "
            "data.group=sentence"
        )
    return validation_sources(rows, validation_share, seed)


def _name_some(sources: Iterable[str]) -> str:
    """Return the first few of the sources of [N] rows."""
    names = sorted(set(sources))
    return ", ".join(map(repr, names[:NAMED_SOURCES])) + (
        f" and {len(names) - NAMED_SOURCES} more" if len(names) > NAMED_SOURCES else ""
    )


def _normalise(sentences: Iterable[str]) -> NDArray[np.object_]:
    return normalise_all(pa.array(sentences, pa.string()))
