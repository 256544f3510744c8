"""Other people's tables: CSV, JSONL, Parquet, and tab-separated files with a header, mapped to the four columns.

As in CoLA's own format every record is kept or quarantined with a reason, and nothing is repaired silently: a sentence
with a line break in it is quarantined, not glued.
"""

import csv
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.errors import UsageError, VerdictError, first_line
from tasks.core.key_values import parse_key_values
from tasks.data.cola_format import (
    BYTE_ORDER_MARK,
    DEFAULT_LABELS,
    MAX_LINE_BYTES,
    Block,
    QuarantinedRow,
    Row,
    RowRules,
    make_row,
    parse_row,
    parse_tsv,
    partition,
    read_lines,
    too_long,
)

PARQUET_BATCH = 65_536  # records held in memory at a time
MAX_RECORD_BYTES = 256  # lines of a CSV record; where a quote is never closed, so many are read in vain
DEFAULT_COLUMNS = {"text": ("sentence", "text"), "label": ("label",), "source": ("source",), "mark": ("mark",)}
REQUIRED_ROLES = ("text", "label")

ParsedRow = Row | QuarantinedRow


class TableFormat(NamedTuple):
    """How records become rows: which column is what (roles text, label, source, mark), and what a row must satisfy."""

    columns: Mapping[str, str] = {}
    rules: RowRules = RowRules()


def table_format(columns: str, labels: str, max_chars: int) -> TableFormat:
    """Return the form that settings describe: text=NAME,label=NAME and NAME=1,NAME=0."""

    named = {name: int(value) for name, value in parse_key_values(labels).items()}
    return TableFormat(parse_key_values(columns), RowRules(max_chars, DEFAULT_LABELS | named))


def parse_file(path: Path, form: TableFormat) -> Iterator[Block]:
    """Parse a file in the format that its name tells; anything but .csv, .jsonl and .parquet is tab-separated.

    Raises:
        WrongUsage: if a column that is needed is not there.
        VerdictError: if a Parquet file is damaged.
        OSError: if the file cannot be read.
    """
    with path.open("rb") as stream:
        parser = _PARSERS.get(path.suffix.lower())
        if parser is None and not _has_header(stream, form):
            yield from parse_tsv(stream, form.rules)
            return
        yield from in_blocks((parser or _parse_headed_tsv)(stream, form, path))


def in_blocks(results: Iterator[ParsedRow]) -> Iterator[Block]:
    """Yield results as blocks, so that memory does not grow with their number."""
    while batch := list(islice(results, PARQUET_BATCH)):
        yield partition(batch)


def choose_columns(present: Iterable[str], wanted: Mapping[str, str], path: Path) -> dict[str, str]:
    """Return the column of each role: the one asked for, or the usual name where it is present.

    Raises:
        WrongUsage: if there is none for text or label, one that was asked for is missing, or two have the same name.
    """
    there = list(present)
    chosen, missing = match_columns(there, wanted)
    for role, name in chosen.items():
        if there.count(name) > 1:
            raise UsageError(f"{path} has {there.count(name)} columns {name!r}; expected one for the {role}")
    if missing:
        role, name = missing[0]
        shown = ", ".join(repr(name[:40]) for name in there[:12]) or "none"
        raise UsageError(
            f"{path} has no column {name!r} for the {role}; it has {shown}: --columns text=NAME,label=NAME"
        )
    return chosen


