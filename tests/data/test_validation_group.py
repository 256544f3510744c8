"""Validation keeps whole sources apart where the holdout is by others, and there are enough of them."""

from pathlib import Path

import pytest

from tasks.data.snapshots import read_snapshot, write_snapshot
from tasks.data.splitting import split_snapshot
from tasks.data.validation_group import FEWEST_ROWS, FEWEST_SOURCES, choose_group


def snapshot(folder: Path, name: str, rows_by_source: dict[str, tuple[int, int]]) -> str:
    """Write a snapshot with so many rows of either label of each source; return its path."""
    rows = [
        f"{source}\t{label}\t\t{name} {source} {label} {number}.\n"
        for source, counts in rows_by_source.items()
        for label, count in enumerate(counts)
        for number in range(count)
    ]
    path = folder / f"{name}.tsv"
    path.write_text("".join(rows), encoding="utf-8")
    return write_snapshot([str(path)], str(folder / "snapshots"))["path"]


def authors(count: int, each: tuple[int, int] = (60, 60)) -> dict[str, tuple[int, int]]:
    return {f"author {number}": each for number in range(count)}


OTHERS = {"another": (3, 3), "author 0": (2, 2)}


def test_validation_has_whole_sources_where_the_holdout_is_by_others(tmp_path: Path) -> None:
    train, holdout = snapshot(tmp_path, "train", authors(10)), snapshot(tmp_path, "holdout", OTHERS)
    group, reason = choose_group("auto", train, holdout, 0.1, 5)
    assert (group, reason) == ("source", "6 of 10 holdout rows are of sources not trained on")
    sides = split_snapshot(train, [holdout], str(tmp_path), 0.1, 5, group)[:2]
    trained, validating = (set(read_snapshot(side)["source"]) for side in sides)
    assert len(validating) == 1
    assert not trained & validating


@pytest.mark.parametrize(
    ("train", "holdout", "reason"),
    [
        (authors(10), {"another": (2, 2), "author 0": (2, 2)}, "4 of 8 holdout rows are of the training's sources"),
        (authors(FEWEST_SOURCES - 1), OTHERS, f"9 sources are fewer than {FEWEST_SOURCES}"),
        (authors(10, (FEWEST_ROWS - 1, 70)), OTHERS, "by source a side would have 49 rows of a label, under 50"),
        ({f"{name} {label}": (60 * (1 - label), 60 * label) for name in "abcdefgh" for label in (0, 1)}, OTHERS,
         "by source a side would have 0 rows of a label, under 50"),
    ],
    ids=["same sources", "few sources", "few rows", "sources of one label"],
)  # fmt: skip
def test_otherwise_it_has_sentences_by_a_hash(
    tmp_path: Path, train: dict[str, tuple[int, int]], holdout: dict[str, tuple[int, int]], reason: str
) -> None:
    paths = snapshot(tmp_path, "train", train), snapshot(tmp_path, "holdout", holdout)
    assert choose_group("auto", *paths, 0.06, 4) == ("sentence", reason)
    assert choose_group("source", *paths, 0.06, 4).group == "source"
    assert choose_group("sentence", *paths, 0.06, 4).group == "sentence"
