"""Every record of a table of any format is kept, or quarantined with a reason."""

import csv
import io
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st

from tasks.core.errors import DataRejected, UsageError, VerdictError
from tasks.data import arrow_records, cola_format, compression, json_records, record_readers
from tasks.data.cola_format import BYTE_ORDER_MARK, QuarantinedRow, Row, RowRules
from tasks.data.record_readers import parse_file
from tasks.data.snapshots import write_snapshot
from tasks.data.table_format import TableFormat

unhurried = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)  # slow is not wrong

HEADER = b"sentence,label\n"
NUMBERED = TableFormat(rules=RowRules(labels={"0": 0, "1": 1, "true": 1, "false": 0}))


def parse(path: Path, table_format: TableFormat = TableFormat()) -> list[Row | QuarantinedRow]:  # noqa: B008 (immutable)
    """Return the result of each record in the order of the file, without the labels of those that are quarantined."""
    results: list[Row | QuarantinedRow] = []
    for block in parse_file(path, table_format):
        results += [
            *(Row(**row) for row in block.kept.to_pylist()),
            *(row._replace(label=None) for row in block.quarantined),
        ]
    return sorted(results, key=lambda result: result.line)


def write(folder: Path, name: str, data: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def write_parquet(folder: Path, **columns: Any) -> Path:
    path = folder / "web.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def write_records(folder: Path, *records: Any) -> Path:
    return write(folder, "web.jsonl", "".join(json.dumps(record) + "\n" for record in records))


def test_two_columns_of_one_name_are_refused_in_every_format(tmp_path: Path) -> None:
    path = tmp_path / "twice.parquet"
    columns = [pa.array(["A."]), pa.array(["B."]), pa.array([1])]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "text", "label"]), path)
    for file in (path, write(tmp_path, "twice.csv", "text,text,label\nA.,B.,1\n")):
        with pytest.raises(UsageError, match="has 2 columns 'text'; expected one for the text"):
            parse(file)


# CSV


def test_csv_columns_are_found_by_their_names_in_any_order(tmp_path: Path) -> None:
    path = write(tmp_path, "web.csv", "id,mark,label,source,text\n7,*,0,gj04,Him ran.\n8,,1,bc01,He ran.\n")
    assert parse(path) == [Row(2, "gj04", 0, "*", "Him ran."), Row(3, "bc01", 1, "", "He ran.")]


def test_a_file_without_a_source_column_is_the_source_of_its_rows(tmp_path: Path) -> None:
    assert parse(write(tmp_path, "my.web.csv", HEADER + b"He ran.,1\n")) == [Row(2, "my.web", 1, "", "He ran.")]
    assert parse(write_records(tmp_path, {"text": "He ran.", "label": 1})) == [Row(1, "web", 1, "", "He ran.")]
    assert parse(write_parquet(tmp_path, text=["He ran."], label=[1])) == [Row(1, "web", 1, "", "He ran.")]


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ('"Yes, he ran."', "Yes, he ran."),
        ('"He said ""go""."', 'He said "go".'),
        ('He said "go".', 'He said "go".'),
        ('""""', '"'),
        ("NA", "NA"),
        (" null ", " null "),
        ("It's", "It's"),
        ("back\\slash\\", "back\\slash\\"),
        ("a;b", "a;b"),
        ("line\u2028separator\x0b\x0c\x85", "line\u2028separator\x0b\x0c\x85"),
    ],
)
def test_csv_fields_are_unquoted_and_nothing_else(tmp_path: Path, field: str, text: str) -> None:
    path = write(tmp_path, "web.csv", f"sentence,label\n{field},1\nNext.,0\n")
    assert parse(path) == [Row(2, "web", 1, "", text), Row(3, "web", 0, "", "Next.")]


def test_csv_line_ends_and_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    for end, mark, last in itertools.product(("\n", "\r\n"), (b"", BYTE_ORDER_MARK), (True, False)):
        text = end.join(["sentence,label", '"A, B.",1', "C.,0"]) + end * last
        path = write(tmp_path, "web.csv", mark + text.encode())
        expected = [Row(2, "web", 1, "", "A, B."), Row(3, "web", 0, "", "C.")]
        assert parse(path) == expected, (end, mark, last)


LIMIT = csv.field_size_limit()


