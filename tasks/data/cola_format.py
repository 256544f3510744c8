r"""Strict parser of CoLA's tab-separated format; every line is kept or quarantined with a reason.

A row has four columns and no quoting: source code, label (1 acceptable, 0 not), the author's mark, sentence.

    gj04\t0\t*\tThe sailors rode the breeze clear the rocks.

CSV readers guess: a lone quote swallows lines, `NA` becomes a missing value, a fifth column shifts the others. Here a
line is split at its tabs and nothing else happens to it. The format: https://nyu-mll.github.io/CoLA.

Blocks of lines without any fault are parsed by Arrow, about ten times as fast; a block with a fault is parsed line by
line. Both ways give the same rows (a test compares them).
"""

import io
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

BLOCK = 8 << 20  # bytes read at a time
LONGEST_LINE = 16 << 20  # bytes; of a longer line the rest is counted and not kept
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COLUMNS = ["source", "label", "mark", "sentence"]
PLAIN_LABELS = {"0": 0, "1": 1}

Kind = Literal[
    "field count", "encoding", "label", "empty sentence", "NUL", "too long", "line break", "byte order mark", "record"
]
KEPT = pa.schema(
    {"line": pa.int64(), "source": pa.string(), "label": pa.int8(), "mark": pa.string(), "sentence": pa.string()}
)


class Row(NamedTuple):
    """One kept row; `line` counts from 1."""

    line: int
    source: str
    label: int
    mark: str
    sentence: str


class Rejected(NamedTuple):
    """One quarantined row: what kind of fault, what exactly, and its bytes as found, without the line end."""

    line: int
    kind: Kind
    reason: str
    raw: bytes


class Block(NamedTuple):
    """Consecutive rows of a file: those kept, as a table of `KEPT`, and those quarantined."""

    kept: pa.Table
    rejected: list[Rejected]


class Rules(NamedTuple):
    """What a row must satisfy."""

    max_chars: int = 2_000
    labels: Mapping[str, int] = PLAIN_LABELS


def make_row(line: int, fields: tuple[str, str, str, str], raw: bytes, rules: Rules) -> Row | Rejected:
    """Check decoded fields (source, label, mark, sentence), whatever format they came from; never raises."""
    source, label, mark, sentence = fields
    text = "".join(fields)
    if "\0" in text:
        return Rejected(line, "NUL", "NUL character", raw)
    if "\n" in text or "\r" in text or "\t" in text:
        return Rejected(line, "line break", "line break or tab inside a field", raw)
    if source.startswith("\ufeff"):
        return Rejected(line, "byte order mark", "byte order mark inside the file", raw)
    if label not in rules.labels:
        expected = " or ".join(sorted(rules.labels)[:6])
        return Rejected(line, "label", f"label {label[:20]!r} instead of {expected}", raw)
    if not sentence.strip():
        return Rejected(line, "empty sentence", "empty sentence", raw)
    if len(sentence) > rules.max_chars:
        return Rejected(line, "too long", f"sentence of {len(sentence)} characters, more than {rules.max_chars}", raw)
    return Row(line, source, rules.labels[label], mark, sentence)


def too_long(line: int, raw: bytes) -> Rejected:
    """Quarantine a line of more than LONGEST_LINE bytes; only so many are kept."""
    return Rejected(line, "too long", f"line of more than {LONGEST_LINE} bytes", raw[:LONGEST_LINE])


def parse_row(line: int, raw: bytes, rules: Rules) -> Row | Rejected:
    """Parse one line without its line end; never raises."""
    if len(raw) > LONGEST_LINE:
        return too_long(line, raw)
    try:
        fields = raw.decode("utf-8").split("\t")
    except UnicodeDecodeError:
        return Rejected(line, "encoding", "not UTF-8", raw)
    if len(fields) != len(COLUMNS):
        return Rejected(line, "field count", f"{len(fields)} fields instead of {len(COLUMNS)}", raw)
    return make_row(line, (fields[0], fields[1], fields[2], fields[3]), raw, rules)


