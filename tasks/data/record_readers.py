"""Reads records of tab-separated, CSV, JSONL, Parquet and text files as rows, with labels or without.

Each format has one reader, which yields every record with the values of its columns by role, its bytes and its fault.
As in CoLA's own format each record is kept or quarantined with a reason, and nothing is repaired silently: a sentence
with a line break in it is quarantined, not glued.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.core.errors import UsageError, VerdictError, first_line
from tasks.data.cola_format import (
    BYTE_ORDER_MARK,
    MAX_LINE_BYTES,
    TSV_COLUMNS,
    Block,
    QuarantinedRow,
    QuarantineReason,
    Row,
    make_row,
    parse_tsv,
    read_lines,
    to_blocks,
    too_long,
)
from tasks.data.table_format import TableFormat, choose_columns, is_header, match_columns

FORMATS = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".txt": "txt"}
MAX_JSON_BYTES = 4 << 20  # of a record: parsed, it takes up to forty times as much memory
MAX_EXPANDED = 64 << 20  # bytes of the values of any Parquet file; of larger files, EXPANSION times their size
EXPANSION = 64
RECORD_BYTES = 64  # that a record of a Parquet file counts beside its text
TEXT_TYPES = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
PARQUET_BATCH = 10_000  # records of a Parquet file held in memory at a time
MAX_RECORD_LINES = 256  # lines of a CSV record; where a quote is never closed, so many are read in vain
PEEK_RECORDS = 1_000  # JSON objects of which at least one has the columns, where they are named correctly
UNLABELLED = "1"  # label of rows without one: they count as acceptable

ParsedRow = Row | QuarantinedRow
Fault = tuple[QuarantineReason, str]
Fields = tuple[int, list[str] | None, bytes, str]  # line, fields by position (None: not valid CSV), bytes, fault


class Record(NamedTuple):
    """One record as it was read.

    Args:
        line: number from 1; of Parquet, the record's.
        values: by role; empty where there is a fault.
        raw: bytes without the line end; of Parquet, the values by column.
        fault: why the record cannot be a row.
    """

    line: int
    values: Mapping[str, Any]
    raw: bytes | Mapping[str, Any]
    fault: Fault | None = None


def parse_file(path: Path, table_format: TableFormat) -> Iterator[Block]:
    """Parse a file as the suffix of its name says.

    With labels every other suffix means tab-separated; without, .txt means one sentence a line.

    Raises:
        UsageError: if a required column is missing.
        VerdictError: if a Parquet file is damaged.
        OSError: if the file cannot be read.
    """
    format_name = FORMATS.get(path.suffix.lower(), "tsv")
    if table_format.labelled and format_name == "txt":
        format_name = "tsv"
    with path.open("rb") as stream:
        if table_format.labelled and format_name == "tsv" and not _has_header(stream, table_format):
            yield from parse_tsv(stream, table_format.rules)
            return
        yield from to_blocks(read_rows(stream, format_name, table_format, str(path)))


def read_rows(stream: BinaryIO, format_name: str, table_format: TableFormat, path: str) -> Iterator[ParsedRow]:
    """Read each record as a row or a quarantined row, in order; the stream is read once, from here on.

    Args:
        stream: bytes; only Parquet needs seeking.
        format_name: txt, tsv, csv, jsonl or parquet.
        table_format: which columns are read and what a row must satisfy.
        path: for messages; its stem is the source of rows that have no source column.

    Raises:
        UsageError: if a required column is missing.
        VerdictError: if a Parquet file is damaged.
    """
    source = Path(path).stem if table_format.labelled else ""
    for record in _READERS[format_name](stream, table_format, path):
        row = _to_row(record, table_format, source)
        if isinstance(row, QuarantinedRow) and not isinstance(record.raw, bytes):
            row = row._replace(raw=_as_json(record.raw)[:MAX_LINE_BYTES])  # here, because few rows need it
        yield row


def is_utf8(text: str) -> bool:
    """Whether text has neither surrogate escapes of bytes that were not UTF-8 nor unpaired surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _to_row(record: Record, table_format: TableFormat, source: str) -> ParsedRow:
    """Check a record; one without a source column gets `source`."""
    line, values, raw, fault = record
    raw = raw if isinstance(raw, bytes) else b""
    if len(raw) > MAX_LINE_BYTES:
        return too_long(line, raw)
    if fault:
        return QuarantinedRow(line, *fault, raw)
    text = values["text"]
    if text is not None and not isinstance(text, str):
        return QuarantinedRow(line, "record", f"sentence is {type(text).__name__}, not text", raw)
    label = values["label"] if table_format.labelled else UNLABELLED
    fields = (_as_text(values.get("source", source)), _as_text(label), _as_text(values.get("mark")), _as_text(text))
    if not is_utf8("".join(fields)):
        return QuarantinedRow(line, "encoding", "not UTF-8", raw)
    return make_row(line, fields, raw, table_format.rules)


