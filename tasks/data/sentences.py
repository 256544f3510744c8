"""Sentences to score, from a table or standard input: every record is one sentence, or quarantined with a reason.

    .tsv                        CoLA's four columns, or a text column under a header
    .csv .jsonl .json           tables with a text column
    .parquet .arrow .feather
    .txt                        one sentence a line
    .tsv.gz .csv.zst ...        those that are text, compressed with gzip, zstd or bzip2
    DIR                         a table in several files, read in their order
    s3://BUCKET/KEY             a file in an S3 store, or all data files below an address, in the order of their names
    -                           standard input, compressed or not, one sentence a line unless a format is named

Only the text column counts; a fault in another one does not keep a sentence from being scored. What `verdict serve`
answers is scored, so line breaks and 10,000 characters too; but a missing value or an empty line is no sentence.
"""

import io
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple, cast

from tasks.core.column_options import parse_columns
from tasks.core.errors import DataRejected, UsageError, VerdictError, first_line
from tasks.data.cola_format import RowRules
from tasks.data.compression import open_data, unpacked_stream
from tasks.data.file_kinds import FORMATS, HEAD_BYTES, detect_format, split_name
from tasks.data.json_records import PEEK_RECORDS
from tasks.data.object_store import is_remote, list_remote
from tasks.data.record_readers import ParsedRow, find_format, is_utf8, read_rows
from tasks.data.table_folders import table_parts, tables_in
from tasks.data.table_format import TableFormat

STDIO = "-"  # standard input or output
STREAM_FORMATS = ("txt", "tsv", "csv", "jsonl", "json")  # formats that standard input may have
MAX_CHARS = 10_000  # of a sentence, as in a request to verdict serve
SCORING = TableFormat(rules=RowRules(MAX_CHARS, any_text=True), labelled=False)


class SentenceSource(NamedTuple):
    """Where sentences are read from, and how.

    Args:
        path: file, folder, address, or - for standard input.
        format_name: of the first file.
        table_format: name of the column, and what a sentence must satisfy.
        parts: files of a folder that is a table, or of an address.
    """

    path: str
    format_name: str
    table_format: TableFormat = SCORING
    parts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name for messages and quarantined rows; of . and .. the folder's."""
        return "standard input" if self.path == STDIO else Path(os.path.normpath(Path(self.path).absolute())).name

    @property
    def files(self) -> tuple[str, ...]:
        """Paths or addresses of the files, in their order."""
        return self.parts or (self.path,)


def open_source(path: str, columns: str = "", format_name: str = "") -> SentenceSource:
    """Check that sentences can be read, as far as a file's first records tell.

    Args:
        path: file, folder that is one table, address of an S3 store, or - for standard input.
        columns: text=NAME; other roles are allowed and ignored, so that one text serves training and scoring.
        format_name: txt, tsv, csv, jsonl, json, parquet or arrow; empty: as the path's suffix says.

    Raises:
        UsageError: if there is no such file, format or column.
        VerdictError: if the file cannot be read.
        DataRejected: if it is damaged, or holds no sentence.
    """
    try:
        named = parse_columns(columns)
    except ValueError as error:
        raise UsageError(f"--columns {columns!r} is refused: {error}; sentences need text=NAME alone") from error
    parts = _list_files(path)
    first = parts[0] if parts else path
    source = SentenceSource(path, _find_format(first, format_name), SCORING._replace(columns=named), tuple(parts))
    if source.format_name == "txt" and "text" in named:
        raise UsageError(f"--columns {columns!r} names a column, and {path} is text, a sentence a line; leave it out")
    if is_remote(first) or (path != STDIO and Path(first).is_file()):  # what is taken from a pipe would be lost
        with errors_explained(source):
            source = source._replace(format_name=find_format(first, source.format_name, source.table_format))
        if not list(islice(read_sentences(source), PEEK_RECORDS)):
            raise DataRejected(f"{path} holds no sentence; expected at least one: write it again, or name another")
    return source


def read_sentences(source: SentenceSource) -> Iterator[ParsedRow]:
    """Yield each record, in order, as a row or a quarantined row; lines of a table in several files are counted on.

    Raises:
        UsageError: if there is no text column.
        VerdictError: if the input cannot be read.
        DataRejected: if it is damaged.
    """
    with errors_explained(source):
        if source.path == STDIO:
            standard = cast(io.BufferedReader, sys.stdin.buffer)  # BinaryIO to typeshed
            stream = unpacked_stream(standard, source.name)
            found = detect_format(stream.peek(HEAD_BYTES)[:HEAD_BYTES], source.format_name)
            if found not in STREAM_FORMATS:
                raise UsageError(f"standard input is a {found} file; expected {_one_of(STREAM_FORMATS)}: name the file")
            yield from read_rows(stream, found, source.table_format, source.name)
            return
        before = last = 0
        for part in source.files:
            with open_data(part) as stream:
                for row in read_rows(stream, source.format_name, source.table_format, part):
                    last = before + row.line
                    yield row._replace(line=last) if before else row
            before = last


@contextmanager
def errors_explained(source: SentenceSource) -> Iterator[None]:
    """Raise what keeps a block from reading the input as one line."""
    try:
        yield
    except OSError as error:
        reason = first_line(error, 200) if is_remote(source.path) else error.strerror or error
        raise VerdictError(f"{source.path} cannot be read ({reason}); expected a readable file of sentences") from error


def _check_path(path: str) -> None:
    if not is_utf8(path):
        raise UsageError(f"input {path!a} has a name that is not UTF-8; rename the file")
    if not Path(path).exists():
        raise UsageError(f"input {path!r} does not exist; expected a file of sentences, or - for standard input")
    if not (Path(path).is_file() or Path(path).is_dir()):
        raise UsageError(
            f"input {path!r} is a pipe or device, and is read more than once; expected a file of sentences, or - for "
            "standard input"
        )


def _list_files(path: str) -> list[str]:
    """Return the files of a folder or of an address; none of what is one file, or standard input."""
    if is_remote(path):
        with errors_explained(SentenceSource(path, "")):
            return list_remote(path)
    if path == STDIO:
        return []
    _check_path(path)
    return _find_parts(path) if Path(path).is_dir() else []


def _find_parts(folder: str) -> list[str]:
    """Return the files of a folder that is one table."""
    try:
        if parts := table_parts(Path(folder)):
            return parts
        named = sorted({*tables_in(Path(folder)), *(file.name for file in Path(folder).iterdir() if file.is_file())})
    except OSError as error:
        raise UsageError(f"input {folder!r} cannot be listed ({error.strerror}); expected a readable folder") from error
    held = ", ".join(named[:8]) or "no file"
    raise UsageError(f"input {folder!r} is a folder, and not of one table (it holds {held}); name a file of it")


def _find_format(path: str, format_name: str) -> str:
    if path == STDIO:
        found = format_name or "txt"
        if found not in STREAM_FORMATS:
            raise UsageError(
                f"{found} cannot be read from standard input; write it to a file, or use {_one_of(STREAM_FORMATS)}"
            )
        return found
    suffix = Path(path).suffix
    found = format_name or split_name(path)[1]
    if not found:
        raise UsageError(
            f"input {path!r} has {f'the unknown ending {suffix!r}' if suffix else 'no ending'}; "
            f"expected {_one_of(FORMATS)}, or --format {'|'.join(dict.fromkeys(FORMATS.values()))}"
        )
    return found


def _one_of(words: Collection[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}"