def match_columns(present: Collection[str], wanted: Mapping[str, str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the column of each role that is present, and (role, expected name) of those that ought to be."""
    chosen, missing = {}, []
    for role, usual in DEFAULT_COLUMNS.items():
        candidates = (wanted[role],) if role in wanted else usual
        found = next((name for name in candidates if name in present), None)
        if found is not None:
            chosen[role] = found
        elif role in wanted or role in REQUIRED_ROLES:
            missing.append((role, candidates[0]))
    return chosen, missing


def _skip_byte_order_mark(stream: BinaryIO) -> None:
    """Go past the byte order mark, if there is one."""
    if stream.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
        stream.seek(0)


def _has_header(stream: BinaryIO, form: TableFormat) -> bool:
    """Tell whether a tab-separated file starts with a header.

    That is a first line that is no row of CoLA's format and, unless columns are named, holds the usual names.
    """
    first = stream.readline(PARQUET_BATCH).removeprefix(BYTE_ORDER_MARK).rstrip(b"\r\n")
    stream.seek(0)
    names = first.decode("utf-8", "replace").split("\t")
    if isinstance(parse_row(1, first, form.rules), Row):
        return False
    return len(names) > 1 if form.columns else not match_columns(names, {})[1]


def _parse_headed_tsv(stream: BinaryIO, form: TableFormat, path: Path) -> Iterator[ParsedRow]:
    """Parse tab-separated lines under a header, without quoting."""
    _skip_byte_order_mark(stream)
    lines = read_lines(stream)
    header = next(lines).rstrip(b"\r\n").decode("utf-8", "replace").split("\t")
    pick = _picker(header, form, path)
    for line, raw in enumerate(lines, start=2):
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        yield pick(line, raw.decode("utf-8", "surrogateescape").split("\t"), raw)


def _parse_csv(stream: BinaryIO, form: TableFormat, path: Path) -> Iterator[ParsedRow]:
    """Parse RFC 4180 records; `line` is where a record starts."""
    records = csv_records(stream)
    header = next(records, None)
    if header is None:
        return
    if header[1] is None:
        raise UsageError(f"{path} has no readable header line; expected the columns' names in it")
    pick = _picker(header[1], form, path)
    for line, fields, raw, fault in records:
        yield QuarantinedRow(line, "record", fault, raw) if fields is None else pick(line, fields, raw)


def csv_records(stream: BinaryIO) -> Iterator[tuple[int, list[str] | None, bytes, str]]:
    """Yield (first line, fields or None, bytes, fault) of each record.

    Where a quote is never closed, only its line is given up: the lines that it swallowed are read again.
    """
    _skip_byte_order_mark(stream)
    fresh = read_lines(stream)
    again: list[bytes] = []
    taken: list[bytes] = []

    def lines() -> Iterator[str]:
        while len(taken) < MAX_RECORD_BYTES and (raw := again.pop() if again else next(fresh, b"")):
            taken.append(raw)
            yield raw.decode("utf-8", "surrogateescape")

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
        raw = b"".join(taken).removesuffix(b"\n").removesuffix(b"\r")
        yield number, fields, raw, fault
        number += len(taken)


def _picker(header: list[str], form: TableFormat, path: Path) -> Callable[[int, list[str], bytes], ParsedRow]:
    """Return a function that turns the fields under a header into a row."""
    chosen = choose_columns(header, form.columns, path)
    places = {role: header.index(name) for role, name in chosen.items()}

    def pick(line: int, fields: list[str], raw: bytes) -> ParsedRow:
        if len(raw) > MAX_LINE_BYTES:
            return too_long(line, raw)
        if len(fields) != len(header):
            return QuarantinedRow(line, "field count", f"{len(fields)} fields instead of {len(header)}", raw)
        values = {role: fields[place] for role, place in places.items()}
        return _row(line, values, raw, form.rules, path.stem)

    return pick


def _parse_jsonl(stream: BinaryIO, form: TableFormat, path: Path) -> Iterator[ParsedRow]:
    """Parse one JSON object a line."""
    _skip_byte_order_mark(stream)
    first: dict[str, Any] | None = None
    fits = False
    for line, raw in enumerate(read_lines(stream), start=1):
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        if len(raw) > MAX_LINE_BYTES:
            yield too_long(line, raw)
            continue
        try:
            record = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError:
            yield QuarantinedRow(line, "encoding", "not UTF-8", raw)
            continue
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            yield QuarantinedRow(line, "record", "not a JSON object", raw)
            continue
        first = record if first is None else first
        chosen, missing = match_columns(record, form.columns)
        fits = fits or not missing
        yield (
            QuarantinedRow(line, "field count", f"no {missing[0][1]!r}", raw)
            if missing
            else _record(line, record, chosen, raw, form.rules, path)
        )
    if first is not None and not fits:
        choose_columns(first, form.columns, path)  # says what is there instead


def _parse_parquet(stream: BinaryIO, form: TableFormat, path: Path) -> Iterator[ParsedRow]:
    """Parse a Parquet table; `line` is the number of the record, from 1."""
    try:
        file = pq.ParquetFile(stream)
        chosen = choose_columns(file.schema_arrow.names, form.columns, path)
        line = 0
        for batch in file.iter_batches(PARQUET_BATCH, columns=list(chosen.values())):
            for record in batch.to_pylist():
                line += 1
                raw = json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")
                yield _record(line, record, chosen, raw, form.rules, path)
    except (pa.ArrowException, OSError, ValueError, ArithmeticError, LookupError) as error:  # or a date of no calendar
        raise VerdictError(
            f"{path} cannot be read as Parquet ({first_line(error, 200)}); expected a whole Parquet file"
        ) from error


def _record(
    line: int, record: dict[str, Any], chosen: Mapping[str, str], raw: bytes, rules: RowRules, path: Path
) -> ParsedRow:
    """Turn a record of typed values into a row."""
    missing = [name for name in chosen.values() if name not in record]
    if missing:
        return QuarantinedRow(line, "field count", f"no {missing[0]!r}", raw)
    text = record[chosen["text"]]
    if text is not None and not isinstance(text, str):
        return QuarantinedRow(line, "record", f"sentence is {type(text).__name__}, not text", raw)
    return _row(line, {role: _text(record[name]) for role, name in chosen.items()}, raw, rules, path.stem)


def _row(line: int, values: Mapping[str, str], raw: bytes, rules: RowRules, stem: str) -> ParsedRow:
    """Check the values of the roles; a record without a source column comes from its file."""
    fields = (values.get("source", stem), values["label"], values.get("mark", ""), values["text"])
    if not is_utf8("".join(fields)):
        return QuarantinedRow(line, "encoding", "not UTF-8", raw)
    return make_row(line, fields, raw, rules)


def is_utf8(text: str) -> bool:
    """Tell whether text is free of stand-ins for bytes that were no UTF-8 and of halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: Any) -> str:
    """Write a value as it would stand in a text file; labels may come as 1, 1.0 or "1", truth as a word."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


_PARSERS: dict[str, Callable[[BinaryIO, TableFormat, Path], Iterator[ParsedRow]]] = {
    ".csv": _parse_csv,
    ".jsonl": _parse_jsonl,
    ".ndjson": _parse_jsonl,
    ".parquet": _parse_parquet,
}
