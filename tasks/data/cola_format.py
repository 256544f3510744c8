r"""Parses CoLA's tab-separated format strictly: every line is kept or quarantined with a reason.

A row has four columns and no quoting: source code, label (1 acceptable, 0 not), the author's mark, sentence.

    gj04\t0\t*\tThe sailors rode the breeze clear the rocks.

CSV readers guess: a lone quote swallows lines, `NA` becomes a missing value, a fifth column shifts the others. Here a
line is split at its tabs and nothing else. The format: https://nyu-mll.github.io/CoLA.

A block of lines without faults is parsed by Arrow, about ten times as fast as in Python; a block with a fault is parsed
line by line, to find the line. Both give the same rows (a test compares them).
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import BinaryIO, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from tasks.core.printable import counted
from tasks.data.label_names import find_label

READ_BYTES = 8 << 20  # read at a time, and of rows in a block of lines that are parsed one by one
BLOCK_ROWS = 65_536  # of such a block
MAX_LINE_BYTES = 16 << 20  # the rest of a longer line is skipped
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
TSV_COLUMNS = ["source", "label", "mark", "sentence"]
DEFAULT_LABELS = {"0": 0, "1": 1}

QuarantineReason = Literal[
    "field count",
    "encoding",
    "label",
    "empty sentence",
    "NUL",
    "too long",
    "line break",
    "byte order mark",
    "record",
    "truncated",  # has more tokens than the model reads; only where scoring refuses that
    "no answer",  # the model gives NaN for it; only in scoring
]
ROW_SCHEMA = pa.schema(
    {"line": pa.int64(), "source": pa.string(), "label": pa.int8(), "mark": pa.string(), "sentence": pa.string()}
)


class Row(NamedTuple):
    """One kept row; `line` counts from 1."""

    line: int
    source: str
    label: int
    mark: str
    sentence: str


class QuarantinedRow(NamedTuple):
    """One quarantined row: kind of fault, explanation, and its bytes without the line end.

    `label` is the label as written, where that is the fault.
    """

    line: int
    kind: QuarantineReason
    reason: str
    raw: bytes
    label: str | None = None


class Block(NamedTuple):
    """Consecutive rows of a file: the kept ones, as a table of ROW_SCHEMA, and the quarantined ones."""

    kept: pa.Table
    quarantined: list[QuarantinedRow]


class RowRules(NamedTuple):
    """What a row must satisfy.

    Args:
        max_chars: longest sentence, in characters.
        labels: label as written -> 0 or 1; case, and .0 behind a number, do not matter.
        any_text: whether a sentence may have NUL, line breaks and tabs, which CoLA's format has no way to write.
    """

    max_chars: int = 2_000
    labels: Mapping[str, int] = DEFAULT_LABELS
    any_text: bool = False


def make_row(line: int, fields: tuple[str, str, str, str], raw: bytes, rules: RowRules) -> Row | QuarantinedRow:
    """Check the decoded fields (source, label, mark, sentence) of a record of any format; never raises.

    Args:
        line: number for messages.
        fields: as in the file.
        raw: the record's bytes, kept where it is quarantined.
        rules: what the row must satisfy.
    """
    source, label, mark, sentence = fields
    text = "".join(fields)
    if "\0" in text and not rules.any_text:
        return QuarantinedRow(line, "NUL", "NUL character", raw)
    if ("\n" in text or "\r" in text or "\t" in text) and not rules.any_text:
        return QuarantinedRow(line, "line break", "line break or tab inside a field", raw)
    if source.startswith("\ufeff"):
        return QuarantinedRow(line, "byte order mark", "byte order mark inside the file", raw)
    number = find_label(label, rules.labels)
    if number is None:
        expected = " or ".join(sorted(rules.labels)[:6])
        return QuarantinedRow(line, "label", f"label {label[:20]!r} instead of {expected}", raw, label)
    if not sentence.strip():
        return QuarantinedRow(line, "empty sentence", "empty sentence", raw)
    if len(sentence) > rules.max_chars:
        return QuarantinedRow(
            line, "too long", f"sentence of {len(sentence)} characters, more than {rules.max_chars}", raw
        )
    return Row(line, source, number, mark, sentence)


def too_long(line: int, raw: bytes) -> QuarantinedRow:
    """Quarantine a line of more than MAX_LINE_BYTES bytes, of which the first are kept."""
    return QuarantinedRow(line, "too long", f"line of more than {MAX_LINE_BYTES} bytes", raw[:MAX_LINE_BYTES])


def parse_row(line: int, raw: bytes, rules: RowRules) -> Row | QuarantinedRow:
    """Parse one line without its line end; never raises."""
    if len(raw) > MAX_LINE_BYTES:
        return too_long(line, raw)
    try:
        fields = raw.decode("utf-8").split("\t")
    except UnicodeDecodeError:
        return QuarantinedRow(line, "encoding", "not UTF-8", raw)
    if len(fields) != len(TSV_COLUMNS):
        found = counted(len(fields), "field")
        return QuarantinedRow(line, "field count", f"{found} instead of {len(TSV_COLUMNS)}", raw)
    return make_row(line, (fields[0], fields[1], fields[2], fields[3]), raw, rules)


def parse_tsv(stream: BinaryIO, rules: RowRules = RowRules()) -> Iterator[Block]:  # noqa: B008 (immutable)
    """Parse CoLA's format (LF or CRLF line ends); each line is in exactly one block.

    Memory does not grow with the file.
    """
    line = 1
    for lines in _read_blocks(stream):
        clean = _parse_clean(line, lines, rules)
        for block in [clean] if clean else parse_by_line(line, lines, rules):
            yield block
            line += block.kept.num_rows + len(block.quarantined)


def parse_by_line(first: int, lines: bytes, rules: RowRules) -> Iterator[Block]:
    """Parse whole lines one by one; the first has number `first`."""
    return to_blocks(
        parse_row(number, strip_end(raw), rules) for number, raw in enumerate(io.BytesIO(lines), start=first)
    )


def to_blocks(rows: Iterable[Row | QuarantinedRow]) -> Iterator[Block]:
    """Divide rows into blocks of at most BLOCK_ROWS rows and about READ_BYTES bytes."""
    held: list[Row | QuarantinedRow] = []
    size = 0
    for row in rows:
        held.append(row)
        size += len(row.sentence if isinstance(row, Row) else row.raw)
        if len(held) >= BLOCK_ROWS or size >= READ_BYTES:
            yield _partition(held)
            held, size = [], 0
    if held:
        yield _partition(held)


def _partition(rows: list[Row | QuarantinedRow]) -> Block:
    """Divide rows into kept and quarantined ones."""
    kept = [row for row in rows if isinstance(row, Row)]
    quarantined = [row for row in rows if isinstance(row, QuarantinedRow)]
    columns = list(zip(*kept, strict=True)) or [()] * len(ROW_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, ROW_SCHEMA, strict=True)]
    return Block(pa.table(arrays, schema=ROW_SCHEMA), quarantined)


def format_row(row: Row) -> str:
    """Write a row as one line of the format, LF included; the inverse of `parse_row`."""
    return f"{row.source}\t{row.label}\t{row.mark}\t{row.sentence}\n"


def format_rows(kept: pa.Table) -> bytes:
    """Write a table of ROW_SCHEMA columns as lines of the format."""
    fields = [kept[name].cast(pa.string()) for name in TSV_COLUMNS]
    lines = pc.binary_join_element_wise(*fields, "\t").to_pylist()
    return "\n".join([*lines, ""]).encode()


def read_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines with their ends; one that is too long is cut, to a length that is still too long."""
    most = len(BYTE_ORDER_MARK) + MAX_LINE_BYTES + len(b"\r\n")
    while line := stream.readline(most):
        yield line if len(line) < most or line.endswith(b"\n") else line + _skip_line(stream)


