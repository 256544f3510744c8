"""Every row is measured exactly, however the snapshot is cut into pieces, and blemishes are counted, not mended."""

import hashlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.core.errors import VerdictError
from tasks.data import row_features as measures
from tasks.data.normalization import normalise
from tasks.data.row_features import (
    MAX_WORKERS,
    compute_row_features,
    count_quality_issues,
    flag_duplicates,
    flag_leakage,
)
from tasks.data.snapshots import iter_snapshot, read_snapshot, write_snapshot

unhurried = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])  # slow is not wrong

Rows = list[tuple[str, int, str]]  # source, label, sentence

TINY: Rows = [
    ("gj04", 1, "The cat sat."),
    ("gj04", 0, "the CAT sat!"),
    ("ab12", 1, "A bell\x07 rang."),
    ("ab12", 1, "It ran."),
    ("gj04", 1, "It ran."),
    ("gj04", 1, "it  ran"),
    ("ks08", 0, "Élan vital\u00a0ici."),
    ("ks08", 1, "Élan vital\u00a0ici."),
]

# Few words in many spellings, with what counts as white space or control somewhere.
letters = [
    "a",
    "b",
    "A",
    "B",
    "é",
    "É",
    " ",
    "  ",
    ".",
    "!",
    "\x0b",
    "\x1c",
    "\x7f",
    "\x85",
    "\u00a0",
    "\u3000",
    "\u200b",
]
texts = st.lists(st.sampled_from(letters), min_size=1, max_size=6).map("".join).filter(str.strip)
corpora = st.lists(st.tuples(st.sampled_from(["s", "t", ""]), st.integers(0, 1), texts), min_size=1, max_size=30)


def snapshot(folder: Path, rows: Rows, name: str = "train.tsv") -> str:
    path = folder / name
    path.write_text("".join(f"{source}\t{label}\t\t{text}\n" for source, label, text in rows), "utf-8", newline="")
    return write_snapshot([str(path)], str(folder / "snapshots"))["path"]


def measure(folder: Path, rows: Rows) -> pd.DataFrame:
    found = compute_row_features(snapshot(folder, rows))
    assert len(found) == len(rows)
    return found


def recompute(rows: Rows) -> pd.DataFrame:
    """Measure rows the plain way."""
    table = pd.DataFrame(rows, columns=["source", "label", "sentence"])
    table["line"] = range(1, len(rows) + 1)
    table["characters"] = table["sentence"].map(len)
    table["words"] = [len(text.split()) for text in table["sentence"]]
    table["control"] = [any(ord(letter) < 32 or ord(letter) == 127 for letter in text) for text in table["sentence"]]
    for key, texts in (("text", table["sentence"]), ("folded", table["sentence"].map(normalise))):
        table[key] = texts
        table[f"{key} repeated"] = [text in set(texts[:row]) for row, text in enumerate(texts)]
        table[f"{key} conflicting"] = [table["label"][texts == text].nunique() == 2 for text in texts]
    return table


# Measures