@pytest.mark.parametrize(
    ("record", "kind", "reason"),
    [
        (b'"A\nB.",1', "line break", "line break or tab inside a field"),
        (b'"A\r\nB.",1', "line break", "line break or tab inside a field"),
        (b'"A\rB.",1', "line break", "line break or tab inside a field"),
        (b'"A\tB.",1', "line break", "line break or tab inside a field"),
        (b"A.", "field count", "1 field instead of 2"),
        (b"A, B.,1", "field count", "3 fields instead of 2"),
        (b" ", "field count", "1 field instead of 2"),
        (b"A.\xff,1", "encoding", "not UTF-8"),
        (b"\xed\xa0\x80,1", "encoding", "not UTF-8"),
        (b"A\0B.,1", "NUL", "NUL character"),
        (b"A.,yes", "label", "label 'yes' instead of 0 or 1"),
        (b"A.,", "label", "label '' instead of 0 or 1"),
        (b",1", "empty sentence", "empty sentence"),
        (b'" ",1', "empty sentence", "empty sentence"),
        (b"A" * 2_001 + b",1", "too long", "sentence of 2001 characters, more than 2000"),
        (b"A" * (LIMIT + 1) + b",1", "record", f"not valid CSV: field larger than field limit ({LIMIT})"),
        (b"A\rB.,1", "record", "not valid CSV: new-line character seen in unquoted field - do you need to"),
        (b'"A" B.,1', "record", "not valid CSV: ',' expected after '\"'"),
        (b'"A.,1', "record", "not valid CSV: "),
    ],
)
def test_a_bad_csv_record_is_quarantined_and_the_next_are_kept(
    tmp_path: Path, record: bytes, kind: cola_format.QuarantineReason, reason: str
) -> None:
    after = 4 + record.count(b"\n")
    kept = [
        Row(2, "web", 1, "", "First."),
        Row(after, "web", 0, "", "Next, then."),
        Row(after + 1, "web", 1, "", "Last."),
    ]
    for end in (b"\n", b"\r\n"):
        # Two more lines with quotes follow, so that a quote left open finds one that seems to close it.
        data = HEADER.strip() + end + b"First.,1" + end + record + end + b'"Next, then.",0' + end + b'"Last.",1' + end
        results = parse(write(tmp_path, "web.csv", data))
        bad = results.pop(1)
        assert isinstance(bad, QuarantinedRow), end
        assert (bad.line, bad.kind, bad.raw) == (3, kind, record), end
        assert bad.reason.startswith(reason), end
        assert results == kept, end


def test_a_quote_that_is_never_closed_gives_up_its_own_line_only(tmp_path: Path) -> None:
    rows = "".join(f"Row {i}.,{i % 2}\n" for i in range(2_000))
    results = parse(write(tmp_path, "web.csv", HEADER.decode() + 'One.,1\n"Two.,0\n' + rows))
    assert results[1] == QuarantinedRow(3, "record", "not valid CSV: unexpected end of data", b'"Two.,0')
    assert [result.line for result in results] == list(range(2, 2_004))
    assert [result.sentence for result in results if isinstance(result, Row)] == [
        "One.",
        *(f"Row {i}." for i in range(2_000)),
    ]


def test_lines_that_each_leave_a_quote_open_take_time_in_proportion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_readers, "MAX_RECORD_LINES", 4)
    line = b'a","c\n'  # opens a quote whether or not one is open
    path = write(tmp_path, "web.csv", HEADER + line * 20_000 + b"Last.,1\n")
    started = time.perf_counter()
    results = parse(path)
    assert time.perf_counter() - started < 10  # 0.1 s; 32 s without a limit to what an open quote may swallow
    assert [result.line for result in results] == list(range(2, 20_003))
    assert all(isinstance(result, QuarantinedRow) for result in results[:-1])
    assert results[-1] == Row(20_002, "web", 1, "", "Last.")


def test_a_long_csv_record_has_a_limit_of_lines(tmp_path: Path) -> None:
    def record(lines: int) -> str:
        return 'A.,1,"' + "note\n" * (lines - 1) + '"\n'

    header = "text,label,notes\n"
    fits = write(tmp_path, "web.csv", header + record(record_readers.MAX_RECORD_LINES) + "B.,0,\n")
    assert parse(fits) == [Row(2, "web", 1, "", "A."), Row(2 + record_readers.MAX_RECORD_LINES, "web", 0, "", "B.")]
    exceeds = parse(write(tmp_path, "web.csv", header + record(record_readers.MAX_RECORD_LINES + 1) + "B.,0,\n"))
    assert exceeds[0] == QuarantinedRow(2, "record", "not valid CSV: unexpected end of data", b'A.,1,"note')
    assert exceeds[-1] == Row(3 + record_readers.MAX_RECORD_LINES, "web", 0, "", "B.")


csv_pieces = st.sampled_from(
    [b",", b'"', b'""', b"\n", b"\r\n", b"\r", b"\0", b"A", b"1", b"0", b"\xff", b"\t", "é\u2028".encode()]
)