def unmarked_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines with their ends, without a byte order mark at the start."""
    lines = read_lines(stream)
    first = next(lines, b"").removeprefix(BYTE_ORDER_MARK)
    return chain([first] if first else [], lines)


def strip_end(line: bytes) -> bytes:
    """Return a line without its end."""
    return line.removesuffix(b"\n").removesuffix(b"\r")


def numbered_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line without its end)."""
    return enumerate(map(strip_end, unmarked_lines(stream)), start=1)


def _read_blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the file in blocks of whole lines, without a byte order mark at its start."""
    rest = stream.read(len(BYTE_ORDER_MARK)).removeprefix(BYTE_ORDER_MARK)  # bytes after the last line end
    while block := stream.read(READ_BYTES):
        block = rest + block
        end = block.rfind(b"\n") + 1
        if end:
            yield block[:end]
        rest = block[end:]
        if len(rest) > MAX_LINE_BYTES + 1:  # the last byte may be the CR of the line end
            yield rest + _skip_line(stream)
            rest = b""
    if rest:
        yield rest


def _skip_line(stream: BinaryIO) -> bytes:
    """Skip to the end of a line that is too long; return its line end, if it has one."""
    while chunk := stream.readline(READ_BYTES):
        if chunk.endswith(b"\n"):
            return b"\n"
    return b""


def _parse_clean(first: int, lines: bytes, rules: RowRules) -> Block | None:
    """Parse a block without faults with Arrow; None if a line may have one."""
    if len(lines) > MAX_LINE_BYTES:  # possibly one line
        return None
    if b"\n\n" in lines:  # Arrow takes 30 bytes for each empty line
        return None
    if b"\r" in lines:
        lines = lines.replace(b"\r\n", b"\n")
    if b"\r" in lines or b"\0" in lines or BYTE_ORDER_MARK in lines:
        return None
    try:
        table = pyarrow.csv.read_csv(
            pa.py_buffer(lines),
            read_options=pyarrow.csv.ReadOptions(column_names=TSV_COLUMNS, block_size=max(len(lines), 1)),
            parse_options=pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(TSV_COLUMNS, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowException:  # a wrong number of fields, or not UTF-8
        return None
    named = pc.index_in(table["label"], value_set=pa.array(list(rules.labels), pa.string()))
    sentences = table["sentence"]
    # A letter, digit, punctuation or symbol proves that a sentence is not empty; str.strip decides about others.
    visible = pc.match_substring_regex(sentences, r"[\pL\pN\pP\pS]")
    longest = pc.max(pc.utf8_length(sentences)).as_py()
    if named.null_count or longest is None or longest > rules.max_chars or not pc.all(visible).as_py():
        return None
    labels = pa.array(list(rules.labels.values()), pa.int8()).take(named)
    numbers = pa.array(range(first, first + table.num_rows), pa.int64())
    kept = [numbers, table["source"], labels, table["mark"], sentences]
    return Block(pa.table(kept, schema=ROW_SCHEMA), [])
