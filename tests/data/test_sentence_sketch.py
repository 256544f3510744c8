"""Sketches say how many sentences two sets share: exactly where they are small, closely where they are large."""

from pathlib import Path

import pandas as pd
import pytest

from tasks.data.sentence_sketch import SKETCH_SIZE, estimate_overlap, sketch_snapshot


def sketch(folder: Path, sentences: list[str]) -> str:
    path = folder / "rows.parquet"
    pd.DataFrame({"sentence": pd.Series(sentences, dtype=str)}).to_parquet(path)
    return sketch_snapshot(str(path))


def numbered(first: int, last: int) -> list[str]:
    return [f"Sentence {number} is here." for number in range(first, last)]


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        (range(40), range(40), 1.0),
        (range(40), range(40, 80), 0.0),
        (range(40), range(60), 1.0),
        (range(40), range(30, 90), 0.25),
        (range(1), range(1), 1.0),
        (range(0), range(40), 0.0),
        (range(0), range(0), 0.0),
    ],
)
def test_small_sets_are_compared_exactly(one: range, other: range, share: float, tmp_path: Path) -> None:
    first, second = (sketch(tmp_path, numbered(part.start, part.stop)) for part in (one, other))
    assert estimate_overlap(first, second) == estimate_overlap(second, first) == pytest.approx(share)


@pytest.mark.parametrize(
    ("first", "last", "share"), [(0, 5000, 1.0), (0, 9000, 1.0), (2500, 7500, 0.5), (5000, 9000, 0)]
)
def test_the_share_of_large_sets_is_estimated(first: int, last: int, share: float, tmp_path: Path) -> None:
    found = estimate_overlap(sketch(tmp_path, numbered(0, 5000)), sketch(tmp_path, numbered(first, last)))
    assert found == pytest.approx(share, abs=0.15)


def test_order_repetitions_case_and_punctuation_do_not_matter(tmp_path: Path) -> None:
    rows = numbered(0, 300)
    again = [f"{sentence.upper()}!!" for sentence in reversed(rows)] + rows[:7]
    assert sketch(tmp_path, rows) == sketch(tmp_path, again)


def test_a_sketch_fits_a_tag_of_mlflow(tmp_path: Path) -> None:
    assert len(sketch(tmp_path, numbered(0, 20 * SKETCH_SIZE))) < 1_000


@pytest.mark.parametrize("text", ["", "7", "x:AAAAAAA=", "7:%%", "7:AAAA"])
def test_what_is_no_sketch_shares_nothing(text: str, tmp_path: Path) -> None:
    assert estimate_overlap(text, sketch(tmp_path, numbered(0, 9))) == 0.0