@unhurried
@given(st.lists(st.one_of(csv_pieces, st.just(b"A.,1\n"), st.just(b'"B",0\n')), max_size=40).map(b"".join))
@example(b'"')
@example(b"\n\n")
@example(b'"a\n"b\n"c')
@example(b"\0\xff")
def test_every_line_of_any_csv_file_is_in_exactly_one_record(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path, "web.csv", HEADER + data)
    try:
        results = parse(path)
    except UsageError:  # its first bytes are no text
        reject()
    # The records' lines follow each other up to the end of the file; between them are rows without a value.
    lines = list(io.BytesIO(data))
    starts = [*(result.line - 2 for result in results), len(lines)]
    assert not b"".join(lines[: starts[0]]).strip(b',"\r\n')
    assert starts == sorted(set(starts))
    for result, start, stop in zip(results, starts, starts[1:], strict=False):
        if isinstance(result, QuarantinedRow):
            found = b"".join(lines[start:stop])
            assert found.startswith(result.raw)
            assert not found.removeprefix(result.raw).strip(b',"\r\n')
        else:
            raw = b"".join(lines[start:stop]).decode()
            assert result.sentence.replace('"', "") in raw.replace('"', "")


def test_a_csv_file_of_a_header_alone_or_of_nothing_has_no_rows(tmp_path: Path) -> None:
    assert parse(write(tmp_path, "web.csv", HEADER)) == []
    assert parse(write(tmp_path, "web.csv", b"")) == []
    assert parse(write(tmp_path, "web.csv", BYTE_ORDER_MARK)) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'"sentence,label\nA.,1\n', "has no readable header line; expected the columns' names in it"),
        (b"\n" + HEADER, "has the names of its columns in line 2; expected them in the first line: tail -n +2 "),
        (b"\n", "has no column 'sentence' for the text; it has none: --columns text=NAME,label=NAME"),
        (b"A.,1\n", "seems to have no header, its first line is a row ('A.', '1'); expected the names of the columns"),
        (HEADER.decode().encode("utf-16"), "is in UTF-16; expected .tsv, .csv, "),
    ],
    ids=["open quote", "late", "blank", "none", "utf-16"],
)
def test_a_csv_file_without_a_usable_header_is_wrong_usage(tmp_path: Path, data: bytes, message: str) -> None:
    path = write(tmp_path, "web.csv", data)
    with pytest.raises(UsageError) as caught:
        parse(path)
    assert str(caught.value).startswith(f"{path} {message}")
    assert str(caught.value).isprintable()


# JSONL


def test_jsonl_columns_are_found_by_their_names(tmp_path: Path) -> None:
    path = write_records(
        tmp_path,
        {"label": 0, "id": 3, "sentence": "Him ran.", "mark": "*", "source": "gj04"},
        {"source": "bc01", "mark": "", "sentence": "Zoë — 寿司 🙂", "label": "1", "more": [1, {"a": None}]},
    )
    assert parse(path) == [Row(1, "gj04", 0, "*", "Him ran."), Row(2, "bc01", 1, "", "Zoë — 寿司 🙂")]
    other = TableFormat({"text": "more", "label": "id"})
    with pytest.raises(UsageError, match="has no column 'more' for the text; it has 'label', 'id', 'sentence'"):
        parse(path, other)


@pytest.mark.parametrize(
    ("label", "expected"),
    [("1", 1), ("0", 0), ("1.0", 1), ("0.0", 0), ("-0.0", 0), ('"1"', 1), ("1e0", 1), ("true", 1), ("false", 0)],
)
def test_labels_may_be_numbers_text_or_truth_values(tmp_path: Path, label: str, expected: int) -> None:
    path = write(tmp_path, "web.jsonl", f'{{"text": "A.", "label": {label}}}\n')
    assert parse(path, NUMBERED) == [Row(1, "web", expected, "", "A.")]


