"""Turns files into a snapshot: the kept rows as Parquet under the SHA-256 of their content, the others in quarantine.

Rows in = kept + quarantined, for any bytes. Rows are written block by block, so memory does not grow with the files.
"""

import errno
import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.errors import VerdictError, first_line
from tasks.core.files import remove_stale, sha256_of
from tasks.data.cola_format import ROW_SCHEMA, Block, QuarantinedRow, format_rows
from tasks.data.record_readers import TableFormat, is_utf8, parse_file

SCRATCH_PREFIX = ".incoming-"  # prefix of folders for unfinished snapshots
MAX_EXAMPLES = 5  # quarantined rows that a snapshot's summary shows

_FILE = pa.field("file", pa.dictionary(pa.int32(), pa.string()))
SNAPSHOT_SCHEMA = pa.schema([_FILE, *ROW_SCHEMA])
QUARANTINE_SCHEMA = pa.schema(
    [_FILE, ("line", pa.int64()), ("kind", pa.string()), ("reason", pa.string()), ("raw", pa.binary())]
)


class Snapshot(TypedDict):
    """What some files held; rows_in = kept + quarantined. `reasons` counts the quarantined rows by kind.

    `unread` names files without a kept row; `rejected` digests the quarantined rows, None where there are none.
    """

    digest: str
    path: str
    files: list[str]
    empty_files: list[str]
    quarantine_digest: str | None
    rows_in: int
    kept: int
    quarantined: int
    reasons: dict[str, int]
    quarantine: str | None
    examples: list[str]


def write_snapshot(
    files: Sequence[str],
    folder: str,
    form: TableFormat = TableFormat(),  # noqa: B008 (immutable)
    parse: Callable[[Path, TableFormat], Iterator[Block]] = parse_file,
) -> Snapshot:
    """Read files strictly, one after the other, and keep their rows as Parquet in `folder`.

    The digest is that of the kept rows written back in CoLA's format, so for one clean file with LF line ends it is
    the digest that `sha256sum` prints for the file itself, whatever Parquet version wrote the snapshot.

    Args:
        files: paths; each row remembers its file's name and its line.
        folder: receives DIGEST.parquet and, where rows were quarantined, quarantine-DIGEST.parquet.
        form: how the columns are called and what a row must satisfy.
        parse: how a file becomes rows.

    Raises:
        WrongUsage: if a file has no column that is needed.
        VerdictError: if a file cannot be read, or all of them are empty.
    """
    home = Path(folder)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VerdictError(f"folder {folder} cannot be made ({error.strerror}); name another: VERDICT_HOME") from error
    unread: list[str] = []
    try:
        remove_stale(home, SCRATCH_PREFIX)
        with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=home) as scratch:
            with RowWriter(Path(scratch)) as rows, _Quarantine(Path(scratch)) as quarantine:
                for file in files:
                    before = rows.count
                    _partition_rows(Path(file), parse(Path(file), form), rows, quarantine)
                    unread += [] if rows.count > before else [Path(file).name]
            if rows.count + quarantine.count == 0:
                raise VerdictError(f"{', '.join(files)} is empty; expected rows of source, label, mark, sentence")
            path, aside = rows.publish(home), quarantine.publish(home)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise VerdictError(f"no space left for the snapshot in {folder}; make room and run again") from error
        raise VerdictError(
            f"{error.filename or files[0]} cannot be read ({error.strerror}); expected a readable file of rows"
        ) from error
    return Snapshot(
        digest=rows.digest,
        path=path,
        files=[str(file) for file in files],
        empty_files=unread,
        quarantine_digest=quarantine.digest,
        rows_in=rows.count + quarantine.count,
        kept=rows.count,
        quarantined=quarantine.count,
        reasons=dict(quarantine.kinds.most_common()),
        quarantine=aside,
        examples=quarantine.examples,
    )


