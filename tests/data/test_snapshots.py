"""A snapshot holds every row of its files: kept under the digest of their content, or in quarantine with a reason."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st

from tasks.core.errors import DataRejected, UsageError, VerdictError
from tasks.data import cola_format as parsing
from tasks.data import snapshots
from tasks.data.cola_format import BYTE_ORDER_MARK, RowRules, format_rows
from tasks.data.snapshots import (
    MAX_EXAMPLES,
    QUARANTINE_SCHEMA,
    SNAPSHOT_SCHEMA,
    RowWriter,
    Snapshot,
    count_rows,
    iter_snapshot,
    read_snapshot,
    write_snapshot,
)
from tasks.data.table_format import TableFormat

unhurried = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])  # slow is not wrong

ROOT = Path(__file__).parents[2]
CLEAN = "gj04\t1\t\tThe sailors rode the breeze clear of the rocks.\ngj04\t0\t*\tThe sailors rode.\n"

pieces = st.sampled_from(
    [b"\t", b"\n", b"\r\n", b"\r", b"0", b"1", b"*", b"\0", b'"', b" ", b"\xff", BYTE_ORDER_MARK, "é\u2028".encode()]
)
files = st.lists(st.one_of(pieces, st.just(b"s\t1\t\tA word.\n"), st.binary(max_size=4)), max_size=40).map(b"".join)


def write(folder: Path, data: str | bytes, name: str = "data.tsv") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def snap(folder: Path, data: str | bytes, table_format: TableFormat = TableFormat()) -> Snapshot:  # noqa: B008 (immutable)
    """Write a file and take its snapshot."""
    return write_snapshot([write(folder, data)], str(folder / "snapshots"), table_format)


def quarantined(snapshot: Snapshot) -> list[dict[str, Any]]:
    return pq.read_table(snapshot["quarantine"]).to_pylist() if snapshot["quarantine"] else []


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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
    snapshot = snap(tmp_path, data)
    assert snapshot["digest"] == sha256(CLEAN.encode())
    assert (snapshot["rows_in"], snapshot["kept"], snapshot["quarantined"]) == (2, 2, 0)


def test_the_same_rows_have_the_same_digest_in_every_format(tmp_path: Path) -> None:
    rows = [("web", 1, "", 'He said "go", and Zoë went.'), ("web", 0, "", "寿司 NA")]
    names = ["source", "label", "mark", "sentence"]
    frame = pd.DataFrame(rows, columns=names)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet")
    lines = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    write(tmp_path, lines, "a.tsv")
    snapshots = [
        write_snapshot([str(tmp_path / f"a.{suffix}")], str(tmp_path / "s"))
        for suffix in ("csv", "jsonl", "parquet", "tsv")
    ]
    assert [snapshot["digest"] for snapshot in snapshots] == [sha256(lines.encode())] * 4
    assert [snapshot["kept"] for snapshot in snapshots] == [2] * 4


def test_snapshot_holds_the_rows_under_their_digest(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "snapshots"
    path = write(tmp_path, CLEAN)
    snapshot = write_snapshot([path], str(home))
    assert snapshot == {
        "digest": sha256(CLEAN.encode()),
        "path": str(home / f"{sha256(CLEAN.encode())}.parquet"),
        "files": [path],
        "empty_files": [],
        "quarantine_digest": None,
        "rows_in": 2,
        "kept": 2,
        "quarantined": 0,
        "reasons": {},
        "quarantine": None,
        "examples": [],
    }
    assert [file.name for file in home.iterdir()] == [f"{snapshot['digest']}.parquet"]
    assert read_snapshot(snapshot["path"]).to_dict("list") == {
        "file": ["data.tsv"] * 2,
        "line": [1, 2],
        "source": ["gj04"] * 2,
        "label": [1, 0],
        "mark": ["", "*"],
        "sentence": ["The sailors rode the breeze clear of the rocks.", "The sailors rode."],
    }
    assert pq.read_schema(snapshot["path"]).equals(SNAPSHOT_SCHEMA)


def test_text_that_looks_missing_comes_back_from_a_snapshot(tmp_path: Path) -> None:
    rows = read_snapshot(snap(tmp_path, "NA\t1\tnan\tnull\n")["path"])
    assert rows.iloc[0].tolist() == ["data.tsv", 1, "NA", 1, "nan", "null"]


def test_quarantine_holds_file_line_kind_reason_and_raw_bytes(tmp_path: Path) -> None:
    snapshot = snap(tmp_path, b"\xff\xfe\n" + CLEAN.encode() + b"s\t1\tthree\r\n")
    assert (snapshot["rows_in"], snapshot["kept"], snapshot["quarantined"]) == (4, 2, 2)
    quarantine = Path(snapshot["quarantine"] or "")
    assert quarantine.name == f"quarantine-{sha256(quarantine.read_bytes())}.parquet"
    assert pd.read_parquet(quarantine).to_dict("list") == {
        "file": ["data.tsv"] * 2,
        "line": [1, 4],
        "kind": ["encoding", "field count"],
        "reason": ["not UTF-8", "3 fields instead of 4"],
        "raw": [b"\xff\xfe", b"s\t1\tthree"],
    }
    assert pq.read_schema(quarantine).equals(QUARANTINE_SCHEMA)


def test_reasons_count_the_quarantined_rows_by_kind_most_common_first(tmp_path: Path) -> None:
    bad = ["one field", "s\t1\t\t", "s\t2\t\tA.", "s\t\t\tA.", "s\t3\t\tA.", "s\t1\t\t ", "s\t1\t\tA\0", "s\t1\t\tA\rB"]
    snapshot = snap(tmp_path, CLEAN + "\n".join(bad) + "\n\ufeff\t1\t\tA.\n" + "s\t1\t\t" + "x" * 2_001)
    assert list(snapshot["reasons"].items()) == [
        ("label", 3),
        ("empty sentence", 2),
        ("field count", 1),
        ("NUL", 1),
        ("line break", 1),
        ("byte order mark", 1),
        ("too long", 1),
    ]
    assert sum(snapshot["reasons"].values()) == snapshot["quarantined"] == snapshot["rows_in"] - snapshot["kept"]


@unhurried
@given(files.filter(lambda data: data.removeprefix(BYTE_ORDER_MARK)))
@example(b"\n")
@example(b"s\t1\t\tA.\r\ns\t0\t*\tB")
def test_every_line_of_any_file_is_stored_or_quarantined(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            snapshot = snap(Path(folder), data)
        except VerdictError:  # its first bytes are those of something else than text
            reject()
        kept = pq.read_table(snapshot["path"])
        bad = quarantined(snapshot)
        lines = data.removeprefix(BYTE_ORDER_MARK).removesuffix(b"\n").split(b"\n")
        assert snapshot["rows_in"] == snapshot["kept"] + snapshot["quarantined"] == len(lines)
        assert (snapshot["kept"], snapshot["quarantined"]) == (count_rows(snapshot["path"]), len(bad))
        assert sorted(kept["line"].to_pylist() + [row["line"] for row in bad]) == list(range(1, len(lines) + 1))
        assert snapshot["digest"] == sha256(format_rows(kept))
        assert all(row["raw"] == lines[row["line"] - 1].removesuffix(b"\r") for row in bad)


def test_digest_is_that_of_the_kept_rows(tmp_path: Path) -> None:
    clean = snap(tmp_path / "a", CLEAN)
    dirty = snap(tmp_path / "b", "oops\n" + CLEAN)
    assert dirty["digest"] == clean["digest"] == sha256(CLEAN.encode())
    assert read_snapshot(dirty["path"])["line"].tolist() == [2, 3]


def test_quarantined_rows_have_a_digest_of_their_own(tmp_path: Path) -> None:
    bad = "oops\n\ns\t1\tthree\n"
    snapshots = [snap(tmp_path / name, text) for name, text in (("a", bad), ("b", CLEAN + bad), ("c", bad + CLEAN))]
    assert {snapshot["quarantine_digest"] for snapshot in snapshots} == {sha256(bad.encode())}
    assert snap(tmp_path / "d", CLEAN)["quarantine_digest"] is None
    assert snap(tmp_path / "e", "\n")["quarantine_digest"] == sha256(b"\n")


def test_files_without_a_kept_row_are_named(tmp_path: Path) -> None:
    paths = [
        write(tmp_path, CLEAN, "one.tsv"),
        write(tmp_path, "", "two.tsv"),
        write(tmp_path, "bad\n", "three.tsv"),
        write(tmp_path, "sentence,label\n", "four.csv"),
        write(tmp_path, "bad\ns\t1\t\tA.\n", "five.tsv"),
    ]
    snapshot = write_snapshot(paths, str(tmp_path / "s"))
    assert snapshot["empty_files"] == ["two.tsv", "three.tsv", "four.csv"]
    assert write_snapshot(paths[2:3], str(tmp_path / "s"))["empty_files"] == ["three.tsv"]


def test_what_a_killed_process_left_is_swept_after_a_day(tmp_path: Path) -> None:
    home = tmp_path / "snapshots"
    old, fresh, other = (home / name for name in (".incoming-old", ".incoming-fresh", "kept"))
    for folder in (old, fresh, other):
        folder.mkdir(parents=True)
        (folder / "rows.parquet").write_text("half")
    yesterday = time.time() - 86_500
    for folder in (old, other):
        os.utime(folder, (yesterday, yesterday))
    snapshot = snap(tmp_path, CLEAN)
    assert {path.name for path in home.iterdir()} == {fresh.name, other.name, Path(snapshot["path"]).name}


def test_several_files_are_merged_in_order_and_each_row_remembers_its_own(tmp_path: Path) -> None:
    paths = [
        write(tmp_path, "bad\n" + CLEAN, "one.tsv"),
        write(tmp_path, "sentence,label\nHe ran.,1\n,0\n", "two.csv"),
        write(tmp_path, "", "three.tsv"),
        write(tmp_path, "s\t1\t\tLast.\n", "elsewhere/one.tsv"),
    ]
    snapshot = write_snapshot(paths, str(tmp_path / "s"))
    assert snapshot["files"] == paths
    assert (snapshot["rows_in"], snapshot["kept"], snapshot["quarantined"]) == (6, 4, 2)
    assert snapshot["digest"] == sha256(f"{CLEAN}two\t1\t\tHe ran.\ns\t1\t\tLast.\n".encode())
    rows = read_snapshot(snapshot["path"])
    assert list(zip(rows["file"], rows["line"], strict=True)) == [
        ("one.tsv", 2),
        ("one.tsv", 3),
        ("two.csv", 2),
        ("one.tsv", 1),
    ]
    assert [(row["file"], row["line"]) for row in quarantined(snapshot)] == [("one.tsv", 1), ("two.csv", 3)]
    assert snapshot["examples"] == ["one.tsv line 1: 1 field instead of 4", "two.csv line 3: empty sentence"]
    assert write_snapshot(paths[::-1], str(tmp_path / "s"))["digest"] != snapshot["digest"]


def test_examples_are_the_first_rejections_with_their_files_and_lines(tmp_path: Path) -> None:
    paths = [write(tmp_path, CLEAN + "bad\n" * 3, "a.tsv"), write(tmp_path, "bad\n" * 9 + CLEAN, "b.tsv")]
    snapshot = write_snapshot(paths, str(tmp_path / "s"))
    expected = [("a", 3), ("a", 4), ("a", 5), ("b", 1), ("b", 2)]
    assert snapshot["examples"] == [f"{name}.tsv line {line}: 1 field instead of 4" for name, line in expected]
    assert len(snapshot["examples"]) == MAX_EXAMPLES


def test_same_file_snapshots_to_the_same_bytes_twice(tmp_path: Path) -> None:
    first = snap(tmp_path, CLEAN + "bad\n")
    stored = {path.name: path.read_bytes() for path in (tmp_path / "snapshots").iterdir()}
    assert snap(tmp_path, CLEAN + "bad\n") == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "snapshots").iterdir()} == stored
    assert len(stored) == 2


def test_files_with_the_same_good_rows_keep_their_own_bad_ones(tmp_path: Path) -> None:
    one, two = snap(tmp_path, CLEAN + "A\n"), snap(tmp_path, CLEAN + "B\nC\n")
    assert one["digest"] == two["digest"]
    assert [row["raw"] for row in quarantined(one)] == [b"A"]
    assert [row["raw"] for row in quarantined(two)] == [b"B", b"C"]


def test_length_limit_and_label_names_reach_the_snapshot(tmp_path: Path) -> None:
    snapshot = snap(tmp_path, CLEAN + "s\tgood\t\tA.\n", TableFormat(rules=RowRules(17, {"0": 0, "1": 1, "good": 1})))
    assert snapshot["examples"] == ["data.tsv line 1: sentence of 47 characters, more than 17"]
    assert read_snapshot(snapshot["path"])["label"].tolist() == [0, 1]


def test_a_file_of_bad_rows_alone_has_a_snapshot_of_no_rows(tmp_path: Path) -> None:
    snapshot = snap(tmp_path, "bad\n\n")
    assert (snapshot["rows_in"], snapshot["kept"], snapshot["quarantined"]) == (2, 0, 2)
    assert snapshot["digest"] == sha256(b"")
    assert read_snapshot(snapshot["path"]).empty


def test_rows_are_written_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "READ_BYTES", 900)
    snapshot = snap(tmp_path, "s\t1\t\tA.\n" * 1_000 + "bad\n")
    assert read_snapshot(snapshot["path"])["line"].tolist() == list(range(1, 1_001))
    assert (snapshot["rows_in"], snapshot["kept"], snapshot["quarantined"]) == (1_001, 1_000, 1)
    assert pq.ParquetFile(snapshot["path"]).metadata.num_row_groups == 9


@pytest.mark.parametrize("data", [b"", BYTE_ORDER_MARK])
@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_empty_file_is_refused_and_leaves_nothing(tmp_path: Path, data: bytes, name: str) -> None:
    path = write(tmp_path, data, name)
    with pytest.raises(VerdictError) as caught:
        write_snapshot([path, path], str(tmp_path / "s"))
    assert str(caught.value) == (
        f"{path} {'holds no row, perhaps a header alone' if data else 'is empty'}; "
        "expected a row for each sentence: write it again, or name another: --data FILE"
    )
    assert caught.value.exit_code == 3
    assert list((tmp_path / "s").iterdir()) == []


@pytest.mark.parametrize(("name", "fault"), [("none.tsv", "No such file or directory"), (".", "Is a directory")])
def test_unreadable_file_is_refused_and_leaves_nothing(tmp_path: Path, name: str, fault: str) -> None:
    good, path = write(tmp_path, CLEAN), str(tmp_path / name)
    with pytest.raises(VerdictError) as caught:
        write_snapshot([good, path], str(tmp_path / "s"))
    assert str(caught.value) == f"{path} cannot be read ({fault}); expected a readable file of rows"
    assert list((tmp_path / "s").iterdir()) == []


def test_file_without_needed_columns_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    good, path = write(tmp_path, CLEAN), write(tmp_path, "a,b\n1,2\n", "web.csv")
    with pytest.raises(UsageError, match="has no column 'sentence' for the text; it has 'a', 'b'"):
        write_snapshot([good, path], str(tmp_path / "s"))
    assert list((tmp_path / "s").iterdir()) == []


def test_damaged_parquet_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    good, path = write(tmp_path, CLEAN), write(tmp_path, "PAR1", "web.parquet")
    with pytest.raises(VerdictError, match="cannot be read as Parquet"):
        write_snapshot([good, path], str(tmp_path / "s"))
    assert list((tmp_path / "s").iterdir()) == []


def test_a_file_name_that_is_no_utf8_is_refused_with_the_way_out(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.csv")
    with pytest.raises(VerdictError) as caught:
        write_snapshot([f"data/{name}"], str(tmp_path / "s"))
    assert str(caught.value) == r"'data/caf\udce9.csv' has a name that is not UTF-8; rename the file"
    assert list((tmp_path / "s").iterdir()) == []


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    with pytest.raises(VerdictError) as caught:
        snap(tmp_path, CLEAN)
    home = tmp_path / "snapshots"
    assert str(caught.value) == f"no space left for the snapshot in {home}; make room and run again"
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"", b"garbage", b"PAR1" * 20], ids=["missing", "empty", "text", "magic"])
@pytest.mark.parametrize("read", [read_snapshot, count_rows, lambda path: list(iter_snapshot(path))])
def test_broken_snapshot_is_refused_with_the_way_out(tmp_path: Path, content: bytes | None, read: Any) -> None:
    path = tmp_path / "rows.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VerdictError) as caught:
        read(str(path))
    assert str(caught.value).startswith(f"snapshot {path} cannot be read (")
    assert str(caught.value).endswith("); delete it and run again")
    assert str(caught.value).isprintable()


def test_a_snapshot_is_read_in_pieces_of_the_columns_wanted(tmp_path: Path) -> None:
    snapshot = snap(tmp_path, "".join(f"s\t1\t\tSentence {i}.\n" for i in range(10)))
    batches = list(iter_snapshot(snapshot["path"], ["sentence", "line"], rows=4))
    assert [batch.num_rows for batch in batches] == [4, 4, 2]
    assert pa.Table.from_batches(batches)["line"].to_pylist() == list(range(1, 11))
    assert batches[0].to_pylist()[0] == {"sentence": "Sentence 0.", "line": 1}
    assert count_rows(snapshot["path"]) == 10
    whole = pa.Table.from_batches(iter_snapshot(snapshot["path"]))
    assert whole.schema.names == SNAPSHOT_SCHEMA.names
    assert whole.to_pydict() == read_snapshot(snapshot["path"]).to_dict("list")


def test_rows_written_by_hand_have_the_digest_of_their_file(tmp_path: Path) -> None:
    snapshot = snap(tmp_path, CLEAN)
    table = pq.read_table(snapshot["path"])
    with RowWriter(tmp_path) as writer:
        writer.add(table.slice(0, 1))
        writer.add(table.slice(0, 0))
        writer.add(table.slice(1))
    assert (writer.count, writer.digest) == (2, snapshot["digest"])
    (tmp_path / "again").mkdir()
    assert pq.read_table(writer.publish(tmp_path / "again")).equals(table)


def test_labels_of_a_snapshot_are_small_numbers_without_gaps(tmp_path: Path) -> None:
    table = pq.read_table(snap(tmp_path, CLEAN + "x\n")["path"])
    assert table["label"].type == pa.int8()
    assert sum(column.null_count for column in table.columns) == 0
    assert pc.unique(table["file"].cast(pa.string())).to_pylist() == ["data.tsv"]


# Peak memory of snapshots, each beyond what was there before: of Python's objects, and of Arrow's buffers.
MEASURE = """
import json, sys, tracemalloc
import pyarrow as pa
from tasks.data import cola_format as parsing
from tasks.data import snapshots
from tasks.data import arrow_records as tables
from tasks.data.snapshots import write_snapshot
parsing.READ_BYTES, tables.PARQUET_BATCH, parsing.BLOCK_ROWS = 1 << 14, 256, 256
home, *files = sys.argv[1:]
write_snapshot(files, home + "-first")  # what is imported late is no memory of a file
tracemalloc.start()
peaks = {}
for file in files:
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    snapshot = write_snapshot([file], home)
    peaks[file.rsplit("/")[-1]] = tracemalloc.get_traced_memory()[1] - before
    assert snapshot["kept"] >= 1_000 and ("clean" in file or snapshot["quarantined"] > 0)