@pytest.mark.parametrize(
    ("record", "kind", "reason"),
    [
        (b"[1]", "record", "not a JSON object"),
        (b'"text"', "record", "not a JSON object"),
        (b"null", "record", "not a JSON object"),
        (b"{", "record", "not a JSON object"),
        (b"{'text': 'A.', 'label': 1}", "record", "not a JSON object"),
        (b'{"text": "A.", "label": 1},', "record", "not a JSON object"),
        (b'{"text": "A\tB", "label": 1}', "record", "not a JSON object"),
        (b"[" * 100_000, "record", "not a JSON object"),
        (b'{"text": ' * 100_000, "record", "not a JSON object"),
        (b'{"text": "A.", "label": 1' + b"0" * 5_000 + b"}", "record", "not a JSON object"),
        (BYTE_ORDER_MARK + b'{"text": "A.", "label": 1}', "record", "not a JSON object"),
        (b"{}", "field count", "no 'sentence'"),
        (b'{"text": "A."}', "field count", "no 'label'"),
        (b'{"text": "\xff", "label": 1}', "encoding", "not UTF-8"),
        (rb'{"text": "A\ud800", "label": 1}', "record", "half of a surrogate pair"),
        (rb'{"text": "A.", "label": "\udfff"}', "record", "half of a surrogate pair"),
        (rb'{"text": "A\u0000", "label": 1}', "NUL", "NUL character"),
        (rb'{"text": "A\nB", "label": 1}', "line break", "line break or tab inside a field"),
        (rb'{"text": "A\tB", "label": 1}', "line break", "line break or tab inside a field"),
        (b'{"text": null, "label": 1}', "empty sentence", "empty sentence"),
        (b'{"text": "", "label": 1}', "empty sentence", "empty sentence"),
        (b'{"text": 1, "label": 1}', "record", "sentence is int, not text"),
        (b'{"text": true, "label": 1}', "record", "sentence is bool, not text"),
        (b'{"text": ["A."], "label": 1}', "record", "sentence is list, not text"),
        (b'{"text": {"A": 1}, "label": 1}', "record", "sentence is dict, not text"),
        (b'{"text": "A.", "label": null}', "label", "label '' instead of 0 or 1"),
        (b'{"text": "A.", "label": 2}', "label", "label '2' instead of 0 or 1"),
        (b'{"text": "A.", "label": 0.5}', "label", "label '0.5' instead of 0 or 1"),
        (b'{"text": "A.", "label": NaN}', "label", "label 'nan' instead of 0 or 1"),
        (b'{"text": "A.", "label": -Infinity}', "label", "label '-inf' instead of 0 or 1"),
        (b'{"text": "A.", "label": 1e308}', "label", "label '10000000000000000109' instead of 0 or 1"),
        (b'{"text": "A.", "label": true}', "label", "label 'true' instead of 0 or 1"),
        (b'{"text": "A.", "label": [1, 0]}', "label", "label '[1, 0]' instead of 0 or 1"),
    ],
    ids=lambda value: value[:30].decode("latin-1") if isinstance(value, bytes) else None,
)
def test_a_bad_jsonl_record_is_quarantined_and_the_next_are_kept(
    tmp_path: Path, record: bytes, kind: cola_format.QuarantineReason, reason: str
) -> None:
    good = b'{"text": "A.", "label": 1}'
    path = write(tmp_path, "web.jsonl", b"\n".join([good, record, good]))
    assert parse(path) == [
        Row(1, "web", 1, "", "A."),
        QuarantinedRow(2, kind, reason, record),
        Row(3, "web", 1, "", "A."),
    ]


def test_jsonl_line_ends_and_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    names = ("web.jsonl", "web.ndjson", "web.JSONL")
    for end, mark, name in itertools.product(("\n", "\r\n"), (b"", BYTE_ORDER_MARK), names):
        text = end.join(['{"text": "A.", "label": 1}', '{"text": "B.", "label": 0}'])
        found = parse(write(tmp_path, name, mark + text.encode()))
        assert found == [Row(1, "web", 1, "", "A."), Row(2, "web", 0, "", "B.")], (end, mark, name)


def test_a_jsonl_file_of_nothing_has_no_rows(tmp_path: Path) -> None:
    assert parse(write(tmp_path, "web.jsonl", b"")) == []
    assert parse(write(tmp_path, "web.jsonl", BYTE_ORDER_MARK)) == []


def test_jsonl_columns_are_those_of_each_object(tmp_path: Path) -> None:
    path = write_records(
        tmp_path,
        [1],
        {"text": "A.", "label": 1},
        {"text": "B.", "label": 0, "source": "x", "mark": "*"},
        {"sentence": "C.", "label": 0},
        {"sentence": "D.", "text": "no", "label": 1, "mark": "?"},
    )
    assert parse(path)[1:] == [
        Row(2, "web", 1, "", "A."),
        Row(3, "x", 0, "*", "B."),
        Row(4, "web", 0, "", "C."),
        Row(5, "web", 1, "?", "D."),
    ]


@pytest.mark.parametrize(
    ("record", "reason"),
    [({"text": "A.", "tag": 1}, "no 'label'"), ({"label": 1}, "no 'sentence'"), ({"tag": "x"}, "no 'sentence'")],
)
def test_a_jsonl_object_that_lacks_a_column_is_quarantined_at_any_position(
    tmp_path: Path, record: dict[str, Any], reason: str
) -> None:
    for position in range(3):
        records = [{"text": "A.", "label": 1}] * 2
        records.insert(position, record)
        results = parse(write_records(tmp_path, *records))
        expected = QuarantinedRow(position + 1, "field count", reason, json.dumps(record).encode())
        assert [result for result in results if isinstance(result, QuarantinedRow)] == [expected], position
        assert len(results) == 3, position


