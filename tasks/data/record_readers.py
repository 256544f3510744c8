"""Reads records of data files as rows, with labels or without: tab-separated, CSV and text here, JSON and Arrow beside.

Each format has one reader, which yields every record with the values of its columns by role, its bytes and its fault.
As in CoLA's own format each record is kept or quarantined with a reason, and nothing is repaired silently: a sentence
with a line break in it is quarantined, not glued.
"""

import csv
import json
import logging
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from tasks.core.errors import UsageError
from tasks.core.printable import counted
from tasks.data.arrow_records import read_arrow, read_parquet
from tasks.data.cola_format import (
    MAX_LINE_BYTES,
    TSV_COLUMNS,
    Block,
    QuarantinedRow,
    Row,
    make_row,
    numbered_lines,
    parse_tsv,
    strip_end,
    to_blocks,
    too_long,
    unmarked_lines,
)
from tasks.data.compression import open_data
from tasks.data.file_kinds import COMPRESSED_INSIDE, HEAD_BYTES, detect_format, new_name, reject_binary, split_name
from tasks.data.json_records import read_json_list, read_jsonl, reject_whole_table
from tasks.data.table_folders import table_name
from tasks.data.table_format import (
    DELIMITERS,
    Record,
    TableFormat,
    choose_columns,
    find_delimiter,
    guess_delimiter,
    is_header,
    match_columns,
    number_columns,
    reject_missing_header,
)

MAX_RECORD_LINES = 256  # lines of a CSV record; where a quote is never closed, so many are read in vain
TOLD_LINES = 10  # of a tab-separated file, of which one at least has as many fields as it must
UNLABELLED = "1"  # label of rows without one: they count as acceptable

ParsedRow = Row | QuarantinedRow
Fields = tuple[int, list[str] | None, bytes, str]  # line, fields by position (None: not valid CSV), bytes, fault

_COLA_HEADER = (0, "\t".join(TSV_COLUMNS).encode())
_SEPARATOR_LINE = re.compile(rb"\"?sep=([,;|\t:])\"?\r?\n?")  # the first line, which spreadsheets write and read

log = logging.getLogger(__name__)


def parse_file(path: Path, table_format: TableFormat) -> Iterator[Block]:
    """Parse a file as its first bytes say, else as the ending of its name does.

    With labels every other ending means tab-separated; without, .txt means one sentence a line.

    Raises:
        UsageError: if a required column is missing, or the file is neither table nor text.
        DataRejected: if a compressed file, or one that is not read line by line, is damaged.
        OSError: if the file cannot be read.
    """
    format_name = find_format(path, split_name(path.name)[1] or "tsv", table_format)
    with open_data(path) as stream:
        first = next(unmarked_lines(stream), b"") if format_name == "tsv" else b""
    with open_data(path) as stream:
        if table_format.labelled and format_name == "tsv" and not is_header(first, table_format):
            yield from parse_tsv(stream, table_format.rules)
        else:
            yield from to_blocks(read_rows(stream, format_name, table_format, str(path)))


def find_format(path: Path | str, named: str, table_format: TableFormat) -> str:
    """Return the format of a file whose name or user says that it is `named`.

    A tab-separated table whose header has commas or the like instead of tabs is a CSV file.

    Raises:
        UsageError: if the file is neither table nor text, is in a format that cannot be read while it is unpacked, or
            has neither a header nor the columns of CoLA's format.
        DataRejected: if the beginning of a compressed file is damaged.
        OSError: if the file cannot be read.
    """
    with open_data(path) as stream:
        head = stream.peek(HEAD_BYTES)[:HEAD_BYTES]
        found = detect_format(head, named)
        if found in COMPRESSED_INSIDE and not stream.seekable():
            raise UsageError(f"{path} is a compressed {found} file; expected it unpacked, it is compressed inside")
        if found not in COMPRESSED_INSIDE:
            reject_binary(head, str(path))
        if found == "txt" and table_format.labelled:
            found = "tsv"
        if found in ("json", "jsonl"):
            reject_whole_table(stream, head, table_format, str(path))
        elif found == "tsv":
            first, *more = islice(chain(map(strip_end, unmarked_lines(stream)), [b""]), TOLD_LINES)
            without_tabs = b"\t" not in first and find_delimiter(_decode(first), table_format)
            if without_tabs or _SEPARATOR_LINE.fullmatch(first):
                return "csv"
            if not is_header(first, table_format):
                _reject_other_columns([first, *more], table_format, str(path))
    return found


