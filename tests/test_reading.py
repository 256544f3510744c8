"""The reader accounts for every line of any file: kept, or quarantined with a reason."""

import hashlib
import io
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tasks.errors import VerdictError
from tasks.files import digest_of
from tasks.reading import (
    BATCH_ROWS,
    BYTE_ORDER_MARK,
    EXAMPLES,
    Rejected,
    Row,
    format_row,
    load_rows,
    parse_row,
    parse_rows,
    take_snapshot,
    take_snapshots,
)

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # slow is not wrong

CLEAN = "gj04\t1\t\tThe sailors rode the breeze clear of the rocks.\ngj04\t0\t*\tThe sailors rode.\n"

# Arbitrary bytes hardly ever have three tabs and a label; pieces of the format reach every branch.
pieces = st.sampled_from(
    [b"\t", b"\n", b"\r\n", b"\r", b"0", b"1", b"*", b"\0", b'"', b" ", b"\xff", BYTE_ORDER_MARK, "é\u2028".encode()]
)
files = st.one_of(
    st.binary(max_size=200),
    st.lists(st.one_of(pieces, st.just(b"s\t1\t\tA word.\n"), st.binary(max_size=4)), max_size=40).map(b"".join),
)


def parse(data: bytes, max_chars: int = 2_000) -> list[Row | Rejected]:
    return list(parse_rows(io.BytesIO(data), max_chars))


def write(folder: Path, data: str | bytes, name: str = "data.tsv") -> str:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


@unhurried
@given(files)
@example(b"")
@example(b"\n")
@example(BYTE_ORDER_MARK)
@example(BYTE_ORDER_MARK * 2 + b"s\t1\t\tA.\n")
@example(b"s\t1\t\tA.\r\r\n")
def test_every_line_of_any_file_has_one_result_with_its_number(data: bytes) -> None:
    results = parse(data)
    assert [result.line for result in results] == list(range(1, len(list(io.BytesIO(data))) + 1))
    assert all(result.reason for result in results if isinstance(result, Rejected))


@unhurried
@given(files)
@example(b"s\t1\t\tline\xe2\x80\xa8separator\x0b\x0c\x85\n".replace(b"\x85", b"\xc2\x85"))
def test_kept_rows_survive_being_written_and_read_again(data: bytes) -> None:
    kept = [row for row in parse(data) if isinstance(row, Row)]
    again = parse("".join(map(format_row, kept)).encode())
    assert [row[1:] for row in again] == [row[1:] for row in kept]


@unhurried
@given(files)
def test_quarantined_bytes_and_kept_rows_hold_all_that_stood_in_the_file(data: bytes) -> None:
    lines = [line.removesuffix(b"\n").removesuffix(b"\r") for line in data.removeprefix(BYTE_ORDER_MARK).split(b"\n")]
    for result, line in zip(parse(data), lines, strict=False):
        raw = result.raw if isinstance(result, Rejected) else format_row(result).encode().removesuffix(b"\n")
        assert raw == line


