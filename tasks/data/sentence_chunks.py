"""Divides the sentences of a source into chunks that can be read alone, in any order and on any machine.

    .txt .tsv .jsonl    lines, read from the offset of the first one
    .parquet            whole row groups
    others              a whole file: compressed ones, JSON lists, Arrow, and CSV, whose quoted fields may hold lines

Chunks in their order have the records of `read_sentences`, with the same lines. A table's header, without which its
other lines mean nothing, is read again with each chunk.
"""

import io
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO, NamedTuple

import numpy as np

from tasks.data.arrow_records import count_group_rows
from tasks.data.cola_format import READ_BYTES, Row
from tasks.data.compression import BUFFER_BYTES, open_data
from tasks.data.json_records import PEEK_RECORDS
from tasks.data.record_readers import ParsedRow, read_rows
from tasks.data.sentences import STDIO, SentenceSource, errors_explained, read_sentences

LINE_FORMATS = ("txt", "tsv", "jsonl")
SCAN_BYTES = 1 << 20  # read at a time for line ends; fits into a processor's cache
BLANK = b"\t\r\n"  # bytes of lines that are no records of a table with several columns, nor JSON


class Chunk(NamedTuple):
    """Consecutive records of one file.

    Args:
        path: of the file.
        before: lines, or records, of the input before the chunk.
        records: about how many it holds; None where only reading tells.
        start: byte of the first line.
        stop: byte after the last line; 0: the whole file.
        head: bytes of a line of the file that says how the others are read, from one offset to another.
        groups: row groups of a Parquet file.
    """

    path: str
    before: int = 0
    records: int | None = None
    start: int = 0
    stop: int = 0
    head: tuple[int, int] = (0, 0)
    groups: tuple[int, int] | None = None


def plan_chunks(source: SentenceSource, size: int) -> Iterator[Chunk]:
    """Yield the chunks of a source in order, of `size` records each where the format allows it.

    Text is read once for its line ends, of Parquet the footer alone.

    Raises:
        VerdictError: if a file cannot be read.
        DataRejected: if it is damaged.
    """
    if source.path == STDIO:
        yield Chunk(STDIO)
        return
    before = 0
    with errors_explained(source):
        for number, path in enumerate(source.files, 1):
            with open_data(path) as stream:
                last = whole = Chunk(path, before)
                for chunk in _divide_file(stream, source, whole, size):
                    yield chunk
                    last = chunk
            if number < len(source.files):
                before = last.before + (_count_records(source, path) if last.records is None else last.records)


def read_chunk(source: SentenceSource, chunk: Chunk) -> Iterator[ParsedRow]:
    """Yield the records of a chunk, as `read_sentences` does.

    Raises:
        VerdictError: if the file cannot be read.
        DataRejected: if it is damaged.
    """
    if chunk.path == STDIO:
        yield from read_sentences(source)
        return
    groups = range(*chunk.groups) if chunk.groups else None
    with errors_explained(source), open_data(chunk.path) as stream:
        part = stream if not chunk.stop else _part_of(stream, chunk)
        skipped = int(chunk.head != (0, 0))  # lines in front of the chunk
        for row in read_rows(part, source.format_name, source.table_format, chunk.path, groups):
            if row.line > skipped:
                yield type(row)(chunk.before + row.line - skipped, *row[1:])  # a third of the time of _replace


def _divide_file(stream: io.BufferedReader, source: SentenceSource, whole: Chunk, size: int) -> Iterator[Chunk]:
    """Yield the chunks of one file, which `whole` describes; `whole` itself where it cannot be divided."""
    if source.format_name == "parquet":
        yield from _group_rows(count_group_rows(stream, whole.path), whole, size)
    elif source.format_name in LINE_FORMATS and stream.seekable() and (head := _find_head(stream, source, whole.path)):
        stream.seek(head[0])
        has_blank_lines = source.format_name == "jsonl" or b"\t" in stream.read(head[1] - head[0])
        stream.seek(0)
        yield from _divide_lines(stream, whole, head, size, BLANK if has_blank_lines else b"")
    else:
        yield whole


def _group_rows(rows: list[int], whole: Chunk, size: int) -> Iterator[Chunk]:
    """Yield chunks of as many row groups as hold `size` records, given the number in each."""
    first, held, before = 0, 0, whole.before
    for number, count in enumerate(rows, 1):
        held += count
        if held >= size or number == len(rows):
            yield whole._replace(before=before, records=held, groups=(first, number))
            first, held, before = number, 0, before + held


def _find_head(stream: io.BufferedReader, source: SentenceSource, path: str) -> tuple[int, int] | None:
    """Return from where to where the line lies that has the columns' names; None if there is none, or it is too long.

    Of JSON objects it is the first that holds a sentence; of other text the first line, header or not.
    """
    number: int | None = 1
    if source.format_name == "jsonl":
        rows = islice(read_rows(stream, "jsonl", source.table_format, path), PEEK_RECORDS)
        number = next((row.line for row in rows if isinstance(row, Row)), None)
        stream.seek(0)
    start = stop = 0
    for _ in range(number or 0):
        line = stream.readline(READ_BYTES)
        if not line.endswith(b"\n"):
            return None
        start, stop = stop, stop + len(line)
    return (start, stop) if number else None


def _divide_lines(
    stream: io.BufferedReader, whole: Chunk, head: tuple[int, int], size: int, blank: bytes
) -> Iterator[Chunk]:
    """Yield chunks of `size` lines; those of nothing but bytes of `blank` are no records at the end of a file."""
    start = offset = first = lines = last = 0
    while block := stream.read(SCAN_BYTES):
        if kept := len(block.rstrip(blank) if blank else block):
            last = lines + block.count(b"\n", 0, kept - 1) + 1
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + offset + 1
        for stop in ends[first + size - lines - 1 :: size].tolist():
            yield whole._replace(
                before=whole.before + first, records=size, start=start, stop=stop, head=head if start else (0, 0)
            )
            start, first = stop, first + size
        lines, offset = lines + len(ends), offset + len(block)
    if offset > start or last < lines:
        yield whole._replace(
            before=whole.before + first, records=last - first, start=start, stop=offset, head=head if start else (0, 0)
        )


def _count_records(source: SentenceSource, path: str) -> int:
    """Return the line of the last record of a file that has to be read for it."""
    last = 0
    with open_data(path) as stream:
        for row in read_rows(stream, source.format_name, source.table_format, path):
            last = row.line
    return last


def _part_of(stream: io.BufferedReader, chunk: Chunk) -> BinaryIO:
    """Return the lines of a chunk as a file, after the line that says how they are read."""
    start, stop = chunk.head
    stream.seek(start)
    head = stream.read(stop - start)
    stream.seek(chunk.start)
    return io.BufferedReader(_Lines(head, stream, chunk.stop - chunk.start), BUFFER_BYTES)


class _Lines(io.RawIOBase):
    """A line, and so many bytes of another stream, from where it is."""

    def __init__(self, head: bytes, stream: io.BufferedReader, size: int) -> None:
        self._head, self._stream, self._left = head, stream, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        data, self._head = self._head[: len(buffer)], self._head[len(buffer) :]
        if not data:
            data = self._stream.read(min(len(buffer), self._left))
            self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)