def test_measures_of_a_tiny_snapshot(tmp_path: Path) -> None:
    rows = measure(tmp_path, TINY)
    assert set(rows["file"]) == {"train.tsv"}
    assert rows["line"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert rows["source"].tolist() == ["gj04", "gj04", "ab12", "ab12", "gj04", "gj04", "ks08", "ks08"]
    assert rows["label"].tolist() == [1, 0, 1, 1, 1, 1, 0, 1]
    assert rows["characters"].tolist() == [12, 12, 13, 7, 7, 7, 15, 15]
    assert rows["words"].tolist() == [3, 3, 3, 2, 2, 2, 3, 3]
    assert rows["control"].tolist() == [False, False, True, False, False, False, False, False]


def test_keys_are_equal_where_sentences_are(tmp_path: Path) -> None:
    rows = measure(tmp_path, TINY)
    assert rows["text"].nunique() == 6
    groups = [group["line"].tolist() for _, group in rows.groupby("folded", sort=False)]
    assert groups == [[1, 2], [3], [4, 5, 6], [7, 8]]


def test_sentences_do_not_stand_in_the_measures(tmp_path: Path) -> None:
    rows = measure(tmp_path, TINY)
    columns = ["file", "line", "source", "label", "characters", "words", "control", "text", "folded"]
    assert list(rows.columns) == columns
    assert not any(value in {row[2] for row in TINY} for column in columns for value in rows[column])


# Rows with a tab, a line break or NUL in a sentence are quarantined.
@pytest.mark.parametrize("character", [chr(code) for code in (*range(1, 32), 127) if code not in (9, 10, 13)])
def test_control_characters_are_seen(tmp_path: Path, character: str) -> None:
    assert measure(tmp_path, [("s", 1, f"A {character} b.")])["control"].tolist() == [True]


@pytest.mark.parametrize("character", ["\x80", "\u00a0", "\u200b", "\u2028", "\ufffd", "~", " "])
def test_other_odd_characters_are_no_control_characters(tmp_path: Path, character: str) -> None:
    assert measure(tmp_path, [("s", 1, f"A {character} b.")])["control"].tolist() == [False]


def test_characters_are_counted_and_not_bytes(tmp_path: Path) -> None:
    assert measure(tmp_path, [("s", 1, "naïve 語 😀")])["characters"].tolist() == [9]


@pytest.mark.parametrize("space", [" ", "\u00a0", "\u2009", "\u3000", "\u2028", "\x0b", "\x1c", "\x85"])
def test_any_white_space_divides_words(tmp_path: Path, space: str) -> None:
    assert measure(tmp_path, [("s", 1, f"one{space}two{space}{space}three{space}")])["words"].tolist() == [3]


@unhurried
@given(corpora)
def test_measures_are_those_that_plain_python_counts(tmp_path_factory: pytest.TempPathFactory, corpus: Rows) -> None:
    rows, expected = measure(tmp_path_factory.mktemp("plain"), corpus), recompute(corpus)
    flag_duplicates(rows)
    for column in ("line", "source", "label", "characters", "words", "control"):
        assert rows[column].tolist() == expected[column].tolist(), column
    for key in ("text", "folded"):
        assert pd.factorize(rows[key])[0].tolist() == pd.factorize(expected[key])[0].tolist()
    assert rows["repeated"].tolist() == expected["folded repeated"].tolist()
    assert rows["conflicting"].tolist() == expected["folded conflicting"].tolist()


@unhurried
@given(corpora, corpora)
def test_flags_and_blemishes_are_those_that_plain_python_counts(
    tmp_path_factory: pytest.TempPathFactory, first: Rows, second: Rows
) -> None:
    folder = tmp_path_factory.mktemp("plain")
    train, rows = measure(folder, first), measure(folder, second)
    plain_train, plain = recompute(first), recompute(second)
    flag_leakage(rows, train)
    assert rows["leaked"].tolist() == plain["folded"].isin(plain_train["folded"]).tolist()
    assert rows["unseen_source"].tolist() == (~plain["source"].isin(plain_train["source"])).tolist()
    expected = {"rows with control characters": plain["control"].sum()}
    for key, how in (("text", "exactly"), ("folded", "folded")):
        expected[f"rows that repeat a sentence, {how}"] = plain[f"{key} repeated"].sum()
        expected[f"sentences with both labels, {how}"] = plain[key][plain[f"{key} conflicting"]].nunique()
        expected[f"rows that train too, {how}"] = plain[key].isin(plain_train[key]).sum()
    assert count_quality_issues(rows, train) == expected


def test_rows_of_several_files_keep_their_files(tmp_path: Path) -> None:
    files = []
    for name in ("a.tsv", "b.tsv"):
        (tmp_path / name).write_text("s\t1\t\tOne.\ns\t0\t\tTwo.\n")
        files.append(str(tmp_path / name))
    rows = compute_row_features(write_snapshot(files, str(tmp_path / "snapshots"))["path"])
    assert rows["file"].tolist() == ["a.tsv", "a.tsv", "b.tsv", "b.tsv"]
    assert rows["line"].tolist() == [1, 2, 1, 2]


# Pieces


def in_pieces(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Have snapshots read in pieces of a few rows."""
    monkeypatch.setattr(measures, "read_tables", lambda path, columns: iter_snapshot(path, columns, rows))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_pieces_give_the_same_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    whole = measure(tmp_path, TINY)
    in_pieces(monkeypatch, size)
    pieces = measure(tmp_path, TINY)
    pd.testing.assert_frame_equal(pieces, whole)
    for rows in (pieces, whole):
        flag_duplicates(rows)
        flag_leakage(rows, whole[:3])
    pd.testing.assert_frame_equal(pieces, whole)
    assert count_quality_issues(pieces, pieces[:3]) == count_quality_issues(whole, whole[:3])


def test_row_groups_give_the_same_measures(tmp_path: Path) -> None:
    path = snapshot(tmp_path, TINY)
    table = pa.Table.from_batches(iter_snapshot(path))
    grouped = tmp_path / "grouped.parquet"
    pa.parquet.write_table(table, grouped, row_group_size=3)
    assert pa.parquet.read_metadata(grouped).num_row_groups == 3
    pd.testing.assert_frame_equal(compute_row_features(str(grouped)), compute_row_features(path))


def test_only_a_few_pieces_are_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = snapshot(tmp_path, [("s", 1, f"Sentence {i}.") for i in range(60)])
    done: list[int] = []
    held: list[int] = []
    plain = measures._compute

    def reading(path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for number, piece in enumerate(iter_snapshot(path, columns, 1), start=1):
            held.append(number - len(done))
            yield piece

    def slowly(piece: pa.RecordBatch) -> pa.RecordBatch:
        time.sleep(0.002)
        measured = plain(piece)
        done.append(1)
        return measured

    monkeypatch.setattr(measures, "read_tables", reading)
    monkeypatch.setattr(measures, "_measure", slowly)
    assert compute_row_features(path)["line"].tolist() == list(range(1, 61))
    assert max(held) <= MAX_WORKERS + 2


def test_measures_of_a_snapshot_without_rows(tmp_path: Path) -> None:
    (tmp_path / "bad.tsv").write_text("no row\n")
    path = write_snapshot([str(tmp_path / "bad.tsv")], str(tmp_path / "snapshots"))["path"]
    rows, train = compute_row_features(path), measure(tmp_path, TINY)
    assert list(rows.columns) == list(train.columns)
    assert rows.empty
    flag_duplicates(rows)
    flag_leakage(rows, train)
    flag_leakage(train, rows)
    assert not train["leaked"].any()
    assert train["unseen_source"].all()
    assert set(count_quality_issues(rows, train).values()) == {0}
    assert rows[["repeated", "conflicting", "leaked", "unseen_source"]].dtypes.eq(bool).all()


def test_missing_snapshot_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(VerdictError, match=r"^snapshot .* cannot be read \(.*\); delete it and run again$"):
        compute_row_features(str(tmp_path / "none.parquet"))


def test_fault_while_measuring_is_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(piece: Any) -> Any:
        raise VerdictError("broken")

    path = snapshot(tmp_path, TINY)
    monkeypatch.setattr(measures, "_measure", broken)
    with pytest.raises(VerdictError, match="broken"):
        compute_row_features(path)


# Flags


def test_repeated_is_every_row_after_the_first_of_a_folded_sentence(tmp_path: Path) -> None:
    rows = measure(tmp_path, TINY)
    flag_duplicates(rows)
    assert rows.loc[rows["repeated"], "line"].tolist() == [2, 5, 6, 8]


def test_conflicting_is_every_row_of_a_folded_sentence_with_both_labels(tmp_path: Path) -> None:
    rows = measure(tmp_path, TINY)
    flag_duplicates(rows)
    assert rows.loc[rows["conflicting"], "line"].tolist() == [1, 2, 7, 8]


def test_leaked_is_a_holdout_row_whose_folded_sentence_trains(tmp_path: Path) -> None:
    holdout = measure(tmp_path, [("n", 1, "IT RAN"), ("gj04", 0, "It runs."), ("n", 0, "the cat sat")])
    flag_leakage(holdout, measure(tmp_path, TINY))
    assert holdout["leaked"].tolist() == [True, False, True]


def test_unseen_source_is_one_that_does_not_train(tmp_path: Path) -> None:
    holdout = measure(tmp_path, [("new", 1, "A."), ("gj04", 0, "B."), ("GJ04", 0, "C."), ("", 1, "D.")])
    flag_leakage(holdout, measure(tmp_path, TINY))
    assert holdout["unseen_source"].tolist() == [True, False, True, True]


def test_no_other_column_changes_when_flags_are_added(tmp_path: Path) -> None:
    rows, before = measure(tmp_path, TINY), measure(tmp_path, TINY)
    flag_duplicates(rows)
    flag_leakage(rows, before)
    pd.testing.assert_frame_equal(rows[list(before.columns)], before)


# Blemishes


def test_blemishes_of_a_tiny_snapshot(tmp_path: Path) -> None:
    assert count_quality_issues(measure(tmp_path, TINY)) == {
        "rows with control characters": 1,
        "rows that repeat a sentence, exactly": 2,
        "sentences with both labels, exactly": 1,
        "rows that repeat a sentence, folded": 4,
        "sentences with both labels, folded": 2,
    }


def test_blemishes_of_a_holdout_count_what_trains_too(tmp_path: Path) -> None:
    holdout = measure(tmp_path, [("n", 1, "IT RAN"), ("n", 1, "It ran."), ("n", 0, "New."), ("n", 1, "It ran.")])
    assert count_quality_issues(holdout, measure(tmp_path, TINY)) == {
        "rows with control characters": 0,
        "rows that repeat a sentence, exactly": 1,
        "sentences with both labels, exactly": 0,
        "rows that train too, exactly": 2,
        "rows that repeat a sentence, folded": 2,
        "sentences with both labels, folded": 0,
        "rows that train too, folded": 3,
    }


def test_counts_are_plain_numbers_for_json(tmp_path: Path) -> None:
    rows = measure(tmp_path, TINY)
    assert {type(count) for count in count_quality_issues(rows, rows).values()} == {int}


def test_order_of_the_rows_changes_no_count(tmp_path: Path) -> None:
    rng = random.Random(3)
    corpus = [("s", rng.randint(0, 1), rng.choice("abcdefghij") + rng.choice(["", ".", "!"])) for _ in range(80)]
    shuffled = rng.sample(corpus, len(corpus))
    one, other = measure(tmp_path, corpus), measure(tmp_path, shuffled)
    assert count_quality_issues(one, other) == count_quality_issues(other, one)


# CoLA itself

COLA = os.environ.get("COLA_DIR", "")
genuine = pytest.mark.skipif(not COLA, reason="COLA_DIR names no folder with CoLA as book/, raw/ and tokenized/")


class Corpus:
    """One version of CoLA, read and measured."""

    def __init__(self, version: str, folder: Path) -> None:
        home = Path(COLA, version)
        self.train, self.holdout = (
            write_snapshot([str(home / name)], str(folder)) for name in ("in_domain_train.tsv", "out_of_domain_dev.tsv")
        )
        self.rows, self.judging = compute_row_features(self.train["path"]), compute_row_features(self.holdout["path"])
        self.blemishes = count_quality_issues(self.rows)
        self.judging_blemishes = count_quality_issues(self.judging, self.rows)


@pytest.fixture(scope="module")
def cola(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    folder = tmp_path_factory.mktemp("cola")
    return {version: Corpus(version, folder) for version in ("book", "raw", "tokenized")}


@genuine
def test_nothing_of_cola_is_quarantined(cola: dict[str, Corpus]) -> None:
    for corpus in cola.values():
        for side, rows in ((corpus.train, corpus.rows), (corpus.holdout, corpus.judging)):
            assert (side["quarantined"], side["rows_in"]) == (0, len(rows))


@genuine
def test_digest_of_the_books_training_rows_is_that_of_the_file(cola: dict[str, Corpus]) -> None:
    digest = "55d77501a11cb129c74190652661d846589319a2c8710033c5bb2d37f08e70cd"
    assert cola["book"].train["digest"] == digest
    data = Path(COLA, "book", "in_domain_train.tsv").read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest


@genuine
@pytest.mark.parametrize("version", ["book", "tokenized"])
def test_blemishes_of_colas_training_rows(cola: dict[str, Corpus], version: str) -> None:
    corpus = cola[version]
    assert corpus.rows.loc[corpus.rows["control"], "line"].tolist() == [7130, 7131, 7132]
    assert corpus.blemishes["rows with control characters"] == 3
    assert corpus.blemishes["rows that repeat a sentence, exactly"] == 23
    assert corpus.blemishes["sentences with both labels, exactly"] == 11
    assert corpus.blemishes["sentences with both labels, folded"] == 15


@genuine
def test_blemishes_of_colas_raw_training_rows(cola: dict[str, Corpus]) -> None:
    assert cola["raw"].blemishes["rows that repeat a sentence, exactly"] == 19


@genuine
@pytest.mark.parametrize("version", ["book", "raw", "tokenized"])
def test_blemishes_of_colas_holdout(cola: dict[str, Corpus], version: str) -> None:
    blemishes = cola[version].judging_blemishes
    assert blemishes["rows that repeat a sentence, exactly"] == 3
    assert blemishes["sentences with both labels, exactly"] == 3
    assert blemishes["rows that train too, exactly"] == 12


@genuine
def test_blemishes_of_cola_are_those_that_plain_python_counts(cola: dict[str, Corpus]) -> None:
    for corpus in cola.values():
        sentences = read_snapshot(corpus.train["path"])["sentence"]
        assert corpus.rows["characters"].tolist() == [len(text) for text in sentences]
        assert corpus.rows["words"].tolist() == [len(text.split()) for text in sentences]
        folded = [normalise(text) for text in sentences]
        assert corpus.blemishes["rows that repeat a sentence, folded"] == len(folded) - len(set(folded))
        assert len(np.unique(corpus.rows["folded"])) == len(set(folded))