def test_a_row_is_split_at_its_tabs_and_counted_from_one() -> None:
    assert parse(CLEAN.encode()) == [
        Row(1, "gj04", 1, "", "The sailors rode the breeze clear of the rocks."),
        Row(2, "gj04", 0, "*", "The sailors rode."),
    ]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"s\t1\t\t\xff", "not UTF-8"),
        (b"s\t1\t\t\xed\xa0\x80", "not UTF-8"),
        (b"s\t1\t\tA\0B", "NUL character"),
        (b"s\t1\t\tA\rB", "carriage return or byte order mark inside the file"),
        (BYTE_ORDER_MARK + b"s\t1\t\tA", "carriage return or byte order mark inside the file"),
        (b"", "1 fields instead of 4"),
        (b"s\t1\tA word.", "3 fields instead of 4"),
        (b"s\t1\t\tA word.\textra", "5 fields instead of 4"),
        (b"s\t2\t\tA word.", "label '2' instead of 0 or 1"),
        (b"s\t\t\tA word.", "label '' instead of 0 or 1"),
        (b"s\t1.0\t\tA word.", "label '1.0' instead of 0 or 1"),
        (b"s\t 1\t\tA word.", "label ' 1' instead of 0 or 1"),
        ("s\t²\t\tA word.".encode(), "label '²' instead of 0 or 1"),
        (b"s\t" + b"9" * 50 + b"\t\tA", f"label '{'9' * 20}' instead of 0 or 1"),
        (b"s\t1\t\t", "empty sentence"),
        (b"s\t1\t\t \xc2\xa0 ", "empty sentence"),
        (b"s\t1\t\t123456789", "sentence of 9 characters, more than 8"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason_and_its_bytes(raw: bytes, reason: str) -> None:
    assert parse_row(7, raw, max_chars=8) == Rejected(7, reason, raw)


def test_length_limit_counts_characters_and_includes_the_limit() -> None:
    assert parse_row(1, "s\t1\t\tééééé".encode(), max_chars=5) == Row(1, "s", 1, "", "ééééé")


@pytest.mark.parametrize("text", ["NA", "null", "None", "nan", "", "-", "1e5"])
def test_words_that_other_readers_take_for_missing_stay_text(text: str) -> None:
    assert parse(f"{text}\t1\t{text}\tx{text}\n".encode()) == [Row(1, text, 1, text, f"x{text}")]


@pytest.mark.parametrize("sentence", ['"', '"Quoted."', 'He said "go', "it's", "a, b; c", "back\\tslash"])
def test_quotes_and_separators_of_other_formats_are_kept_literally(sentence: str) -> None:
    data = f"s\t1\t\t{sentence}\ns\t0\t*\tNext.\n".encode()
    assert [row.sentence for row in parse(data) if isinstance(row, Row)] == [sentence, "Next."]


@pytest.mark.parametrize(
    "data",
    [
        CLEAN.encode(),
        CLEAN.replace("\n", "\r\n").encode(),
        CLEAN.encode().removesuffix(b"\n"),
        CLEAN.replace("\n", "\r\n").encode().removesuffix(b"\r\n"),
        BYTE_ORDER_MARK + CLEAN.encode(),
        BYTE_ORDER_MARK + CLEAN.replace("\n", "\r\n").encode(),
    ],
    ids=["lf", "crlf", "lf-unended", "crlf-unended", "bom", "bom-crlf"],
)
def test_line_ends_and_byte_order_mark_do_not_change_rows_or_digest(tmp_path: Path, data: bytes) -> None:
    snapshot = take_snapshot(write(tmp_path, data), str(tmp_path / "snapshots"))
    assert snapshot["digest"] == hashlib.sha256(CLEAN.encode()).hexdigest()
    assert (snapshot["rows_in"], snapshot["kept"], snapshot["quarantined"]) == (2, 2, 0)


def test_snapshot_holds_the_rows_under_their_digest(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "snapshots"
    snapshot = take_snapshot(write(tmp_path, CLEAN), str(home))
    assert snapshot["path"] == str(home / f"{snapshot['digest']}.parquet")
    assert snapshot["quarantine"] is None
    assert snapshot["examples"] == []
    assert [path.name for path in home.iterdir()] == [f"{snapshot['digest']}.parquet"]
    rows = load_rows(snapshot["path"])
    assert list(rows.columns) == ["line", "source", "label", "mark", "sentence"]
    assert [Row(*row) for row in rows.itertuples(index=False)] == parse(CLEAN.encode())


def test_text_that_looks_missing_comes_back_from_a_snapshot(tmp_path: Path) -> None:
    rows = load_rows(take_snapshot(write(tmp_path, "NA\t1\t\tnull\n"), str(tmp_path / "s"))["path"])
    assert rows.iloc[0].tolist() == [1, "NA", 1, "", "null"]


def test_quarantine_holds_line_reason_and_raw_bytes(tmp_path: Path) -> None:
    data = b"\xff\xfe\n" + CLEAN.encode() + b"s\t1\tthree\r\n"
    snapshot = take_snapshot(write(tmp_path, data), str(tmp_path / "s"))
    assert (snapshot["rows_in"], snapshot["kept"], snapshot["quarantined"]) == (4, 2, 2)
    quarantine = Path(snapshot["quarantine"] or "")
    assert quarantine.name == f"quarantine-{hashlib.sha256(quarantine.read_bytes()).hexdigest()}.parquet"
    rejected = pd.read_parquet(quarantine)
    assert rejected.to_dict("list") == {
        "line": [1, 4],
        "reason": ["not UTF-8", "3 fields instead of 4"],
        "raw": [b"\xff\xfe", b"s\t1\tthree"],
    }


def test_digest_is_that_of_the_kept_rows(tmp_path: Path) -> None:
    clean = take_snapshot(write(tmp_path, CLEAN), str(tmp_path / "a"))
    dirty = take_snapshot(write(tmp_path, "oops\n" + CLEAN), str(tmp_path / "b"))
    assert dirty["digest"] == clean["digest"]
    assert load_rows(dirty["path"])["line"].tolist() == [2, 3]


def test_examples_are_the_first_rejections_with_their_lines(tmp_path: Path) -> None:
    snapshot = take_snapshot(write(tmp_path, CLEAN + "bad\n" * 9), str(tmp_path / "s"))
    assert snapshot["examples"] == [f"line {3 + i}: 1 fields instead of 4" for i in range(EXAMPLES)]


def test_same_file_snapshots_to_the_same_bytes_twice(tmp_path: Path) -> None:
    path = write(tmp_path, CLEAN + "bad\n")
    first = take_snapshot(path, str(tmp_path / "s"))
    assert take_snapshot(path, str(tmp_path / "s")) == first
    assert len(list((tmp_path / "s").iterdir())) == 2


def test_length_limit_reaches_the_snapshot(tmp_path: Path) -> None:
    snapshot = take_snapshot(write(tmp_path, CLEAN), str(tmp_path / "s"), max_chars=17)
    assert snapshot["examples"] == ["line 1: sentence of 47 characters, more than 17"]
    assert snapshot["kept"] == 1


def test_more_rows_than_one_batch_are_written_batch_by_batch(tmp_path: Path) -> None:
    kept = BATCH_ROWS + 1
    snapshot = take_snapshot(write(tmp_path, "s\t1\t\tA.\n" * kept + "bad\n"), str(tmp_path / "s"))
    assert load_rows(snapshot["path"])["line"].tolist() == list(range(1, kept + 1))
    assert (snapshot["rows_in"], snapshot["kept"], snapshot["quarantined"]) == (kept + 1, kept, 1)
    assert pq.ParquetFile(snapshot["path"]).metadata.num_row_groups == 2


def test_empty_file_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    with pytest.raises(VerdictError) as caught:
        take_snapshot(path, str(tmp_path / "s"))
    assert str(caught.value) == f"{path} is empty; expected tab-separated rows: source, label, mark, sentence"
    assert list((tmp_path / "s").iterdir()) == []


@pytest.mark.parametrize(("name", "fault"), [("none.tsv", "No such file or directory"), (".", "Is a directory")])
def test_unreadable_file_is_refused_and_leaves_nothing(tmp_path: Path, name: str, fault: str) -> None:
    path = str(tmp_path / name)
    with pytest.raises(VerdictError) as caught:
        take_snapshot(path, str(tmp_path / "s"))
    assert str(caught.value) == f"{path} cannot be read ({fault}); expected a readable file of CoLA rows"
    assert list((tmp_path / "s").iterdir()) == []


def test_digest_of_a_run_names_all_its_files(tmp_path: Path) -> None:
    train, holdout = write(tmp_path, CLEAN, "a"), write(tmp_path, "s\t1\t\tOther.\n", "b")
    data = take_snapshots(train, holdout, None, str(tmp_path / "s"), 2_000)
    assert data["reported"] is None
    assert data["digest"] == digest_of({"train": data["train"]["digest"], "holdout": data["holdout"]["digest"]})
    assert take_snapshots(holdout, train, None, str(tmp_path / "s"), 2_000)["digest"] != data["digest"]


def test_reported_holdout_is_snapshot_too_and_counts_in_the_digest(tmp_path: Path) -> None:
    train, other = write(tmp_path, CLEAN, "a"), write(tmp_path, "s\t1\t\tOther.\n", "b")
    plain = take_snapshots(train, other, None, str(tmp_path / "s"), 2_000)
    data = take_snapshots(train, other, other, str(tmp_path / "s"), 2_000)
    assert data["reported"] == data["holdout"]
    assert data["digest"] != plain["digest"]


@pytest.mark.parametrize("content", [None, b"", b"garbage", b"PAR1" * 20], ids=["missing", "empty", "text", "magic"])
def test_broken_snapshot_is_refused_with_the_way_out(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "rows.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VerdictError) as caught:
        load_rows(str(path))
    assert str(caught.value).startswith(f"snapshot {path} cannot be read (")
    assert str(caught.value).endswith("); delete it and run again")


def test_files_with_the_same_good_rows_keep_their_own_bad_ones(tmp_path: Path) -> None:
    found = []
    for name, bad in (("one", "A\n"), ("two", "B\nC\n")):
        (tmp_path / name).write_text(f"x\t1\t\tHi.\n{bad}")
        found.append(take_snapshot(str(tmp_path / name), str(tmp_path / "s")))
    assert found[0]["digest"] == found[1]["digest"]
    assert [len(pd.read_parquet(snapshot["quarantine"] or "")) for snapshot in found] == [1, 2]