print(json.dumps(peaks | {"arrow": pa.default_memory_pool().max_memory()}))
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    found = []
    for rows in (2_000, 8_000):
        folder = tmp_path / str(rows)
        texts = [f"Sentence number {i} is long enough to be seen in a sum." for i in range(rows)]
        wide = [(text, "1?"[i % 2]) for i, text in enumerate(texts)]
        paths = [
            write(folder, "".join(f"s\t1\t\t{text}\n" for text in texts), "clean.tsv"),
            write(folder, "".join(f"s\t{label}\t\t{text}\n" for text, label in wide), "bad.tsv"),
            # The first quote is never closed, each line is nevertheless read on its own.
            write(folder, 'text,label\n"Open,1\n' + "".join(f"{text},{label}\n" for text, label in wide), "bad.csv"),
            write(folder, "".join(json.dumps({"text": text, "label": n}) + "\n" for text, n in wide), "bad.jsonl"),
            str(folder / "bad.parquet"),
        ]
        table = pa.table({"text": texts, "label": [label for _, label in wide]})
        pq.write_table(table, paths[-1], row_group_size=1_000)
        command = [sys.executable, "-c", MEASURE, str(folder / "s"), *paths]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
        size = min(Path(path).stat().st_size for path in paths[:-1])
    small, large = found
    assert set(small) == {*(Path(path).name for path in paths), "arrow"}
    assert all(large[name] < 1.5 * small[name] for name in small), found
    assert all(large[name] < size for name in large if name != "arrow"), found


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        VerdictError, match=r"folder .*file/snapshots cannot be made \(Not a directory\); name another: VERDICT_HOME"
    ):
        write_snapshot([write(tmp_path, CLEAN)], str(tmp_path / "file" / "snapshots"))


@pytest.mark.parametrize("name", ["in_domain_train.tsv", "web.csv", "web.jsonl"])
def test_a_long_file_of_hardly_any_rows_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(snapshots, "MAX_UNREADABLE", 1_000)
    monkeypatch.setattr(parsing, "BLOCK_ROWS", 500)
    head = {"web.csv": "text,label\n", "web.jsonl": '{"text": "A.", "label": 1}\n'}.get(name, "s\t1\t\tA.\n")
    path = write(tmp_path, head + "?\n" * 100_000, name)
    with pytest.raises(DataRejected, match=r"of its first 1500 rows cannot be read \(.* line 6: ") as caught:
        write_snapshot([str(path)], str(tmp_path / "s"))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "s").iterdir())


def test_a_long_file_whose_rows_are_mostly_good_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "MAX_UNREADABLE", 10)
    path = write(tmp_path, "s\t1\t\tA.\n" * 100 + "\n" * 90, "in_domain_train.tsv")
    assert write_snapshot([str(path)], str(tmp_path / "s"))["quarantined"] == 90