def _reject_other_columns(lines: list[bytes], table_format: TableFormat, path: str) -> None:
    """Reject lines of which none has the number of CoLA's columns, by the first one's columns.

    Raises:
        UsageError: which names the columns, or their numbers.
    """
    lines = [line for line in lines if line.strip()]
    if len(lines) < 3 or any(line.count(b"\t") == len(TSV_COLUMNS) - 1 for line in lines):
        return
    first = _decode(lines[0])
    names = next(csv.reader([first], delimiter=guess_delimiter(first, table_format), quoting=csv.QUOTE_NONE), [])
    reject_missing_header(names, table_format, path)
    if len(names) > 1 or not table_format.labelled:
        choose_columns(names, table_format, path)


def read_rows(
    stream: BinaryIO, format_name: str, table_format: TableFormat, path: str, groups: range | None = None
) -> Iterator[ParsedRow]:
    """Read each record as a row or a quarantined row, in order; the stream is read once, from here on.

    Args:
        stream: bytes; only Parquet and Arrow need seeking.
        format_name: one of file_kinds.FORMATS.
        table_format: which columns are read and what a row must satisfy.
        path: for messages; the name of its table is the source of rows that have no source column.
        groups: row groups of a Parquet file that are read; None for all.

    Raises:
        UsageError: if a required column is missing.
        DataRejected: if a file that is not read line by line is damaged.
    """
    source = table_name(path) if table_format.labelled else ""
    if groups is None:
        records = _READERS[format_name](stream, table_format, path)
    else:
        records = read_parquet(stream, table_format, path, groups)
    for record in records:
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
        if is_utf8(_decode(raw)):  # an escape of JSON, such as \ud800
            return QuarantinedRow(line, "record", "half of a surrogate pair", raw)
        return QuarantinedRow(line, "encoding", "not UTF-8", raw)
    return make_row(line, fields, raw, table_format.rules)


def _as_text(value: Any) -> str:
    """Write a value as in a text file: None as nothing, 1.0 as 1, booleans as true and false, [1] as 1."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list) and len(value) == 1:  # labels of doccano and Prodigy
        return _as_text(value[0])
    return str(value)


def _as_json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")


def _decode(raw: bytes) -> str:
    """Decode a line; `is_utf8` finds bytes that are not UTF-8 afterwards."""
    return raw.decode("utf-8", "surrogateescape")


def _read_text(stream: BinaryIO, table_format: TableFormat, path: str) -> Iterator[Record]:
    """Read one sentence a line."""
    for line, raw in numbered_lines(stream):
        yield Record(line, {"text": _decode(raw)}, raw)


def _read_tsv(stream: BinaryIO, table_format: TableFormat, path: str) -> Iterator[Record]:
    """Read tab-separated lines without quoting, under a header or in CoLA's own format."""
    lines = numbered_lines(stream)
    first = next(lines, None)
    if first is None:
        return
    if is_header(first[1], table_format):
        lines = chain([(first[0], first[1].rstrip(b"\r"))], lines)
    else:
        lines, table_format = chain([_COLA_HEADER, first], lines), table_format._replace(columns={})
    yield from _pick_fields(_split_tabs(lines, path), table_format, path)


def _split_tabs(lines: Iterator[tuple[int, bytes]], path: str) -> Iterator[Fields]:
    """Split lines at their tabs; log how many seem to have the quoting of CSV, which this format does not have."""
    quoted = 0
    for line, raw in lines:
        if b'""' in raw and (raw.startswith(b'"') or b'\t"' in raw):
            quoted += 1
        yield line, _decode(raw).split("\t"), raw, ""
    if quoted:
        log.warning(
            "%s: %s with doubled quotes, which are read as they are; if they are CSV's, give the file the ending .csv",
            *(path, counted(quoted, "row")),
        )


