"""Folds: each usable row validates once, and no source or sentence is on two sides of one."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tasks.core.errors import DataRejected
from tasks.data.folds import split_folds
from tasks.data.normalization import normalise
from tasks.data.snapshots import read_snapshot
from tasks.data.splitting import Group

SIZES = {"a": 90, "b": 60, "c": 40, "d": 30, "e": 20, "f": 12}


def snapshot(folder: Path, sizes: dict[str, int], name: str = "train.parquet") -> str:
    """Write a snapshot of numbered sentences of these sources; both labels in turn."""
    sources = [source for source, count in sizes.items() for _ in range(count)]
    rows: Any = {
        "source": sources,
        "label": [number % 2 for number in range(len(sources))],
        "sentence": [f"Sentence {number} of {source}." for number, source in enumerate(sources)],
    }
    pd.DataFrame(rows).to_parquet(folder / name)
    return str(folder / name)


@pytest.mark.parametrize("group", ["source", "sentence"])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_row_validates_once_and_is_trained_on_otherwise(tmp_path: Path, group: Group, count: int) -> None:
    path = snapshot(tmp_path, SIZES)
    folds = split_folds(path, [], str(tmp_path / "folds"), count, 7, [group])
    assert len(folds) == count
    every = set(read_snapshot(path)["sentence"])
    validated = [set(read_snapshot(fold.validation)["sentence"]) for fold in folds]
    assert sum(map(len, validated)) == len(every)
    assert set.union(*validated) == every
    for fold, own in zip(folds, validated, strict=True):
        assert set(read_snapshot(fold.train)["sentence"]) == every - own


def test_no_source_is_on_two_sides_of_a_fold_and_folds_have_about_as_many_rows(tmp_path: Path) -> None:
    folds = split_folds(snapshot(tmp_path, SIZES), [], str(tmp_path / "folds"), 3, 7, ["source"])
    sides = [[set(read_snapshot(path)["source"]) for path in fold] for fold in folds]
    assert all(train.isdisjoint(validation) for train, validation in sides)
    assert [sorted(validation) for _, validation in sides] == [["a"], ["b", "e"], ["c", "d", "f"]]


def test_sentences_of_a_holdout_repeated_ones_and_contradictions_are_in_no_fold(tmp_path: Path) -> None:
    path = snapshot(tmp_path, SIZES)
    rows = read_snapshot(path)
    repeated, contradiction = rows.iloc[[1]], rows.iloc[[2]].assign(label=1 - rows["label"].iloc[2])
    pd.concat([rows, repeated, contradiction], ignore_index=True).to_parquet(path)
    rows.iloc[[5]].to_parquet(tmp_path / "holdout.parquet")
    folds = split_folds(path, [str(tmp_path / "holdout.parquet")], str(tmp_path / "folds"), 2, 7, ["sentence"])
    found = [sentence for fold in folds for sentence in read_snapshot(fold.validation)["sentence"]]
    assert sorted(found) == sorted(set(rows["sentence"]) - set(rows["sentence"].iloc[[2, 5]]))


def test_rows_added_later_move_no_old_sentence_to_another_fold(tmp_path: Path) -> None:
    before = split_folds(snapshot(tmp_path, {"a": 50}), [], str(tmp_path / "before"), 4, 7, ["sentence"])
    after = split_folds(snapshot(tmp_path, {"a": 80}), [], str(tmp_path / "after"), 4, 7, ["sentence"])
    for old, new in zip(before, after, strict=True):
        assert set(read_snapshot(old.validation)["sentence"]) <= set(read_snapshot(new.validation)["sentence"])


def test_spellings_of_one_sentence_are_one_row(tmp_path: Path) -> None:
    path = snapshot(tmp_path, {"a": 40})
    rows = read_snapshot(path)
    pd.concat([rows, rows.assign(sentence=rows["sentence"].str.upper())], ignore_index=True).to_parquet(path)
    folds = split_folds(path, [], str(tmp_path / "folds"), 3, 7, ["sentence"])
    found = [normalise(sentence) for fold in folds for sentence in read_snapshot(fold.validation)["sentence"]]
    assert len(found) == len(set(found)) == 40


@pytest.mark.parametrize(
    ("sizes", "group", "count", "message"),
    [
        (SIZES, "source", 7, "6 sources of training rows cannot be divided into 7 folds; expected as many sources as"),
        ({"a": 1}, "source", 2, "1 source of training rows cannot be divided into 2 folds"),
        (
            {"a": 3},
            "sentence",
            9,
            r"the validation side of fold 1 of 9 has not both labels \(0 rows\); expected both: few",
        ),
        ({"a": 30, "b": 1}, "source", 2, r"the train side of fold 1 of 2 has not both labels \(1 row\); expected both"),
    ],
)
def test_what_makes_no_folds_is_refused(
    tmp_path: Path, sizes: dict[str, int], group: Group, count: int, message: str
) -> None:
    with pytest.raises(DataRejected, match=message):
        split_folds(snapshot(tmp_path, sizes), [], str(tmp_path / "folds"), count, 7, [group])


def test_sentences_are_divided_where_sources_make_no_such_folds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = snapshot(tmp_path, {"a": 30, "b": 1})
    with caplog.at_level("INFO"):
        folds = split_folds(path, [], str(tmp_path / "folds"), 2, 7, ["source", "sentence"])
    assert "folds keep equal sentences together: the train side of fold 1 of 2 has not both labels" in caplog.text
    assert folds == split_folds(path, [], str(tmp_path / "folds"), 2, 7, ["sentence"])
    assert all("a" in set(read_snapshot(side)["source"]) for fold in folds for side in fold)
