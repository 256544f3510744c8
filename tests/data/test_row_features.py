"""Features are exact, however the snapshot is divided into batches; quality issues are counted."""

import hashlib
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from cola_like import FIGURES, VERSIONS, cola_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.core.errors import VerdictError
from tasks.data import row_features
from tasks.data.normalization import normalise
from tasks.data.row_features import (
    MAX_WORKERS,
    compute_row_features,
    count_quality_issues,
    flag_duplicates,
    flag_leakage,
)
from tasks.data.snapshots import iter_snapshot, read_snapshot, write_snapshot

hypothesis_settings = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])

Rows = list[tuple[str, int, str]]  # source, label, sentence
KEYS = ("exact_key", "normalised_key")

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


def issues_of(rows: pd.DataFrame, train: pd.DataFrame | None = None) -> dict[str, tuple[int, int | None]]:
    return {issue["kind"]: (issue["exact"], issue["normalised"]) for issue in count_quality_issues(rows, train)}


def measure(folder: Path, rows: Rows) -> pd.DataFrame:
    found = compute_row_features(snapshot(folder, rows))
    assert len(found) == len(rows)
    return found


def recompute(rows: Rows) -> pd.DataFrame:
    """Compute the features in plain Python."""
    table = pd.DataFrame(rows, columns=["source", "label", "sentence"])
    table["line"] = range(1, len(rows) + 1)
    table["characters"] = table["sentence"].map(len)
    table["words"] = [len(text.split()) for text in table["sentence"]]
    table["control"] = [any(ord(letter) < 32 or ord(letter) == 127 for letter in text) for text in table["sentence"]]
    for key, texts in zip(KEYS, (table["sentence"], table["sentence"].map(normalise)), strict=True):
        table[key] = texts
        table[f"{key} repeated"] = [text in set(texts[:row]) for row, text in enumerate(texts)]
        table[f"{key} conflicting"] = [table["label"][texts == text].nunique() == 2 for text in texts]
    return table


# Features


def test_features_of_a_tiny_snapshot(tmp_path: Path) -> None:
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
    assert rows["exact_key"].nunique() == 6
    groups = [group["line"].tolist() for _, group in rows.groupby("normalised_key", sort=False)]
    assert groups == [[1, 2], [3], [4, 5, 6], [7, 8]]


def test_features_do_not_include_sentences(tmp_path: Path) -> None:
    rows = measure(tmp_path, TINY)
    columns = ["file", "line", "source", "label", "characters", "words", "control", "exact_key", "normalised_key"]
    assert list(rows.columns) == columns
    assert not any(value in {row[2] for row in TINY} for column in columns for value in rows[column])


def test_control_characters_are_flagged(tmp_path: Path) -> None:
    # Rows with a tab, a line break or NUL in a sentence are quarantined.
    control = [chr(code) for code in (*range(1, 32), 127) if code not in (9, 10, 13)]
    others = ["\x80", "\u00a0", "\u200b", "\u2028", "\ufffd", "~", " "]
    rows = measure(tmp_path, [("s", 1, f"A {character} b.") for character in [*control, *others]])
    assert rows["control"].tolist() == [True] * len(control) + [False] * len(others)


def test_characters_are_counted_and_not_bytes(tmp_path: Path) -> None:
    assert measure(tmp_path, [("s", 1, "naïve 語 😀")])["characters"].tolist() == [9]


def test_any_white_space_divides_words(tmp_path: Path) -> None:
    spaces = [" ", "\u00a0", "\u2009", "\u3000", "\u2028", "\x0b", "\x1c", "\x85"]
    rows = measure(tmp_path, [("s", 1, f"one{space}two{space}{space}three{space}") for space in spaces])
    assert rows["words"].tolist() == [3] * len(spaces)


@hypothesis_settings
@given(corpora)
def test_features_are_those_of_plain_python(tmp_path_factory: pytest.TempPathFactory, corpus: Rows) -> None:
    rows, expected = measure(tmp_path_factory.mktemp("plain"), corpus), recompute(corpus)
    flag_duplicates(rows)
    for column in ("line", "source", "label", "characters", "words", "control"):
        assert rows[column].tolist() == expected[column].tolist(), column
    for key in KEYS:
        assert pd.factorize(rows[key])[0].tolist() == pd.factorize(expected[key])[0].tolist()
    assert rows["duplicate"].tolist() == expected["normalised_key repeated"].tolist()
    assert rows["conflicting"].tolist() == expected["normalised_key conflicting"].tolist()