def _read_csv(stream: BinaryIO, table_format: TableFormat, path: str) -> Iterator[Record]:
    """Read RFC 4180 records under a header, whose names tell what separates the columns."""
    lines = unmarked_lines(stream)
    line, number = next(lines, b""), 1
    if named := _SEPARATOR_LINE.fullmatch(line):
        line, number = next(lines, b""), 2
    text = _decode(strip_end(line))
    found = _decode(named[1]) if named else find_delimiter(text, table_format)
    delimiter = found or guess_delimiter(text, table_format)
    if named:
        log.info("%s: columns are separated by %s, as its first line says", path, DELIMITERS.get(delimiter, delimiter))
    elif delimiter != ",":
        log.info("%s: columns are separated by %s", path, DELIMITERS[delimiter])
    yield from _pick_fields(_split_csv(chain([line], lines), delimiter, number), table_format, path)


def _split_csv(fresh: Iterator[bytes], delimiter: str, number: int) -> Iterator[Fields]:
    """Split RFC 4180 records; `line` is where a record starts.

    Where a quote is never closed, only its line is given up: the lines that it swallowed are read again.
    """
    again: list[bytes] = []
    taken: list[bytes] = []

    def lines() -> Iterator[str]:
        while len(taken) < MAX_RECORD_LINES and (raw := again.pop() if again else next(fresh, b"")):
            taken.append(raw)
            yield _decode(raw)

    while True:
        taken.clear()
        try:
            fields: list[str] | None = next(csv.reader(lines(), strict=True, delimiter=delimiter))
            fault = ""
        except StopIteration:
            return
        except csv.Error as error:
            fields, fault = None, f"not valid CSV: {error}"
            again.extend(reversed(taken[1:]))
            del taken[1:]
        yield number, fields, strip_end(b"".join(taken)), fault
        number += len(taken)


def _pick_fields(records: Iterator[Fields], table_format: TableFormat, path: str) -> Iterator[Record]:
    """Take the chosen columns of records that must have as many fields as the header, which is the first of them."""
    first = next(records, None)
    if first is None:
        return
    if first[1] is None:
        mend = f"tr '\\r' '\\n' < {shlex.quote(path)} > {new_name(path)}"
        ends = f"; if its lines end in CR alone: {mend}" if b"\r" in first[2] else ""
        raise UsageError(f"{path} has no readable header line; expected the columns' names in it{ends}")
    header = number_columns(first[1], table_format) or first[1]
    if header is not first[1]:
        records = chain([first], records)
    elif match_columns(header, table_format)[1]:
        _reject_late_header(records, table_format, path)
        reject_missing_header(header, table_format, path)
    indices = {role: header.index(name) for role, name in choose_columns(header, table_format, path).items()}
    for line, fields, raw, fault in records:
        if fields is None:
            yield Record(line, {}, raw, ("record", fault))
        elif not fields or (not fields[0] and len(header) > 1 and not any(fields)):
            continue  # a blank line, or a row of a sheet with nothing in it
        elif len(fields) != len(header):
            yield Record(line, {}, raw, ("field count", f"{counted(len(fields), 'field')} instead of {len(header)}"))
        else:
            yield Record(line, {role: fields[index] for role, index in indices.items()}, raw)


def _reject_late_header(records: Iterator[Fields], table_format: TableFormat, path: str) -> None:
    """Reject a table whose names of columns stand below its first line, as under a title or a comment."""
    for line, fields, _, _ in islice(records, TOLD_LINES):
        if fields and not match_columns(fields, table_format)[1]:
            raise UsageError(
                f"{path} has the names of its columns in line {line}; expected them in the first line: "
                f"tail -n +{line} {shlex.quote(path)} > {new_name(path)}"
            )


_READERS: dict[str, Callable[[BinaryIO, TableFormat, str], Iterator[Record]]] = {
    "txt": _read_text,
    "tsv": _read_tsv,
    "csv": _read_csv,
    "jsonl": read_jsonl,
    "json": read_json_list,
    "parquet": read_parquet,
    "arrow": read_arrow,
}
