"""Sentences of a table or a text file, no labels needed: every record is one sentence, or quarantined with a reason.

    .tsv                        CoLA's four columns, or a text column under a header
    .csv .jsonl .parquet        other people's tables
    .txt                        one sentence a line
    -                           standard input, one sentence a line unless a format is named

Only the text column counts; a fault in another one does not keep a sentence from being scored. The rules for a
sentence are those of training data (`tasks.data.cola_format.make_row`).
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.errors import UsageError, VerdictError, first_line
from tasks.core.key_values import parse_key_values
from tasks.data.cola_format import (
    BYTE_ORDER_MARK,
    MAX_LINE_BYTES,
    READ_BYTES,
    TSV_COLUMNS,
    QuarantinedRow,
    Row,
    RowRules,
    make_row,
    parse_row,
    read_lines,
    too_long,
)
from tasks.data.record_readers import DEFAULT_COLUMNS, ParsedRow, csv_records, is_utf8, match_columns

STDIO = "-"  # standard input or output
SENTENCE_FORMATS = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "txt",
}
STREAM_FORMATS = ("txt", "tsv", "jsonl")  # formats that need no seeking
PEEK_BYTES = 1_000  # JSON records of which at least one holds the text, where the column is named rightly
SENTENCE_BATCH = 10_000  # records of a Parquet file held in memory at a time


class SentenceSource(NamedTuple):
    """Where sentences come from: a path or -, how it is written, and the column asked for, None for a usual one."""

    path: str
    format: str
    column: str | None = None
    rules: RowRules = RowRules()

    @property
    def name(self) -> str:
        """What messages and quarantined rows call it."""
        return "standard input" if self.path == STDIO else Path(self.path).name


def open_source(path: str, columns: str = "", form: str = "") -> SentenceSource:
    """Check that sentences can be read, as far as that can be told from the file's beginning.

    Args:
        path: file, or - for standard input.
        columns: text=NAME; further roles are allowed, so that one text serves training and scoring.
        form: txt, tsv, csv, jsonl or parquet; empty: what the path's ending says.

    Raises:
        WrongUsage: if there is no such file, format or column.
        VerdictError: if the file cannot be read.
    """
    if path != STDIO:
        _check_path(path)
    source = SentenceSource(path, _find_format(path, form), _find_column(columns))
    if path != STDIO and Path(path).is_file():  # of a pipe nothing may be taken
        next(read_sentences(source), None)
    return source


def read_sentences(source: SentenceSource) -> Iterator[ParsedRow]:
    """Yield each record of the input, in order, as a row with a sentence or as a rejected one.

    Raises:
        WrongUsage: if there is no text column.
        VerdictError: if the input cannot be read.
    """
    try:
        with _open(source) as stream:
            yield from _READERS[source.format](stream, source)
    except OSError as error:
        raise VerdictError(
            f"{source.path} cannot be read ({error.strerror or error}); expected a readable file of sentences"
        ) from error


def count_records(source: SentenceSource) -> int | None:
    """Return about how many records there are, for a progress bar; None where that takes reading the only copy."""
    if source.path == STDIO or not Path(source.path).is_file():
        return None
    if source.format == "parquet":
        return int(pq.read_metadata(source.path).num_rows)
    with Path(source.path).open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(READ_BYTES), b""))


def _check_path(path: str) -> None:
    if not is_utf8(path):
        raise UsageError(f"input {path!a} has a name that is not UTF-8; rename the file")
    if not Path(path).exists():
        raise UsageError(f"input {path!r} does not exist; expected a file of sentences, or - for standard input")
    if Path(path).is_dir():
        raise UsageError(f"input {path!r} is a folder; expected one file of sentences")


def _find_format(path: str, form: str) -> str:
    if path == STDIO:
        found = form or "txt"
        if found not in STREAM_FORMATS:
            raise UsageError(
                f"{found} cannot be read from standard input; write it to a file, or use {_any(STREAM_FORMATS)}"
            )
        return found
    found = form or SENTENCE_FORMATS.get(Path(path).suffix.lower(), "")
    if not found:
        ending = Path(path).suffix
        raise UsageError(
            f"input {path!r} has {f'the unknown ending {ending!r}' if ending else 'no ending'}; "
            f"expected {_any(SENTENCE_FORMATS)}, or --format {'|'.join(dict.fromkeys(SENTENCE_FORMATS.values()))}"
        )
    return found


def _find_column(columns: str) -> str | None:
    try:
        named = parse_key_values(columns)
    except ValueError as error:
        raise UsageError(f"--columns: {error}; expected text=NAME") from error
    for role in named:
        if role not in DEFAULT_COLUMNS:
            raise UsageError(f"--columns: {role!r} is no role of a column; expected text=NAME")
    return named.get("text")


def _any(words: Any) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}"


def _open(source: SentenceSource) -> AbstractContextManager[BinaryIO]:
    if source.path == STDIO:
        return nullcontext(sys.stdin.buffer)
    return Path(source.path).open("rb")


def _sentence(line: int, text: str, raw: bytes, rules: RowRules) -> ParsedRow:
    """Check a sentence; the other columns of a row stay empty."""
    if len(raw) > MAX_LINE_BYTES:
        return too_long(line, raw)
    if not is_utf8(text):
        return QuarantinedRow(line, "encoding", "not UTF-8", raw)
    # A label that the rules know: nobody asked for one.
    return make_row(line, ("", next(iter(rules.labels)), "", text), raw, rules)


def _numbered(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield lines without their ends, and without the byte order mark at the start; they count from 1."""
    for line, raw in enumerate(read_lines(stream), start=1):
        start = raw.removeprefix(BYTE_ORDER_MARK) if line == 1 else raw
        yield line, start.removesuffix(b"\n").removesuffix(b"\r")