def test_each_jsonl_object_needs_the_named_columns(tmp_path: Path) -> None:
    path = write_records(
        tmp_path,
        {"body": "A.", "label": 1},
        {"body": "B.", "label": 1, "site": "x"},
        {"text": "C.", "label": 1, "site": "x"},
    )
    results = parse(path, TableFormat({"text": "body", "source": "site"}))
    assert [result[2:] if isinstance(result, Row) else result.reason for result in results] == [
        "no 'site'",
        (1, "", "B."),
        "no 'body'",
    ]


def test_a_jsonl_file_without_any_object_that_fits_is_wrong_usage_and_shows_the_first(tmp_path: Path) -> None:
    path = write_records(tmp_path, [1], {"body": "A.", "label": 1}, {"title": "B."})
    with pytest.raises(UsageError) as caught:
        parse(path)
    assert str(caught.value) == (
        f"{path} has no column 'sentence' for the text; it has 'body', 'label': --columns text=body,label=label"
    )
    with pytest.raises(UsageError, match="has no column 'gold' for the label; it has 'body', 'label'"):
        parse(path, TableFormat({"text": "body", "label": "gold"}))
    with pytest.raises(UsageError, match="has no column 'sentence' for the text; it has none"):
        parse(write(tmp_path, "empty.jsonl", "{}\n"))
    assert [type(result) for result in parse(path, TableFormat({"text": "body"}))] == [
        QuarantinedRow,
        Row,
        QuarantinedRow,
    ]


def test_blank_lines_of_jsonl_are_no_records_and_keep_the_numbers_of_the_others(tmp_path: Path) -> None:
    path = write(tmp_path, "web.jsonl", '\n{"text": "A.", "label": 1}\n \r\n\t\n{"text": "B.", "label": 0}\n\n')
    assert parse(path) == [Row(2, "web", 1, "", "A."), Row(5, "web", 0, "", "B.")]


def test_a_json_record_of_megabytes_is_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_records, "MAX_JSON_BYTES", 100)
    path = tmp_path / "web.jsonl"
    long = b'{"text": "A.", "label": 1, "more": [' + b"[]," * 30 + b"1]}"
    path.write_bytes(long + b'\n{"text": "A.", "label": 1}\n')
    assert parse(path) == [
        QuarantinedRow(1, "too long", "JSON of more than 100 bytes", long),
        Row(2, "web", 1, "", "A."),
    ]


# Parquet


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([1, 0], pa.int64()),
        ([1, 0], pa.uint8()),
        ([1.0, 0.0], pa.float64()),
        ([True, False], pa.bool_()),
        (["1", "0"], pa.string()),
        (["1", "0"], pa.large_string()),
    ],
    ids=str,
)
def test_parquet_labels_of_every_type_are_read(tmp_path: Path, labels: list[Any], kind: pa.DataType) -> None:
    path = write_parquet(tmp_path, label=pa.array(labels, kind), text=["A.", "B."])
    assert parse(path, NUMBERED) == [Row(1, "web", 1, "", "A."), Row(2, "web", 0, "", "B.")]


def test_parquet_labels_and_sources_may_be_categories(tmp_path: Path) -> None:
    def coded(*values: str) -> pa.Array:
        return pa.array(values).dictionary_encode()

    path = write_parquet(tmp_path, label=coded("bad", "good"), text=coded("A.", "B."), source=coded("x", "x"))
    table_format = TableFormat(rules=RowRules(labels={"good": 1, "bad": 0}))
    assert parse(path, table_format) == [Row(1, "x", 0, "", "A."), Row(2, "x", 1, "", "B.")]


def test_bad_parquet_records_are_quarantined_with_their_values(tmp_path: Path) -> None:
    text = ["A.", None, "", "A\0B", "A\nB", "C."]
    path = write_parquet(tmp_path, text=text, label=[1, 1, 0, 0, 1, None], ignored=list(range(6)))
    assert parse(path) == [
        Row(1, "web", 1, "", "A."),
        QuarantinedRow(2, "empty sentence", "empty sentence", b'{"text": null, "label": 1}'),
        QuarantinedRow(3, "empty sentence", "empty sentence", b'{"text": "", "label": 0}'),
        QuarantinedRow(4, "NUL", "NUL character", rb'{"text": "A\u0000B", "label": 0}'),
        QuarantinedRow(5, "line break", "line break or tab inside a field", rb'{"text": "A\nB", "label": 1}'),
        QuarantinedRow(6, "label", "label '' instead of 0 or 1", b'{"text": "C.", "label": null}'),
    ]