def iter_snapshot(path: str, columns: list[str] | None = None, rows: int = 131_072) -> Iterator[pa.RecordBatch]:
    """Yield a snapshot piece by piece.

    Raises:
        VerdictError: if the snapshot cannot be read.
    """
    try:
        yield from pq.ParquetFile(path).iter_batches(rows, columns=columns)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def count_rows(path: str) -> int:
    """Return the number of rows in a snapshot, from its footer.

    Raises:
        VerdictError: if the snapshot cannot be read.
    """
    try:
        return pq.read_metadata(path).num_rows
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def read_snapshot(path: str) -> pd.DataFrame:
    """Load a snapshot: columns file, line, source, label (0 or 1), mark, sentence; one row a sentence.

    Raises:
        VerdictError: if the snapshot cannot be read.
    """
    try:
        return pq.read_table(path).to_pandas()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> VerdictError:
    return VerdictError(f"snapshot {path} cannot be read ({first_line(error, 200)}); delete it and run again")


def _partition_rows(path: Path, blocks: Iterator[Block], rows: "RowWriter", quarantine: "_Quarantine") -> None:
    """Send each row of a file to one of two writers."""
    if not is_utf8(path.name):
        raise VerdictError(f"{str(path)!a} has a name that is not UTF-8; rename the file")
    for block in blocks:
        names = pa.array([path.name] * block.kept.num_rows, pa.string()).dictionary_encode()
        rows.add(pa.table([names, *block.kept.columns], schema=SNAPSHOT_SCHEMA))
        quarantine.add(path.name, block.quarantined)


class RowWriter:
    """Writes rows as Parquet, block by block, and digests them as lines of CoLA's format."""

    def __init__(self, scratch: Path, name: str = "rows.parquet") -> None:
        self.count = 0
        self._path = scratch / name
        self._sum = hashlib.sha256()
        self._writer = pq.ParquetWriter(self._path, SNAPSHOT_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.close()

    @property
    def digest(self) -> str:
        """SHA-256 of the rows so far."""
        return self._sum.hexdigest()

    def add(self, table: pa.Table) -> None:
        """Append rows of the columns `ROWS`."""
        if table.num_rows:
            self._writer.write_table(table)
            self._sum.update(format_rows(table))
            self.count += table.num_rows

    def publish(self, folder: Path) -> str:
        """Move the closed file to where it is looked for; return its path."""
        target = folder / f"{self.digest}.parquet"
        self._path.replace(target)
        return str(target)


class _Quarantine:
    """Writes quarantined rows as Parquet and counts them by kind."""

    def __init__(self, scratch: Path) -> None:
        self.count = 0
        self.kinds: Counter[str] = Counter()
        self.examples: list[str] = []
        self._sum = hashlib.sha256()
        self._path = scratch / "quarantine.parquet"
        self._writer = pq.ParquetWriter(self._path, QUARANTINE_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.close()

    def add(self, file: str, rejected: list[QuarantinedRow]) -> None:
        if not rejected:
            return
        lines, kinds, reasons, raw = zip(*rejected, strict=True)
        self._writer.write_table(
            pa.table([[file] * len(lines), lines, kinds, reasons, raw], QUARANTINE_SCHEMA.names).cast(QUARANTINE_SCHEMA)
        )
        self.count += len(lines)
        self.kinds.update(kinds)
        for row in rejected:
            self._sum.update(row.raw + b"\n")
        for row in rejected[: MAX_EXAMPLES - len(self.examples)]:
            self.examples.append(f"{file} line {row.line}: {row.reason}")

    @property
    def digest(self) -> str | None:
        """SHA-256 of the rows so far, one a line; None where there is none."""
        return self._sum.hexdigest() if self.count else None

    def publish(self, folder: Path) -> str | None:
        """Move the closed file beside the snapshots; files with the same good rows may differ in the bad ones."""
        if not self.count:
            return None
        target = folder / f"quarantine-{sha256_of(self._path)}.parquet"
        self._path.replace(target)
        return str(target)