def _as_text(value: Any) -> str:
    """Write a value as in a text file: None as nothing, 1.0 as 1, booleans as true and false."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _as_json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")


def _decode(raw: bytes) -> str:
    """Decode a line; `is_utf8` finds bytes that are not UTF-8 afterwards."""
    return raw.decode("utf-8", "surrogateescape")


def _strip_end(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines with their ends, without a byte order mark at the start."""
    lines = read_lines(stream)
    first = next(lines, b"").removeprefix(BYTE_ORDER_MARK)
    return chain([first] if first else [], lines)


def _numbered(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line without its end)."""
    return enumerate(map(_strip_end, _lines(stream)), start=1)


def _has_header(stream: BinaryIO, table_format: TableFormat) -> bool:
    """Peek at the first line of a file; the stream is then back at its start."""
    first = next(_lines(stream), b"")
    stream.seek(0)
    return is_header(first, table_format)


def _read_text(stream: BinaryIO, table_format: TableFormat, path: str) -> Iterator[Record]:
    """Read one sentence a line."""
    for line, raw in _numbered(stream):
        yield Record(line, {"text": _decode(raw)}, raw)


def _read_tsv(stream: BinaryIO, table_format: TableFormat, path: str) -> Iterator[Record]:
    """Read tab-separated lines without quoting, under a header or in CoLA's own format."""
    lines = _numbered(stream)
    first = next(lines, None)
    if first is None:
        return
    if is_header(first[1], table_format):
        header = _decode(first[1].rstrip(b"\r")).split("\t")
    else:
        header, lines, table_format = TSV_COLUMNS, chain([first], lines), table_format._replace(columns={})
    records = ((line, _decode(raw).split("\t"), raw, "") for line, raw in lines)
    yield from _pick_fields(header, records, table_format, path)


def _read_csv(stream: BinaryIO, table_format: TableFormat, path: str) -> Iterator[Record]:
    """Read RFC 4180 records under a header."""
    records = _split_csv(stream)
    first = next(records, None)
    if first is None:
        return
    header = first[1]
    if header is None:
        raise UsageError(f"{path} has no readable header line; expected the columns' names in it")
    yield from _pick_fields(header, records, table_format, path)


def _split_csv(stream: BinaryIO) -> Iterator[Fields]:
    """Split RFC 4180 records; `line` is where a record starts.

    Where a quote is never closed, only its line is given up: the lines that it swallowed are read again.
    """
    fresh = _lines(stream)
    again: list[bytes] = []
    taken: list[bytes] = []

    def lines() -> Iterator[str]:
        while len(taken) < MAX_RECORD_LINES and (raw := again.pop() if again else next(fresh, b"")):
            taken.append(raw)
            yield _decode(raw)

    number = 1
    while True:
        taken.clear()
        try:
            fields: list[str] | None = next(csv.reader(lines(), strict=True))
            fault = ""
        except StopIteration:
            return
        except csv.Error as error:
            fields, fault = None, f"not valid CSV: {error}"
            again.extend(reversed(taken[1:]))
            del taken[1:]
        yield number, fields, _strip_end(b"".join(taken)), fault
        number += len(taken)


def _pick_fields(
    header: list[str], records: Iterator[Fields], table_format: TableFormat, path: str
) -> Iterator[Record]:
    """Take the chosen columns of records that must have as many fields as the header."""
    indices = {role: header.index(name) for role, name in choose_columns(header, table_format, path).items()}
    for line, fields, raw, fault in records:
        if fields is None:
            yield Record(line, {}, raw, ("record", fault))
        elif len(fields) != len(header):
            yield Record(line, {}, raw, ("field count", f"{len(fields)} fields instead of {len(header)}"))
        else:
            yield Record(line, {role: fields[index] for role, index in indices.items()}, raw)