@pytest.mark.parametrize(("values", "name"), [([1], "int"), ([0.5], "float"), ([b"A."], "bytes")])
def test_a_parquet_column_that_is_not_text_is_quarantined(tmp_path: Path, values: list[Any], name: str) -> None:
    (result,) = parse(write_parquet(tmp_path, text=values, label=[1]))
    assert isinstance(result, QuarantinedRow)
    assert (result.kind, result.reason) == ("record", f"sentence is {name}, not text")


def test_a_parquet_column_of_nested_values_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, text=[["A."]], label=[1], ignored=[{"a": 1}])
    with pytest.raises(UsageError, match=r"column 'text' of .* holds list<.*; expected one plain value"):
        parse(path)
    path = write_parquet(tmp_path, text=[{"a": 1}], label=[1])
    with pytest.raises(UsageError, match=r"no column 'sentence' for the text; it has 'label', 'text.a': --columns"):
        parse(path)


@pytest.mark.parametrize("kind", ["shared", "compressed", "many", "fits"])
def test_a_small_parquet_file_of_very_much_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for module in (arrow_records, compression):
        monkeypatch.setattr(module, "MAX_EXPANDED", 1 << 20)
    monkeypatch.setattr(arrow_records, "PARQUET_BATCH", 100)
    rows = {"shared": 700, "compressed": 1, "many": 100_000, "fits": 400}[kind]
    sentence = {"shared": "A" * 2_000, "compressed": "A" * 1_100_000, "many": "A.", "fits": "A" * 2_000}[kind]
    text = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), [sentence])
    path = tmp_path / "web.parquet"
    pq.write_table(pa.table({"text": text, "label": pa.array([1] * rows, pa.int8())}), path, compression="zstd")
    assert path.stat().st_size * compression.EXPANSION < 1 << 20
    if kind == "fits":
        assert len(parse(path)) == rows
    else:
        with pytest.raises(VerdictError, match=r"take more than 1,048,576 bytes and 64 times") as caught:
            parse(path)
        assert "\n" not in str(caught.value)


def test_parquet_text_of_every_encoding_and_type_is_read(tmp_path: Path) -> None:
    words = [f"Number {number}." for number in range(300)] + [None, "Again."] * 50
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int16(), pa.large_string())):
        for dictionary in (True, False):
            table = pa.table({"text": pa.array(words, kind), "label": [1] * len(words)})
            pq.write_table(table, tmp_path / "x.parquet", use_dictionary=dictionary, row_group_size=90)
            assert [row.sentence if isinstance(row, Row) else None for row in parse(tmp_path / "x.parquet")] == words


def test_parquet_labels_of_other_values_are_quarantined(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, text=["A."] * 4, label=[0.5, float("nan"), float("inf"), -1.0])
    assert [result[2] for result in parse(path)] == [
        f"label '{label}' instead of 0 or 1" for label in ("0.5", "nan", "inf", "-1")
    ]


def test_named_parquet_columns_may_have_dots_and_two_roles(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, **{"a.b": ["A."], "label": [1], "a": [{"b": "no"}]})
    table_format = TableFormat({"text": "a.b", "source": "a.b"})
    assert parse(path, table_format) == [Row(1, "A.", 1, "", "A.")]


def test_more_parquet_records_than_one_batch_keep_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow_records, "PARQUET_BATCH", 5)
    monkeypatch.setattr(cola_format, "BLOCK_ROWS", 7)
    path = tmp_path / "web.parquet"
    pq.write_table(pa.table({"text": ["A.", ""] * 50, "label": [1] * 100}), path, row_group_size=11)
    blocks = list(parse_file(path, TableFormat()))
    assert [block.kept.num_rows + len(block.quarantined) for block in blocks] == [7] * 14 + [2]
    assert [result.line for result in parse(path)] == list(range(1, 101))


@pytest.mark.parametrize("damage", ["empty", "text", "magic", "cut", "no footer", "footer"])
def test_a_damaged_parquet_file_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    path = write_parquet(tmp_path, text=["A.", "B."], label=[1, 0])
    whole = path.read_bytes()
    content = {
        "empty": b"",
        "text": b"sentence,label\nA.,1\n",
        "magic": b"PAR1" * 20,
        "cut": whole[: len(whole) // 2],
        "no footer": whole[:-8],
        "footer": whole[:-40] + b"\x0f\x1b\n" * 10 + whole[-10:],
    }[damage]
    path.write_bytes(content)
    with pytest.raises(DataRejected) as caught:
        parse(path)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read as Parquet (")
    assert message.endswith("); expected a whole Parquet file: download or copy it again")
    assert message.isprintable()


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**30], pa.date32()),
        pa.array([2**62], pa.timestamp("ms")),
        pa.array([0], pa.timestamp("ms", "Atlantis/Capital")),
        pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers()),
    ],
    ids=["date", "time", "zone", "encoding"],
)
def test_parquet_values_that_cannot_be_are_refused_in_one_line(tmp_path: Path, column: pa.Array) -> None:
    path = write_parquet(tmp_path, text=["A."], label=[1], source=column)
    with pytest.raises(VerdictError, match="cannot be read as Parquet") as caught:
        parse(path)
    assert str(caught.value).isprintable()