@hypothesis_settings
@given(corpora, corpora)
def test_flags_and_quality_issues_are_those_of_plain_python(
    tmp_path_factory: pytest.TempPathFactory, first: Rows, second: Rows
) -> None:
    folder = tmp_path_factory.mktemp("plain")
    train, rows = measure(folder, first), measure(folder, second)
    plain_train, plain = recompute(first), recompute(second)
    flag_leakage(rows, train)
    assert rows["leaked"].tolist() == plain["normalised_key"].isin(plain_train["normalised_key"]).tolist()
    assert rows["unseen_source"].tolist() == (~plain["source"].isin(plain_train["source"])).tolist()
    assert issues_of(rows, train) == {
        "control": (plain["control"].sum(), None),
        "duplicate": tuple(plain[f"{key} repeated"].sum() for key in KEYS),
        "conflict": tuple(plain[key][plain[f"{key} conflicting"]].nunique() for key in KEYS),
        "leak": tuple(plain[key].isin(plain_train[key]).sum() for key in KEYS),
    }


def test_rows_of_several_files_keep_their_files(tmp_path: Path) -> None:
    files = []
    for name in ("a.tsv", "b.tsv"):
        (tmp_path / name).write_text("s\t1\t\tOne.\ns\t0\t\tTwo.\n")
        files.append(str(tmp_path / name))
    rows = compute_row_features(write_snapshot(files, str(tmp_path / "snapshots"))["path"])
    assert rows["file"].tolist() == ["a.tsv", "a.tsv", "b.tsv", "b.tsv"]
    assert rows["line"].tolist() == [1, 2, 1, 2]


# Batches


