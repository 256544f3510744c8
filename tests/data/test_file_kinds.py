"""What people bring as data: read with the same rows as CoLA's own format, or refused in one line that names it."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import pickle
import re
import shlex
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from tasks.core.column_options import parse_columns, parse_labels
from tasks.core.errors import DataRejected, UsageError
from tasks.data import arrow_records, compression
from tasks.data.cola_format import DEFAULT_LABELS, RowRules
from tasks.data.sentences import open_source, read_sentences
from tasks.data.snapshots import Snapshot, log_remedy, read_snapshot, write_snapshot
from tasks.data.table_format import TableFormat

ROWS = [
    {"source": "gj04", "label": 1, "mark": "", "sentence": 'He said "go", and Zoë went; 寿司 | NA.'},
    {"source": "bc01", "label": 0, "mark": "*", "sentence": "Him ran."},
]
TSV = "".join("\t".join(map(str, row.values())) + "\n" for row in ROWS)
DIGEST = hashlib.sha256(TSV.encode()).hexdigest()
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
FRAME = pd.DataFrame(ROWS)
NESTED = TableFormat({"text": "data.sentence", "label": "data.label", "source": "data.source", "mark": "data.mark"})


def csv_bytes(**options: Any) -> bytes:
    return FRAME.rename(columns=options.pop("columns", {})).to_csv(index=False, **options).encode()


def table_bytes(write: Callable[[pa.Table, Any], None], rows: list[dict[str, Any]] = ROWS) -> bytes:
    sink = io.BytesIO()
    write(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def write_stream(table: pa.Table, sink: Any) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def feather(codec: str) -> Callable[[pa.Table, Any], None]:
    return lambda table, sink: pyarrow.feather.write_feather(table, sink, compression=codec)


UPPER = {"sentence": "Sentence", "label": " LABEL", "source": "SOURCE", "mark": "Mark "}
READ: dict[str, tuple[str, bytes]] = {
    "TSV": ("a.tsv", TSV.encode()),
    "TSV under a header": ("a.tsv", csv_bytes(sep="\t", quoting=3)),
    "any ending": ("a.dat", TSV.encode()),
    "text with labels": ("a.txt", TSV.encode()),
    "CSV": ("a.csv", csv_bytes()),
    "byte order mark": ("a.csv", b"\xef\xbb\xbf" + csv_bytes()),
    "CSV with semicolons": ("a.csv", csv_bytes(sep=";")),
    "CSV with tabs": ("a.csv", csv_bytes(sep="\t")),
    "CSV with bars": ("a.csv", csv_bytes(sep="|")),
    "CSV whose first line says what separates": ("a.csv", b"\xef\xbb\xbfsep=;\r\n" + csv_bytes(sep=";")),
    "the same called .txt": ("a.txt", b"sep=,\n" + csv_bytes()),
    "TSV with commas": ("a.tsv", csv_bytes()),
    "names in other case": ("a.csv", csv_bytes(columns=UPPER)),
    "JSONL": ("a.jsonl", JSONL.encode()),
    "JSONL with blank lines": ("a.jsonl", JSONL.replace("\n", "\n\n \n").encode()),
    "JSONL names in other case": ("a.jsonl", JSONL.replace('"sentence"', '"Sentence"').encode()),
    "JSON lines called .json": ("a.json", JSONL.encode()),
    "JSON list": ("a.json", json.dumps(ROWS).encode()),
    "JSON list, indented": ("a.json", b"\xef\xbb\xbf\n" + json.dumps(ROWS, indent=2, ensure_ascii=False).encode()),
    "JSON list called .jsonl": ("a.jsonl", json.dumps(ROWS).encode()),
    "Parquet": ("a.parquet", table_bytes(pq.write_table)),
    "Parquet called .csv": ("a.csv", table_bytes(pq.write_table)),
    "Feather": ("a.feather", table_bytes(feather("lz4"))),
    "Feather, zstd": ("a.arrow", table_bytes(feather("zstd"))),
    "Arrow stream": ("a.arrow", table_bytes(write_stream)),
    "TSV, gzip": ("a.tsv.gz", gzip.compress(TSV.encode())),
    "TSV, gzip in two parts": (
        "a.tsv.gz",
        gzip.compress(TSV[:9].encode()) + gzip.compress(TSV[9:].encode()) + b"\0" * 9,
    ),
    "CSV, gzip": ("a.csv.gz", gzip.compress(csv_bytes())),
    "JSONL, gzip": ("a.jsonl.gz", gzip.compress(JSONL.encode())),
    "JSON list, gzip": ("a.json.gz", gzip.compress(json.dumps(ROWS).encode())),
    "text, gzip": ("a.txt.gz", gzip.compress(TSV.encode())),
    "TSV, zstd": ("a.tsv.zst", zstd(TSV.encode())),
    "TSV, zstd in two parts": ("a.tsv.zst", zstd(TSV[:9].encode()) + zstd(TSV[9:].encode())),
    "CSV with semicolons, zstd": ("a.csv.zst", zstd(csv_bytes(sep=";"))),
    "JSONL, bzip2": ("a.jsonl.bz2", bz2.compress(JSONL.encode())),
    "gzip without its ending": ("a.tsv", gzip.compress(TSV.encode())),
}


def snap(folder: Path, name: str, data: bytes, table_format: TableFormat = TableFormat()) -> Snapshot:  # noqa: B008
    (folder / name).write_bytes(data)
    return write_snapshot([str(folder / name)], str(folder / "snapshots"), table_format)


@pytest.mark.parametrize("kind", READ)
def test_the_same_rows_in_every_format_have_the_same_digest(tmp_path: Path, kind: str) -> None:
    name, data = READ[kind]
    snapshot = snap(tmp_path, name, data)
    assert (snapshot["kept"], snapshot["quarantined"], snapshot["digest"]) == (2, 0, DIGEST)
    source = open_source(str(tmp_path / name), format_name="tsv" if name == "a.dat" else "")
    if source.format_name != "txt":
        assert [row[4] for row in read_sentences(source)] == [row["sentence"] for row in ROWS]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", "".join(json.dumps({"data": row, "id": 7}) + "\n" for row in ROWS).encode()),
        ("a.json", json.dumps([{"data": row} for row in ROWS]).encode()),
        ("a.parquet", table_bytes(pq.write_table, [{"data": row} for row in ROWS])),
        ("a.arrow", table_bytes(feather("lz4"), [{"data": row} for row in ROWS])),
        ("a.csv", csv_bytes(columns={name: f"data.{name}" for name in FRAME})),
    ],
)
def test_nested_values_are_named_with_dots(tmp_path: Path, name: str, data: bytes) -> None:
    assert snap(tmp_path, name, data, NESTED)["digest"] == DIGEST
    with pytest.raises(UsageError, match=r"no column 'sentence' for the text; it has .*'data.sentence'.*: --columns"):
        snap(tmp_path, name, data)


@pytest.mark.parametrize(
    "name", ["web.csv", "my.web.csv.gz", "web.jsonl", "web.json.bz2", "web.txt", "web.arrow", "web.dat"]
)
def test_a_name_without_its_endings_is_the_source_of_rows_without_one(tmp_path: Path, name: str) -> None:
    plain = {".csv": b"text,label\nA.,1\n", ".arrow": table_bytes(write_stream, [{"text": "A.", "label": 1}])}
    suffix = next((suffix for suffix in (".csv", ".json", ".arrow") if suffix in name), "")
    data = plain.get(suffix, b'{"text": "A.", "label": 1}\n' if suffix else b"text\tlabel\nA.\t1\n")
    packed = gzip.compress(data) if name.endswith("gz") else bz2.compress(data) if name.endswith("bz2") else data
    rows = pq.read_table(snap(tmp_path, name, packed)["path"])
    assert rows["source"].to_pylist() == [name.partition(".csv")[0] if "my" in name else "web"]


def zip_of(*names: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name in names:
            archive.writestr(name, TSV)
    return sink.getvalue()


def tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        member = tarfile.TarInfo("a.tsv")
        member.size = len(TSV.encode())
        archive.addfile(member, io.BytesIO(TSV.encode()))
    return sink.getvalue()


def sqlite() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table rows (sentence, label)")
    return connection.serialize()


PAGE = b"\n<!DOCTYPE html>\n<html><title>Log in</title></html>\n"
FOREIGN: dict[str, tuple[bytes, str]] = {
    "Excel": (zip_of("[Content_Types].xml", "xl/workbook.xml"), "an Excel workbook (.xlsx); .* save the sheet as CSV"),
    "old Excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 504, "an old Excel workbook .*: save the sheet as CSV"),
    "OpenDocument": (zip_of("mimetype", "content.xml"), "an OpenDocument file; .*: save the sheet as CSV"),
    "Word": (zip_of("word/document.xml"), "a Word document; .*: save it as plain text"),
    "zip": (zip_of("a.tsv"), "a zip; .*: unpack it and name the file"),
    "zip that was cut": (zip_of("a.tsv")[:60], "a zip; .*: unpack it and name the file"),
    "tar": (tar(), "a tar archive; .*: unpack it"),
    "tar.gz": (gzip.compress(tar()), "a tar archive; .*: unpack it"),
    "gzip twice": (gzip.compress(gzip.compress(TSV.encode())), "compressed twice; .*: unpack it"),
    "xz": (lzma.compress(TSV.encode()), r"compressed with xz; .*: xz -dk \S+/a\."),
    "LZ4": (bytes(pa.compress(TSV.encode(), codec="lz4", asbytes=True)), "compressed with LZ4; .*: lz4 -d \\S+/a\\."),
    "SQLite": (sqlite(), "an SQLite database; .*: write the table: sqlite3 -csv -header \\S+/a\\."),
    "pickle": (pickle.dumps(ROWS), "a Python pickle, .*: write its table with pandas: DataFrame.to_parquet"),
    "web page": (PAGE, "a web page .*: download the file itself"),
    "web page, gzip": (gzip.compress(PAGE), "a web page .*: download the file itself"),
    "XML": (b'<?xml version="1.0"?><rows/>\n', "XML; .*: write its rows as CSV"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document; .*: copy its rows to a CSV file"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer, .*: git lfs pull"),
    "UTF-16": (
        TSV.encode("utf-16"),
        "in UTF-16; .*: iconv -f UTF-16 -t UTF-8 \\S+/a\\.\\w+ > data\\.(csv|tsv|txt|jsonl)$",
    ),
    "UTF-16, gzip": (gzip.compress(TSV.encode("utf-16")), "in UTF-16; .*: gzip -dk \\S+; iconv -f UTF-16"),
    "UTF-16, no mark": (b"a,b\n".decode().encode("utf-16-le") * 9, "in UTF-16LE; .*: iconv -f UTF-16LE"),
    "UTF-16, big end": (b"a,b\n".decode().encode("utf-16-be") * 9, "in UTF-16BE; .*: iconv -f UTF-16BE"),
    "NumPy": (b"\x93NUMPY\x01\0", "a NumPy array; .*"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file; .*"),
    "Avro": (b"Obj\x01", "an Avro file; .*"),
    "7z": (b"7z\xbc\xaf\x27\x1c", "a 7z archive; .*"),
    "RAR": (b"Rar!\x1a\x07\x00", "a RAR archive; .*"),
    "Feather 1": (b"FEA1\0\0\0\0", "a Feather file of version 1; .*"),
    "RTF": (b"{\\rtf1\\ansi", "a rich-text document; .*"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_table_is_named_in_one_line_whatever_its_name(tmp_path: Path, kind: str) -> None:
    data, expected = FOREIGN[kind]
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.txt", "a.xlsx"):
        with pytest.raises(UsageError, match=rf"{name} is {expected.replace('(.xlsx)', '.*')}") as caught:
            snap(tmp_path, name, data)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=expected.replace("(.xlsx)", ".*")):
        open_source(str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.json", b'{\n "data": []\n}', "is one JSON object; expected a list of objects, or one object a line: jq -c"),
        ("a.json", b'[{"text": "A.", "label": 1}, {"text', r"is a damaged JSON list \(it breaks off in record 2\)"),
        ("a.json", b'[{"text": "A.", "label": 1} {}]', r"is a damaged JSON list \(no ',' where one must stand\)"),
        ("a.json", b'[{"text": "A.", "label": 1}]]', r"is a damaged JSON list \(more text follows its end"),
        ("a.json", b'[{"text": "A.", "label": 1},]', r"is a damaged JSON list \(a comma before its end in record 1\)"),
        ("a.json", b'[{"a":' + b"[" * 100_000, r"is a damaged JSON list \("),
        ("a.parquet", table_bytes(pq.write_table)[:-9], "cannot be read as Parquet .*: download or copy it again"),
        ("a.arrow", table_bytes(feather("lz4"))[:-9], "cannot be read as Arrow .*: download or copy it again"),
        ("a.arrow", table_bytes(write_stream)[:-8], r"cannot be read as Arrow \(it has no end\); .*: download or copy"),
        ("a.arrow", table_bytes(write_stream)[:200], "cannot be read as Arrow .*; expected a whole Arrow file"),
        ("a.arrow", b"ARROW1\0\0" + b"\xff" * 40, "cannot be read as Arrow .*; expected a whole Arrow file"),
        (
            "a.parquet.gz",
            gzip.compress(table_bytes(pq.write_table)),
            "is a compressed parquet file; expected it unpack",
        ),
        ("a.tsv.gz", gzip.compress(TSV.encode() * 99)[:-12], r"cannot be unpacked with gzip \(Compressed file ended"),
        ("a.tsv.gz", gzip.compress(TSV.encode())[:-8] + b"\0" * 8, r"cannot be unpacked with gzip \(CRC check failed"),
        ("a.tsv.zst", zstd(TSV.encode())[:-3], r"cannot be unpacked with zstd \(Truncated compressed stream"),
        ("a.tsv.bz2", bz2.compress(TSV.encode())[:-3], r"cannot be unpacked with bz2 \(Truncated compressed stream"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    refusal = UsageError if expected.startswith(("is one JSON", "is a compressed parquet")) else DataRejected
    with pytest.raises(refusal, match=rf"{name} {expected}") as caught:
        snap(tmp_path, name, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", [gzip.compress, zstd, bz2.compress])
def test_what_a_compressed_file_may_hold_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(compression, "MAX_EXPANDED", 1 << 20)
    line = b"s\t1\t\tA sentence.\n"
    assert snap(tmp_path, "a.tsv", packed(line * 1_000))["kept"] == 1_000
    with pytest.raises(DataRejected, match=r"a.tsv holds more than 1,048,576 bytes, the limit of a compressed file"):
        snap(tmp_path, "a.tsv", packed(line * 100_000))


def test_what_an_arrow_file_takes_unpacked_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "MAX_EXPANDED", 1 << 20)
    monkeypatch.setattr(arrow_records, "_column", lambda batch, name: pytest.fail("a batch was unpacked"))
    rows = [{"text": "A" * 2_000, "label": 1}] * 1_000
    for codec in ("lz4", "zstd"):
        data = table_bytes(feather(codec), rows)
        assert len(data) * compression.EXPANSION < 2_000_000
        with pytest.raises(DataRejected, match="take more than"):
            snap(tmp_path, "a.arrow", data)


def test_records_of_a_json_list_that_are_no_rows_are_quarantined(tmp_path: Path) -> None:
    records = [1, {"text": "A.", "label": 1}, {"text": "B."}, {"text": "", "label": 1}, {"text": "\ud800", "label": 1}]
    snapshot = snap(tmp_path, "a.json", json.dumps(records).encode())
    assert (snapshot["kept"], snapshot["quarantined"]) == (1, 4)
    assert [example.partition("line ")[2] for example in snapshot["examples"]] == [
        "1: not a JSON object",
        "3: no 'label'",
        "4: empty sentence",
        "5: half of a surrogate pair",
    ]


def test_a_long_json_list_is_read_piece_by_piece(tmp_path: Path) -> None:
    records = [{"text": f"Number {number} é.", "label": number % 2, "n": [number]} for number in range(5_000)]
    snapshot = snap(tmp_path, "a.json", json.dumps(records, ensure_ascii=False).encode())
    assert (snapshot["kept"], snapshot["quarantined"]) == (5_000, 0)


@pytest.mark.parametrize("encoding", ["latin-1", "windows-1252", "utf-8"])
def test_rows_in_an_older_encoding_are_quarantined_and_the_iconv_command_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, encoding: str
) -> None:
    snapshot = snap(tmp_path, "a.tsv", "s\t1\t\tZoë ate.\ns\t1\t\tHe ran.\n".encode(encoding))
    log_remedy(snapshot)
    assert snapshot["quarantined"] == (encoding != "utf-8")
    path = tmp_path / "a.tsv"
    assert (
        caplog.messages
        == [
            f"{path}: 1 of 2 rows cannot be read (a.tsv line 1: not UTF-8); where they are Windows-1252 or Latin-1: "
            f"iconv -f WINDOWS-1252 -t UTF-8 {path} > a-new.tsv"
        ]
        * snapshot["quarantined"]
    )


TABLES_IN_JSON = {
    "columns": FRAME.to_json(),
    "columns, indented": FRAME.to_json(indent=2),
    "split": FRAME.to_json(orient="split"),
    "table": FRAME.to_json(orient="table"),
    "index": FRAME.to_json(orient="index"),
    "values": FRAME.to_json(orient="values"),
    "list": json.dumps(FRAME.to_dict("list")),
}


@pytest.mark.parametrize("kind", TABLES_IN_JSON)
def test_a_table_as_one_json_value_is_refused_with_the_command_that_writes_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with pytest.raises(UsageError, match=rf"a.json is JSON of .*orient='{kind.partition(',')[0]}' of pandas") as caught:
        snap(tmp_path, "a.json", TABLES_IN_JSON[kind].encode())
    program, option, script = shlex.split(str(caught.value).rpartition("one object a line: ")[2])
    monkeypatch.chdir(tmp_path)
    exec(script)
    columns = dict(zip(("source", "label", "mark", "text"), "0123", strict=True)) if kind == "values" else {}
    written = write_snapshot(["data.jsonl"], str(tmp_path / "snapshots"), TableFormat(columns))
    assert (program, option, written["digest"]) == ("python", "-c", DIGEST)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_list_in_a_json_object_is_refused_but_a_record_with_a_list_is_read(tmp_path: Path, name: str) -> None:
    wrapped = json.dumps({"version": 1, "data": ROWS}).encode()
    with pytest.raises(UsageError, match=rf"one JSON object with a list in it; .*: jq -c '.data\[\]' \S+{name} > data"):
        snap(tmp_path, name, wrapped)
    spans = [{"id": 7, "spans": [{"start": 0}], **row} for row in ROWS]
    assert snap(tmp_path, name, "".join(json.dumps(row) + "\n" for row in spans).encode())["digest"] == DIGEST
    assert snap(tmp_path, name, json.dumps({"text": "A.", "label": 1, "spans": [{"start": 0}]}).encode())["kept"] == 1


PAIRS = "".join(f"{sentence},{label}\n" for sentence, label in [("He ran.", 1), ("Him ran.", 0), ("She ran.", 1)])


@pytest.mark.parametrize(
    ("name", "text", "shown", "option"),
    [
        ("a.csv", PAIRS, "'He ran.', '1'", "text=1,label=2"),
        ("a.csv", PAIRS.replace(",", ";"), "'He ran.', '1'", "text=1,label=2"),
        ("a.tsv", PAIRS.replace(",", "\t"), "'He ran.', '1'", "text=1,label=2"),
        ("a.tsv", PAIRS, "'He ran.', '1'", "text=1,label=2"),
        ("a.csv", PAIRS.replace(",", ";").replace("ran", "ran, so"), "'He ran, so.', '1'", "text=1,label=2"),
        ("a.csv", "1,0,Him ran away.\n2,1,He ran away.\n", "'1', '0', 'Him ran away.'", "text=3,label=2"),
        ("a.csv", "He ran away.,good\nHim ran away.,bad\n", "'He ran away.', 'good'", "text=1,label=2"),
    ],
)
def test_a_table_without_header_is_named_and_read_by_the_numbers_of_its_columns(
    tmp_path: Path, name: str, text: str, shown: str, option: str
) -> None:
    with pytest.raises(UsageError, match="seems to have no header") as caught:
        snap(tmp_path, name, text.encode())
    assert str(caught.value) == (
        f"{tmp_path / name} seems to have no header, its first line is a row ({shown}); "
        f"expected the names of the columns, or their numbers: --columns {option}"
    )
    rules = RowRules(labels=DEFAULT_LABELS | {"good": 1, "bad": 0})
    snapshot = snap(tmp_path, name, text.encode(), TableFormat(parse_columns(option), rules))
    assert (snapshot["kept"], snapshot["quarantined"]) == (text.count("\n"), 0)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_other_names_of_columns_are_shown_apart_with_the_option_that_takes_them(tmp_path: Path, separator: str) -> None:
    text = PAIRS.replace(",", separator)
    for name in ("a.csv", "a.tsv"):
        with pytest.raises(
            UsageError, match="has no column 'sentence' for the text; it has 'Text_en', 'Rating': "
        ) as caught:
            snap(tmp_path, name, f"Text_en{separator}Rating\n{text}".encode())
        assert str(caught.value).endswith("--columns text=Text_en,label=Rating")
        named = TableFormat({"text": "Text_en", "label": "Rating"})
        assert snap(tmp_path, name, f"Text_en{separator}Rating\n{text}".encode(), named)["kept"] == 3


def test_sentences_without_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a.txt has one column \('He ran away.'\); expected a label beside each"):
        snap(tmp_path, "a.txt", b"He ran away.\nHim ran away.\nShe ran.\n")


@pytest.mark.parametrize(
    ("name", "rows", "reason", "remedy"),
    [
        ("a.csv", 'text,label\n"He\nran.",1\nHim ran.,0\n', "line break or tab", "replace line breaks and tabs in its"),
        ("a.csv", f"text,label\n{'x' * 2_001},1\nHim ran.,0\n", "sentence of 2001", "--set data.max_chars=N"),
        ("a.csv", "text,label\nHe\0 ran.,1\nHim ran.,0\n", "NUL", r"tr -d '\\000' < \S+a.csv > a-new.csv"),
        (
            "a.csv",
            "text,label\nHe, ran.,1\nHim ran.,0\n",
            "3 fields instead of 2",
            "quote those with a comma",
        ),
    ],
)
def test_what_to_do_about_a_frequent_fault_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, rows: str, reason: str, remedy: str
) -> None:
    log_remedy(snap(tmp_path, name, rows.encode()))
    (message,) = caplog.messages
    assert re.match(rf"\S+a.csv: 1 of 2 rows cannot be read \(a.csv line 2: {reason}.*\); .*{remedy}", message)


@pytest.mark.parametrize(
    ("data", "state"), [(b"", "is empty"), (b"sentence,label\n", "holds no row, perhaps a header")]
)
def test_a_file_without_rows_is_refused(tmp_path: Path, data: bytes, state: str) -> None:
    for name in ("a.csv", "a.tsv"):
        with pytest.raises(DataRejected, match=rf"{name} {state}.*; expected a row for each sentence: .*--data FILE"):
            snap(tmp_path, name, data.replace(b",", b"," if name == "a.csv" else b"\t"))


def test_the_detected_separator_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    snap(tmp_path, "a.csv", csv_bytes(sep=";"))
    assert caplog.messages == [f"{tmp_path / 'a.csv'}: columns are separated by semicolons"]


TOOLS: dict[str, tuple[str, str, str]] = {  # file, columns, labels
    "Google Forms": (
        "When,Is it right?,Sentence\n1,yes,He ran.\n2,no,Him ran.\n",
        "Sentence,Is it right?",
        "yes=1,no=0",
    ),
    "Google Sheets, blank rows": ("sentence,label,,\nHe ran.,1,,\nHim ran.,0,,\n,,,\n,,,\n", "", ""),
    "blank lines": ("sentence,label\n\nHe ran.,1\n\nHim ran.,0\n\n", "", ""),
    "spaces behind commas": ('sentence, label\n"He ran.", 1\n"Him ran.", 0\n', "", ""),
    "pandas' index, label first": (",label,sentence\n0,1,He ran.\n1,0,Him ran.\n", "", ""),
    "Label Studio": (
        "id,lead_time,sentiment,text\n1,2.5,good,He ran.\n2,2.5,bad,Him ran.\n",
        "text,sentiment",
        "good=1,bad=0",
    ),
    "doccano": (
        '{"id":1,"text":"He ran.","label":["good"]}\n{"id":2,"text":"Him ran.","label":["bad"],"Comments":[]}\n',
        "",
        "good=1,bad=0",
    ),
    "Prodigy": (
        '{"text":"He ran.","label":"OK","answer":"accept"}\n{"text":"Him ran.","label":"OK","answer":"reject"}\n',
        "text,answer",
        "accept=1,reject=0",
    ),
}


@pytest.mark.parametrize("kind", TOOLS)
def test_exports_of_everyday_tools_are_read(tmp_path: Path, kind: str) -> None:
    text, columns, labels = TOOLS[kind]
    named = dict(zip(("text", "label"), columns.split(","), strict=True)) if columns else {}
    rules = RowRules(labels=DEFAULT_LABELS | parse_labels(labels))
    name = "a.jsonl" if text.startswith("{") else "a.csv"
    rows = read_snapshot(snap(tmp_path, name, text.encode("utf-8-sig"), TableFormat(named, rules))["path"])
    assert rows[["sentence", "label"]].to_numpy().tolist() == [["He ran.", 1], ["Him ran.", 0]]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "a.csv",
            "# exported\nsentence,label\nA.,1\n",
            r"the names of its columns in line 2; .*: tail -n +2 \S+ > a-new.csv",
        ),
        ("a.csv", "sentence,label\rA.,1\r", r"no readable header .* CR alone: tr '\\r' '\\n' < \S+ > a-new.csv"),
        ("a.csv", "sentence\nA.\n", "no column 'label' .*; if it has no labels, name the files that have: --data FILE"),
    ],
)
def test_other_headers_are_named_with_what_to_do(tmp_path: Path, name: str, text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} has {expected.replace('+2', '[+]2')}"):
        snap(tmp_path, name, text.encode())


def test_doubled_quotes_of_a_tab_separated_table_are_read_as_they_are_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = 'sentence\tlabel\n"He said ""go""."\t1\nShe said "no".\t0\n'
    assert '""go""' in read_snapshot(snap(tmp_path, "a.tsv", text.encode())["path"])["sentence"][0]
    assert caplog.messages == [
        f"{tmp_path / 'a.tsv'}: 1 row with doubled quotes, which are read as they are; "
        "if they are CSV's, give the file the ending .csv"
    ]