def _read_jsonl(stream: BinaryIO, table_format: TableFormat, path: str) -> Iterator[Record]:
    """Read one JSON object a line; objects may have keys of their own.

    If none of the first PEEK_RECORDS has the columns, they are named wrongly and the first object's keys are shown.
    """
    first: dict[str, Any] | None = None
    matched = False
    for line, raw in _numbered(stream):
        values, fault = _parse_object(raw)
        if fault is None:
            first = values if first is None else first
            chosen, missing = match_columns(values, table_format)
            matched = matched or not missing
            fault = ("field count", f"no {missing[0][1]!r}") if missing else None
            values = {role: values[name] for role, name in chosen.items()}
        if line == PEEK_RECORDS and first is not None and not matched:
            choose_columns(first, table_format, path)
        yield Record(line, values, raw, fault)
    if first is not None and not matched:
        choose_columns(first, table_format, path)


def _parse_object(raw: bytes) -> tuple[dict[str, Any], Fault | None]:
    """Parse a line as a JSON object."""
    if len(raw) > MAX_JSON_BYTES:
        return {}, ("too long", f"JSON of more than {MAX_JSON_BYTES} bytes")
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return {}, ("encoding", "not UTF-8")
    except (ValueError, RecursionError):
        value = None
    return (value, None) if isinstance(value, dict) else ({}, ("record", "not a JSON object"))


def _read_parquet(stream: BinaryIO, table_format: TableFormat, path: str) -> Iterator[Record]:
    """Read the chosen columns of a Parquet table.

    A file of a few kilobytes may hold gigabytes, by compression or as one value that many records share. Text is read
    as dictionaries, so that records share it in memory too, and what it would take written out is bounded.
    """
    try:
        schema = pq.read_schema(stream)
        chosen = choose_columns(schema.names, table_format, path)
        names = list(dict.fromkeys(chosen.values()))
        _reject_nested(schema, names, path)
        file = pq.ParquetFile(stream, read_dictionary=names)
        left = max(MAX_EXPANDED, EXPANSION * stream.seek(0, 2))
        left -= _packed_bytes(file.metadata, names) + RECORD_BYTES * file.metadata.num_rows
        line = 0
        for batch in file.iter_batches(PARQUET_BATCH, columns=names) if left >= 0 else ():
            columns = [batch.column(name) for name in names]
            left -= sum(map(_expanded_bytes, columns))
            if left < 0:
                break
            for values in zip(*map(_to_list, columns), strict=True):
                record, line = dict(zip(names, values, strict=True)), line + 1
                yield Record(line, {role: record[name] for role, name in chosen.items()}, record)
    # ValueError, ArithmeticError and LookupError: dates and time zones that Python does not have.
    except (pa.ArrowException, OSError, ValueError, ArithmeticError, LookupError) as error:
        raise VerdictError(
            f"{path} cannot be read as Parquet ({first_line(error, 200)}); expected a whole Parquet file"
        ) from error
    if left < 0:
        raise VerdictError(
            f"the values of {path} take more than {MAX_EXPANDED:,} bytes and {EXPANSION} times the file's size; "
            "expected sentences: write them as .tsv, .csv or .jsonl if they are"
        )


def _reject_nested(schema: pa.Schema, names: list[str], path: str) -> None:
    for name in names:
        if pa.types.is_nested(kind := schema.field(name).type):
            raise UsageError(f"column {name!r} of {path} holds {str(kind)[:100]}; expected one plain value a record")


def _packed_bytes(metadata: pq.FileMetaData, names: list[str]) -> int:
    """Return the bytes of columns after decompression, as the file says."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in names)


def _expanded_bytes(column: pa.Array) -> int:
    """Return the bytes of a column's text if each value is written out."""
    if not isinstance(column, pa.DictionaryArray) or column.type.value_type not in TEXT_TYPES:
        return 0  # was counted with the file's bytes, or is a number
    return pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0


def _to_list(column: pa.Array) -> list[Any]:
    """Return a column's values; equal ones of a dictionary are one object."""
    if not isinstance(column, pa.DictionaryArray):
        return column.to_pylist()
    values = column.dictionary.to_pylist()
    return [None if index is None else values[index] for index in column.indices.to_pylist()]


_READERS: dict[str, Callable[[BinaryIO, TableFormat, str], Iterator[Record]]] = {
    "txt": _read_text,
    "tsv": _read_tsv,
    "csv": _read_csv,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
}