def _read_text(stream: BinaryIO, source: SentenceSource) -> Iterator[ParsedRow]:
    for line, raw in _numbered(stream):
        yield _sentence(line, _decode(raw), raw, source.rules)


def _read_tsv(stream: BinaryIO, source: SentenceSource) -> Iterator[ParsedRow]:
    """Read tab-separated lines without quoting, under a header or in CoLA's own format."""
    lines = _numbered(stream)
    first = next(lines, None)
    if first is None:
        return
    names = _decode(first[1]).split("\t")
    if source.column or _is_header(first[1]):
        place, width = names.index(_choose(names, source)), len(names)
    else:
        place, width = TSV_COLUMNS.index("sentence"), len(TSV_COLUMNS)
        lines = chain([first], lines)
    for line, raw in lines:
        yield _pick(line, _decode(raw).split("\t"), raw, place, width, source.rules)


def _is_header(first: bytes) -> bool:
    """Tell whether a first line names a text column and is no row of CoLA's format."""
    if isinstance(parse_row(1, first, RowRules()), Row):
        return False
    return any(name in DEFAULT_COLUMNS["text"] for name in _decode(first).split("\t"))


def _read_csv(stream: BinaryIO, source: SentenceSource) -> Iterator[ParsedRow]:
    """Read RFC 4180 records under a header; `line` is where a record starts."""
    records = csv_records(stream)
    header = next(records, None)
    if header is None:
        return
    names = header[1]
    if names is None:
        raise UsageError(f"{source.path} has no readable header line; expected the columns' names in it")
    place = names.index(_choose(names, source))
    for line, fields, raw, fault in records:
        if fields is None:
            yield QuarantinedRow(line, "record", fault, raw)
        else:
            yield _pick(line, fields, raw, place, len(names), source.rules)


def _pick(line: int, fields: list[str], raw: bytes, place: int, width: int, rules: RowRules) -> ParsedRow:
    if len(fields) != width:
        return QuarantinedRow(line, "field count", f"{len(fields)} fields instead of {width}", raw[:MAX_LINE_BYTES])
    return _sentence(line, fields[place], raw, rules)


def _read_jsonl(stream: BinaryIO, source: SentenceSource) -> Iterator[ParsedRow]:
    """Read one JSON object a line; records may have keys of their own."""
    results = (_parse_json(line, raw, source) for line, raw in _numbered(stream))
    early = list(islice(results, PEEK_BYTES))
    without = [result for result in early if isinstance(result, QuarantinedRow) and result.kind == "field count"]
    if without and not any(isinstance(result, Row) for result in early):
        _choose(list(json.loads(without[0].raw)), source)  # says what is there instead
    yield from chain(early, results)


def _parse_json(line: int, raw: bytes, source: SentenceSource) -> ParsedRow:
    if len(raw) > MAX_LINE_BYTES:
        return too_long(line, raw)
    try:
        record = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return QuarantinedRow(line, "encoding", "not UTF-8", raw)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        return QuarantinedRow(line, "record", "not a JSON object", raw)
    name = _match(record, source)
    if name is None:
        return QuarantinedRow(line, "field count", f"no {source.column or DEFAULT_COLUMNS['text'][0]!r}", raw)
    return _value(line, record[name], raw, source.rules)


def _read_parquet(stream: BinaryIO, source: SentenceSource) -> Iterator[ParsedRow]:
    """Read a Parquet table; `line` is the number of the record, from 1."""
    try:
        file = pq.ParquetFile(stream)
        name = _choose(file.schema_arrow.names, source)
        line = 0
        for batch in file.iter_batches(SENTENCE_BATCH, columns=[name]):
            for value in batch.column(0).to_pylist():
                line += 1
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
                yield _value(line, value, text.encode("utf-8", "backslashreplace"), source.rules)
    except (pa.ArrowException, OSError, ValueError, ArithmeticError, LookupError) as error:  # or a date of no calendar
        raise VerdictError(
            f"{source.path} cannot be read as Parquet ({first_line(error, 200)}); expected a whole Parquet file"
        ) from error


def _value(line: int, value: Any, raw: bytes, rules: RowRules) -> ParsedRow:
    """Check a typed value."""
    if value is not None and not isinstance(value, str):
        return QuarantinedRow(line, "record", f"sentence is {type(value).__name__}, not text", raw)
    return _sentence(line, value or "", raw, rules)


def _match(present: Any, source: SentenceSource) -> str | None:
    """Return the text column among those present."""
    return match_columns(present, {"text": source.column} if source.column else {})[0].get("text")


def _choose(present: list[str], source: SentenceSource) -> str:
    """Return the text column, or say what is there instead.

    Raises:
        WrongUsage: if it is missing, or stands twice.
    """
    name = _match(present, source)
    if name is None:
        shown = ", ".join(repr(there[:40]) for there in present[:12]) or "none"
        wanted = source.column or DEFAULT_COLUMNS["text"][0]
        raise UsageError(f"{source.path} has no column {wanted!r} for the text; it has {shown}: --columns text=NAME")
    if present.count(name) > 1:
        raise UsageError(f"{source.path} has {present.count(name)} columns {name!r}; expected one for the text")
    return name


def _decode(raw: bytes) -> str:
    """Decode a line; what is no UTF-8 is found again by `is_utf8`."""
    return raw.decode("utf-8", "surrogateescape")


_READERS: dict[str, Callable[[BinaryIO, SentenceSource], Iterator[ParsedRow]]] = {
    "txt": _read_text,
    "tsv": _read_tsv,
    "csv": _read_csv,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
}