def test_a_parquet_file_without_needed_columns_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no column 'label' for the label; it has 'text', 'gold': --columns"):
        parse(write_parquet(tmp_path, text=["A."], gold=[1]))
    assert parse(write_parquet(tmp_path, text=pa.array([], pa.string()), label=pa.array([], pa.int8()))) == []


# Tab-separated files


def test_a_headed_and_a_headless_file_go_together(tmp_path: Path) -> None:
    headed = write(tmp_path, "web.tsv", 'gold\tid\toriginal\n1\t7\t"A, B.\nbad\t8\tC.\n0\t9\n')
    headless = write(tmp_path, "cola.tsv", "gj04\t0\t*\tHim ran.\n")
    table_format = TableFormat({"text": "original", "label": "gold"})
    assert parse(headed, table_format) == [
        Row(2, "web", 1, "", '"A, B.'),
        QuarantinedRow(3, "label", "label 'bad' instead of 0 or 1", b"bad\t8\tC."),
        QuarantinedRow(4, "field count", "2 fields instead of 3", b"0\t9"),
    ]
    assert parse(headless, table_format) == [Row(1, "gj04", 0, "*", "Him ran.")]
    snapshot = write_snapshot([str(headed), str(headless)], str(tmp_path / "s"), table_format)
    assert (snapshot["rows_in"], snapshot["kept"], snapshot["quarantined"]) == (4, 2, 2)


def test_line_ends_and_byte_order_mark_do_not_hide_a_header(tmp_path: Path) -> None:
    for end, mark in itertools.product((b"\n", b"\r\n"), (b"", BYTE_ORDER_MARK)):
        lines = [b"label\toriginal", b"1\tA.", b"0\tB.\xff", b"0\tA\rB"]
        path = write(tmp_path, "web.txt", mark + end.join(lines))
        assert parse(path, TableFormat({"text": "original"})) == [
            Row(2, "web", 1, "", "A."),
            QuarantinedRow(3, "encoding", "not UTF-8", b"0\tB.\xff"),
            QuarantinedRow(4, "line break", "line break or tab inside a field", b"0\tA\rB"),
        ], (end, mark)


@pytest.mark.parametrize(
    ("header", "line", "row"),
    [
        (b"source\tlabel\tmark\tsentence", b"gj04\t1\t*\tHe ran.", Row(2, "gj04", 1, "*", "He ran.")),
        (b"sentence\tlabel", b"He ran.\t0", Row(2, "web", 0, "", "He ran.")),
        (b"id\tlabel\ttext", b"7\t1\tHe ran.", Row(2, "web", 1, "", "He ran.")),
    ],
)
def test_default_names_are_a_header_without_an_option(tmp_path: Path, header: bytes, line: bytes, row: Row) -> None:
    for end, mark in itertools.product((b"\n", b"\r\n"), (b"", BYTE_ORDER_MARK)):
        path = write(tmp_path, "web.tsv", mark + header + end + line + end)
        assert parse(path) == parse(path, TableFormat({"label": "label"})) == [row], (end, mark)


@pytest.mark.parametrize(
    "first",
    [
        "source\tlabel\tmark\tbody",
        "sentence\tmark",
        "sentence",
        "",
        "gj04\t2\t\tA.",
    ],
)
def test_without_usual_names_a_first_line_is_a_row_like_any_other(tmp_path: Path, first: str) -> None:
    path = write(tmp_path, "cola.tsv", f"{first}\ngj04\t1\t\tHe ran.\n")
    quarantined, row = parse(path)
    assert isinstance(quarantined, QuarantinedRow)
    assert (quarantined.line, quarantined.raw) == (1, first.encode())
    assert row == Row(2, "gj04", 1, "", "He ran.")