def in_batches(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Read snapshots in batches of a few rows."""
    monkeypatch.setattr(row_features, "iter_snapshot", lambda path, columns: iter_snapshot(path, columns, rows))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_batches_give_the_same_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    whole = measure(tmp_path, TINY)
    in_batches(monkeypatch, size)
    batched = measure(tmp_path, TINY)
    pd.testing.assert_frame_equal(batched, whole)
    for rows in (batched, whole):
        flag_duplicates(rows)
        flag_leakage(rows, whole[:3])
    pd.testing.assert_frame_equal(batched, whole)
    assert count_quality_issues(batched, batched[:3]) == count_quality_issues(whole, whole[:3])


def test_row_groups_give_the_same_features(tmp_path: Path) -> None:
    path = snapshot(tmp_path, TINY)
    table = pa.Table.from_batches(iter_snapshot(path))
    grouped = tmp_path / "grouped.parquet"
    pa.parquet.write_table(table, grouped, row_group_size=3)
    assert pa.parquet.read_metadata(grouped).num_row_groups == 3
    pd.testing.assert_frame_equal(compute_row_features(str(grouped)), compute_row_features(path))


def test_only_a_few_batches_are_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = snapshot(tmp_path, [("s", 1, f"Sentence {i}.") for i in range(60)])
    done: list[int] = []
    held: list[int] = []
    plain = row_features._compute

    def reading(path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for number, piece in enumerate(iter_snapshot(path, columns, 1), start=1):
            held.append(number - len(done))
            yield piece

    def slowly(piece: pa.RecordBatch) -> pa.RecordBatch:
        time.sleep(0.002)
        measured = plain(piece)
        done.append(1)
        return measured

    monkeypatch.setattr(row_features, "iter_snapshot", reading)
    monkeypatch.setattr(row_features, "_compute", slowly)
    assert compute_row_features(path)["line"].tolist() == list(range(1, 61))
    assert max(held) <= MAX_WORKERS + 2


def test_features_of_a_snapshot_without_rows(tmp_path: Path) -> None:
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
    assert {count for counts in issues_of(rows, train).values() for count in counts} == {0, None}
    assert rows[["duplicate", "conflicting", "leaked", "unseen_source"]].dtypes.eq(bool).all()


def test_a_missing_snapshot_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(VerdictError, match=r"^snapshot .* cannot be read \(.*\); delete it and run again$"):
        compute_row_features(str(tmp_path / "none.parquet"))


def test_an_error_in_a_worker_thread_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(piece: Any) -> Any:
        raise VerdictError("broken")

    path = snapshot(tmp_path, TINY)
    monkeypatch.setattr(row_features, "_compute", broken)
    with pytest.raises(VerdictError, match="broken"):
        compute_row_features(path)


# Flags


def test_duplicate_is_every_row_after_the_first_of_a_normalised_sentence(tmp_path: Path) -> None:
    rows = measure(tmp_path, TINY)
    flag_duplicates(rows)
    assert rows.loc[rows["duplicate"], "line"].tolist() == [2, 5, 6, 8]


def test_conflicting_is_every_row_of_a_normalised_sentence_with_both_labels(tmp_path: Path) -> None:
    rows = measure(tmp_path, TINY)
    flag_duplicates(rows)
    assert rows.loc[rows["conflicting"], "line"].tolist() == [1, 2, 7, 8]


def test_leaked_is_a_holdout_row_whose_normalised_sentence_is_in_the_training_data(tmp_path: Path) -> None:
    holdout = measure(tmp_path, [("n", 1, "IT RAN"), ("gj04", 0, "It runs."), ("n", 0, "the cat sat")])
    flag_leakage(holdout, measure(tmp_path, TINY))
    assert holdout["leaked"].tolist() == [True, False, True]


def test_unseen_source_is_one_without_training_rows(tmp_path: Path) -> None:
    holdout = measure(tmp_path, [("new", 1, "A."), ("gj04", 0, "B."), ("GJ04", 0, "C."), ("", 1, "D.")])
    flag_leakage(holdout, measure(tmp_path, TINY))
    assert holdout["unseen_source"].tolist() == [True, False, True, True]


def test_no_other_column_changes_when_flags_are_added(tmp_path: Path) -> None:
    rows, before = measure(tmp_path, TINY), measure(tmp_path, TINY)
    flag_duplicates(rows)
    flag_leakage(rows, before)
    pd.testing.assert_frame_equal(rows[list(before.columns)], before)


# Quality issues


def issue(kind: str, exact: int, normalised: int | None = None, tokens: int | None = None) -> dict[str, Any]:
    return {"kind": kind, "exact": exact, "normalised": normalised, "tokens": tokens, "read": None}


def test_quality_issues_of_a_tiny_snapshot(tmp_path: Path) -> None:
    assert count_quality_issues(measure(tmp_path, TINY)) == [
        issue("control", 1),
        issue("duplicate", 2, 4),
        issue("conflict", 1, 2),
    ]


def test_quality_issues_of_a_holdout_include_leaks(tmp_path: Path) -> None:
    holdout = measure(tmp_path, [("n", 1, "IT RAN"), ("n", 1, "It ran."), ("n", 0, "New."), ("n", 1, "It ran.")])
    issues = count_quality_issues(holdout, measure(tmp_path, TINY))
    assert issues == [issue("control", 0), issue("duplicate", 1, 2), issue("conflict", 0, 0), issue("leak", 2, 3)]
    assert json.loads(json.dumps(issues)) == issues


def test_order_of_the_rows_changes_no_count(tmp_path: Path) -> None:
    rng = random.Random(3)
    corpus = [("s", rng.randint(0, 1), rng.choice("abcdefghij") + rng.choice(["", ".", "!"])) for _ in range(80)]
    shuffled = rng.sample(corpus, len(corpus))
    one, other = measure(tmp_path, corpus), measure(tmp_path, shuffled)
    assert count_quality_issues(one, other) == count_quality_issues(other, one)


# CoLA itself where COLA_DIR names it, else lines of our own with the same blemishes


class Corpus:
    """One version of CoLA with its features."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.train_file = home / "in_domain_train.tsv"
        self.train = write_snapshot([str(self.train_file)], str(folder))
        self.holdout = write_snapshot([str(home / "out_of_domain_dev.tsv")], str(folder))
        self.rows = compute_row_features(self.train["path"])
        self.holdout_rows = compute_row_features(self.holdout["path"])
        self.issues = issues_of(self.rows)
        self.holdout_issues = issues_of(self.holdout_rows, self.rows)


@pytest.fixture(scope="module")
def cola(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    home, folder = cola_folder(tmp_path_factory.mktemp("cola")), tmp_path_factory.mktemp("snapshots")
    return {version: Corpus(home / version, folder) for version in VERSIONS}


def test_nothing_of_cola_is_quarantined(cola: dict[str, Corpus]) -> None:
    for corpus in cola.values():
        for side, rows in ((corpus.train, corpus.rows), (corpus.holdout, corpus.holdout_rows)):
            assert (side["quarantined"], side["rows_in"]) == (0, len(rows))


def test_digest_of_the_books_training_rows_is_that_of_the_file(cola: dict[str, Corpus]) -> None:
    digest = hashlib.sha256(cola["book"].train_file.read_bytes()).hexdigest()
    assert cola["book"].train["digest"] == digest
    assert FIGURES.train_digest in (digest, None)


def test_quality_issues_of_colas_training_rows(cola: dict[str, Corpus]) -> None:
    for version in ("book", "tokenized"):
        rows, issues = cola[version].rows, cola[version].issues
        assert rows.loc[rows["control"], "line"].tolist() == FIGURES.control_lines, version
        assert issues["control"] == (3, None), version
        assert issues["duplicate"][0] == FIGURES.duplicates, version
        assert issues["conflict"] == FIGURES.conflicts, version
    assert cola["raw"].issues["duplicate"][0] == FIGURES.raw_duplicates


def test_quality_issues_of_colas_holdout(cola: dict[str, Corpus]) -> None:
    for version, corpus in cola.items():
        assert {kind: corpus.holdout_issues[kind][0] for kind in FIGURES.holdout} == FIGURES.holdout, version


def test_quality_issues_of_cola_are_those_of_plain_python(cola: dict[str, Corpus]) -> None:
    for corpus in cola.values():
        sentences = read_snapshot(corpus.train["path"])["sentence"]
        assert corpus.rows["characters"].tolist() == [len(text) for text in sentences]
        assert corpus.rows["words"].tolist() == [len(text.split()) for text in sentences]
        normalised = [normalise(text) for text in sentences]
        assert corpus.issues["duplicate"][1] == len(normalised) - len(set(normalised))
        assert len(np.unique(corpus.rows["normalised_key"])) == len(set(normalised))