def parse_tsv(stream: BinaryIO, rules: Rules = Rules()) -> Iterator[Block]:  # noqa: B008 (immutable)
    """Parse CoLA's format (LF or CRLF, the last line with or without); each line is in exactly one block.

    Memory does not grow with the file.
    """
    line = 1
    for lines in _read_blocks(stream):
        block = _parse_clean(line, lines, rules) or parse_by_line(line, lines, rules)
        yield block
        line += block.kept.num_rows + len(block.rejected)


def parse_by_line(first: int, lines: bytes, rules: Rules) -> Block:
    """Parse whole lines one by one; the first has number `first`."""
    results = [
        parse_row(number, raw.removesuffix(b"\n").removesuffix(b"\r"), rules)
        for number, raw in enumerate(io.BytesIO(lines), start=first)
    ]
    return sort_results(results)


def sort_results(results: list[Row | Rejected]) -> Block:
    """Divide results into kept and quarantined ones."""
    kept = [result for result in results if isinstance(result, Row)]
    rejected = [result for result in results if isinstance(result, Rejected)]
    columns = list(zip(*kept, strict=True)) or [()] * len(KEPT)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, KEPT, strict=True)]
    return Block(pa.table(arrays, schema=KEPT), rejected)


def format_row(row: Row) -> str:
    """Write a row as one line of the format, LF included; the inverse of `parse_row`."""
    return f"{row.source}\t{row.label}\t{row.mark}\t{row.sentence}\n"


def format_rows(kept: pa.Table) -> bytes:
    """Write a table of `KEPT` columns as lines of the format."""
    fields = [kept[name].cast(pa.string()) for name in COLUMNS]
    lines = pc.binary_join_element_wise(*fields, "\t").to_pylist()
    return "\n".join([*lines, ""]).encode()


def read_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines with their ends; of a line that is too long only a beginning that is too long as well."""
    most = LONGEST_LINE + len(b"\r\n")
    while line := stream.readline(most):
        yield line if len(line) < most or line.endswith(b"\n") else line + _skip_line(stream)


def _read_blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the file in pieces of whole lines, without the byte order mark at its start."""
    rest = stream.read(len(BYTE_ORDER_MARK)).removeprefix(BYTE_ORDER_MARK)
    while block := stream.read(BLOCK):
        block = rest + block
        end = block.rfind(b"\n") + 1
        if end:
            yield block[:end]
        rest = block[end:]
        if len(rest) > LONGEST_LINE + 1:  # the last byte may be a CR that belongs to the line end
            yield rest + _skip_line(stream)
            rest = b""
    if rest:
        yield rest


def _skip_line(stream: BinaryIO) -> bytes:
    """Read on to the end of an endless line, keeping nothing of it but its end."""
    while piece := stream.readline(BLOCK):
        if piece.endswith(b"\n"):
            return b"\n"
    return b""


def _parse_clean(first: int, lines: bytes, rules: Rules) -> Block | None:
    """Parse a block in which no line has any fault; None where one may have."""
    if len(lines) > LONGEST_LINE:  # perhaps in one line
        return None
    if b"\r" in lines:
        lines = lines.replace(b"\r\n", b"\n")
    if b"\r" in lines or b"\0" in lines or BYTE_ORDER_MARK in lines:
        return None
    try:
        table = pyarrow.csv.read_csv(
            pa.py_buffer(lines),
            read_options=pyarrow.csv.ReadOptions(column_names=COLUMNS, block_size=max(len(lines), 1)),
            parse_options=pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(COLUMNS, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowException:  # another number of fields, or not UTF-8: the slow way tells which line
        return None
    named = pc.index_in(table["label"], value_set=pa.array(list(rules.labels), pa.string()))
    sentences = table["sentence"]
    # A letter, digit or sign proves that a sentence is not empty; without one the slow way decides.
    solid = pc.match_substring_regex(sentences, r"[\pL\pN\pP\pS]")
    longest = pc.max(pc.utf8_length(sentences)).as_py()
    if named.null_count or longest is None or longest > rules.max_chars or not pc.all(solid).as_py():
        return None
    labels = pa.array(list(rules.labels.values()), pa.int8()).take(named)
    numbers = pa.array(range(first, first + table.num_rows), pa.int64())
    kept = [numbers, table["source"], labels, table["mark"], sentences]
    return Block(pa.table(kept, schema=KEPT), [])