@pytest.mark.parametrize("columns", [{}, {"text": "sentence"}])
def test_a_row_of_cola_is_never_a_header(tmp_path: Path, columns: dict[str, str]) -> None:
    path = write(tmp_path, "cola.tsv", "label\t1\t\tsentence\ngj04\t1\t\tHe ran.\n")
    assert parse(path, TableFormat(columns)) == [Row(1, "label", 1, "", "sentence"), Row(2, "gj04", 1, "", "He ran.")]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": "bdy"}, "has no column 'bdy' for the text; it has 'body', 'label', 'site'"),
        ({"text": "body", "label": "lable"}, "has no column 'lable' for the label; it has 'body', 'label', 'site'"),
        ({"label": "label"}, "has no column 'sentence' for the text; it has 'body', 'label', 'site'"),
    ],
)
def test_a_mistyped_column_lists_those_of_a_headed_tsv_file(
    tmp_path: Path, columns: dict[str, str], message: str
) -> None:
    path = write(tmp_path, "web.tsv", "body\tlabel\tsite\nA.\t1\tx\n")
    with pytest.raises(UsageError, match=message):
        parse(path, TableFormat(columns))
    cola = write(tmp_path, "cola.tsv", "gj04\t0\t*\tHim ran.\n")
    assert parse(cola, TableFormat(columns)) == [Row(1, "gj04", 0, "*", "Him ran.")]


def test_named_labels_do_not_turn_the_first_row_into_a_header(tmp_path: Path) -> None:
    path = write(tmp_path, "web.tsv", "s\tgood\t\tA.\n")
    table_format = TableFormat({"text": "sentence"}, RowRules(labels={"good": 1, "bad": 0}))
    assert parse(path, table_format) == [Row(1, "s", 1, "", "A.")]


def test_headed_tsv_files_need_no_columns_beside_a_headless_one(tmp_path: Path) -> None:
    files = [
        write(tmp_path, "web.tsv", "sentence\tlabel\nA.\t1\n"),
        write(tmp_path, "cola.tsv", "gj04\t0\t*\tHim ran.\n"),
    ]
    snapshot = write_snapshot([str(file) for file in files], str(tmp_path / "s"))
    assert (snapshot["rows_in"], snapshot["kept"], snapshot["empty_files"]) == (2, 2, [])


def test_a_file_that_the_system_cannot_open_is_its_error(tmp_path: Path) -> None:
    for name in ("none.csv", "none.tsv", "none.parquet"):
        with pytest.raises(FileNotFoundError):
            parse(tmp_path / name)


# All formats


def test_length_limit_and_labels_hold_in_every_format(tmp_path: Path) -> None:
    table_format = TableFormat(rules=RowRules(3, {"good": 1, "bad": 0}))
    files = [
        write(tmp_path, "web.csv", "text,label\nééé,good\nabcd,bad\nabc,1\n"),
        write_records(
            tmp_path,
            {"text": "ééé", "label": "good"},
            {"text": "abcd", "label": "bad"},
            {"text": "abc", "label": 1},
        ),
        write_parquet(tmp_path, text=["ééé", "abcd", "abc"], label=["good", "bad", "1"]),
        write(tmp_path, "web.tsv", "s\tgood\t\tééé\ns\tbad\t\tabcd\ns\t1\t\tabc\n"),
    ]
    for path in files:
        first, second, third = parse(path, table_format)
        assert isinstance(first, Row)
        assert (first.label, first.sentence) == (1, "ééé")
        assert second[1:3] == ("too long", "sentence of 4 characters, more than 3")
        assert third[1:3] == ("label", "label '1' instead of bad or good")


@pytest.mark.parametrize(
    ("name", "header", "long", "row", "table_format"),
    [
        ("web.csv", b"text,label\n", b"A,1," + b"x," * 300, b"B.,0\n", TableFormat()),
        ("web.jsonl", b"", b'{"text": "A", "label": 1}' + b" " * 600, b'{"text": "B.", "label": 0}\n', TableFormat()),
        ("web.tsv", b"text\tlabel\tmore\n", b"A\t1\t" + b"x" * 600, b"B.\t0\t\n", TableFormat({"text": "text"})),
    ],
)
def test_of_an_endless_line_only_a_beginning_is_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    header: bytes,
    long: bytes,
    row: bytes,
    table_format: TableFormat,
) -> None:
    for module in (cola_format, record_readers):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 50)
    first = 2 if header else 1
    quarantined = [QuarantinedRow(first + i, "too long", "line of more than 50 bytes", long[:50]) for i in (1, 3)]
    kept = [Row(first + i, "web", 0, "", "B.") for i in (0, 2)]
    for end in (b"\n", b"\r\n"):
        results = parse(write(tmp_path, name, header + row + long + end + row + long), table_format)
        assert results == [kept[0], quarantined[0], kept[1], quarantined[1]], end


def test_deep_nesting_leaves_the_recursion_limit_alone(tmp_path: Path) -> None:
    limit = sys.getrecursionlimit()
    assert len(parse(write(tmp_path, "web.jsonl", b'{"a":' * 1_000_000))) == 1
    assert sys.getrecursionlimit() == limit
