"""Writes and reads snapshots: kept rows as Parquet named by the SHA-256 of their content, the others in quarantine.

Rows in = kept + quarantined, for any bytes. Rows are written block by block, so memory does not grow with the files.
"""

import contextlib
import errno
import hashlib
import logging
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.core.errors import DataRejected, VerdictError, first_line
from tasks.core.files import remove_stale, sha256_of
from tasks.core.printable import counted
from tasks.data.cola_format import ROW_SCHEMA, QuarantinedRow, format_rows
from tasks.data.file_kinds import new_name
from tasks.data.label_names import LabelCount
from tasks.data.record_readers import is_utf8, parse_file
from tasks.data.table_folders import table_path
from tasks.data.table_format import TableFormat

SCRATCH_PREFIX = ".incoming-"  # of folders for unfinished snapshots
MAX_UNREADABLE = 100_000  # quarantined rows of a file; with more, which are most of it, it is refused as a whole
MAX_EXAMPLES = 5  # quarantined rows that a snapshot's summary shows

log = logging.getLogger(__name__)

# What to do about rows that cannot be read, by the most frequent fault; FILE and NEW are names of files.
_REMEDIES = {
    "encoding": "where they are Windows-1252 or Latin-1: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW",
    "field count": (
        "expected as many fields in each row as the header has (in CSV, quote those with a comma), or CoLA's four "
        "columns (source, label, mark, sentence), tab-separated"
    ),
    "line break": "expected a sentence in one line: replace line breaks and tabs in its fields by spaces",
    "too long": "expected sentences: --set data.max_chars=N takes longer ones",
    "NUL": "expected text: tr -d '\\000' < FILE > NEW",
    "label": (
        "expected 1 and 0: --labels NAME=1,NAME=0 says what others mean, --columns label=NAME that another column has "
        "them; rows without a label can be deleted"
    ),
    "record": (
        "expected records of the format that the ending of its name says, each with its sentence as text: write it "
        "again, or rename it"
    ),
    "empty sentence": "expected a sentence in each row: delete the rows without one, or --columns text=NAME,label=NAME",
}
_OTHER_REMEDY = (
    "expected CoLA's four columns (source, label, mark, sentence), or a header: --columns text=NAME,label=NAME"
)
# Share of rows with this fault above which it is logged; the gate's report says enough about others.
_LOGGED = dict.fromkeys(("encoding", "line break", "too long", "NUL", "field count", "record"), 0.01) | {"label": 0.05}

_FILE = pa.field("file", pa.dictionary(pa.int32(), pa.string()))
SNAPSHOT_SCHEMA = pa.schema([_FILE, *ROW_SCHEMA])
QUARANTINE_SCHEMA = pa.schema(
    [_FILE, ("line", pa.int64()), ("kind", pa.string()), ("reason", pa.string()), ("raw", pa.binary())]
)


class Snapshot(TypedDict):
    """What some files held: rows_in = kept + quarantined.

    Args:
        digest: SHA-256 of the kept rows as lines of CoLA's format.
        path: Parquet file of the kept rows.
        files: paths that were read.
        empty_files: names of files without a kept row.
        quarantine_digest: SHA-256 of the quarantined rows' bytes; None where there are none.
        rows_in: records in the files.
        kept: rows in `path`.
        quarantined: rows in `quarantine`.
        reasons: quarantined rows by kind, most frequent first.
        quarantine: Parquet file of the quarantined rows; None where there are none.
        examples: the first quarantined rows, at most MAX_EXAMPLES, as "FILE line N: REASON".
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
    table_format: TableFormat = TableFormat(),  # noqa: B008 (immutable)
    *,
    allow_empty: bool = False,
) -> Snapshot:
    """Read files strictly, one after the other, and write their rows as Parquet to `folder`.

    The digest is that of the kept rows written back in CoLA's format, so for one clean file with LF line ends it is
    what `sha256sum` prints for the file itself, whatever Parquet version wrote the snapshot.

    Args:
        files: paths; each row has the name of its file and its line.
        folder: receives DIGEST.parquet and, where rows were quarantined, quarantine-DIGEST.parquet.
        table_format: names of the columns and what a row must satisfy.
        allow_empty: return a snapshot without rows where there are no records at all.

    Raises:
        UsageError: if a file lacks a required column.
        VerdictError: if a file cannot be read.
        DataRejected: if a file is damaged, there are no records in any of them, or a long file holds hardly any row.
    """
    home = _make_folder(folder)
    with os_errors_explained(files, folder):
        remove_stale(home, SCRATCH_PREFIX)
        with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=home) as scratch:
            with RowWriter(Path(scratch)) as rows, _Quarantine(Path(scratch)) as quarantine:
                labels = {table_path(file): LabelCount(table_format.rules.labels) for file in files}
                kept = [
                    _parse_into(Path(file), table_format, rows, quarantine, labels[table_path(file)]) for file in files
                ]
            for table, counts in labels.items() if table_format.labelled else ():
                counts.reject_other_names(table)
            if rows.count + quarantine.count == 0 and not allow_empty:
                raise DataRejected(_explain_empty(files))
            path, quarantine_path = rows.publish(home), quarantine.publish(home)
    return Snapshot(
        digest=rows.digest,
        path=path,
        files=[str(file) for file in files],
        empty_files=[Path(file).name for file, count in zip(files, kept, strict=True) if not count],
        quarantine_digest=quarantine.digest,
        rows_in=rows.count + quarantine.count,
        kept=rows.count,
        quarantined=quarantine.count,
        reasons=dict(quarantine.kinds.most_common()),
        quarantine=quarantine_path,
        examples=quarantine.examples,
    )


def iter_snapshot(path: str, columns: list[str] | None = None, rows: int = 131_072) -> Iterator[pa.RecordBatch]:
    """Yield a snapshot in batches of at most `rows` rows.

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


def _make_folder(folder: str) -> Path:
    home = Path(folder)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VerdictError(f"folder {folder} cannot be made ({error.strerror}); name another: VERDICT_HOME") from error
    return home


@contextlib.contextmanager
def os_errors_explained(files: Sequence[str], folder: str) -> Iterator[None]:
    """Turn an OSError into a VerdictError: of a full disk with the `folder`, or of a file that cannot be read."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise VerdictError(f"no space left for the snapshot in {folder}; make room and run again") from error
        raise VerdictError(
            f"{error.filename or files[0]} cannot be read ({error.strerror}); expected a readable file of rows"
        ) from error


def _explain_empty(files: Sequence[str]) -> str:
    """Say that there are no rows: in files without bytes, or under a header."""
    names = ", ".join(dict.fromkeys(files))
    state = "holds no row, perhaps a header alone" if any(Path(file).stat().st_size for file in files) else "is empty"
    return f"{names} {state}; expected a row for each sentence: write it again, or name another: --data FILE"


def describe_unreadable(files: Sequence[str], quarantined: int, rows: str, reasons: Iterable[str], example: str) -> str:
    """Say how many rows cannot be read, why, and what to do about the most frequent fault.

    Args:
        files: paths.
        quarantined: rows that cannot be read.
        rows: "N rows" of which they are.
        reasons: kinds of faults, the most frequent one first.
        example: "FILE line N: REASON" of a row.
    """
    path = next((file for file in files if example.startswith(f"{Path(file).name} line ")), files[0])
    remedy = _REMEDIES.get(next(iter(reasons)), _OTHER_REMEDY)
    remedy = remedy.replace("FILE", shlex.quote(path)).replace("NEW", new_name(path))
    return f"{', '.join(files)}: {quarantined} of {rows} cannot be read ({example}); {remedy}"


def log_remedy(snapshot: Snapshot) -> None:
    """Log what to do about the most frequent fault of rows, if it is not rare."""
    for kind, count in [*snapshot["reasons"].items()][:1]:
        if count > _LOGGED.get(kind, 1) * snapshot["rows_in"]:
            rows = counted(snapshot["rows_in"], "row")
            log.warning("%s", describe_unreadable(snapshot["files"], count, rows, [kind], snapshot["examples"][0]))


def _parse_into(
    path: Path, table_format: TableFormat, rows: "RowWriter", quarantine: "_Quarantine", labels: LabelCount
) -> int:
    """Send each row of a file to one of two writers and count its label; return how many were kept."""
    if not is_utf8(path.name):
        raise VerdictError(f"{str(path)!a} has a name that is not UTF-8; rename the file")
    kept_before, lost_before = rows.count, quarantine.count
    for block in parse_file(path, table_format):
        names = pa.array([path.name] * block.kept.num_rows, pa.string()).dictionary_encode()
        rows.add(pa.table([names, *block.kept.columns], schema=SNAPSHOT_SCHEMA))
        quarantine.add(path.name, block.quarantined)
        acceptable = pc.sum(block.kept["label"]).as_py() or 0
        labels.add_known(1, acceptable)
        labels.add_known(0, block.kept.num_rows - acceptable)
        for row in block.quarantined:
            if row.label is not None:
                labels.add_unknown(row.label)
        lost = quarantine.count - lost_before
        if lost > max(MAX_UNREADABLE, rows.count - kept_before):
            labels.reject_other_names(str(path))
            first = counted(rows.count - kept_before + lost, "row")
            (kind, _), *_ = quarantine.kinds.most_common(1)
            example = quarantine.examples[-1]
            raise DataRejected(describe_unreadable([str(path)], lost, f"its first {first}", [kind], example))
    return rows.count - kept_before


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
        """Append rows of SNAPSHOT_SCHEMA."""
        if table.num_rows:
            self._writer.write_table(table)
            self._sum.update(format_rows(table))
            self.count += table.num_rows

    def publish(self, folder: Path) -> str:
        """Move the closed file to `folder` under its digest; return its path."""
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

    def add(self, file: str, quarantined: list[QuarantinedRow]) -> None:
        if not quarantined:
            return
        lines, kinds, reasons, raw, _ = zip(*quarantined, strict=True)
        self._writer.write_table(
            pa.table([[file] * len(lines), lines, kinds, reasons, raw], QUARANTINE_SCHEMA.names).cast(QUARANTINE_SCHEMA)
        )
        self.count += len(lines)
        self.kinds.update(kinds)
        for row in quarantined:
            self._sum.update(row.raw + b"\n")
        for row in quarantined[: MAX_EXAMPLES - len(self.examples)]:
            self.examples.append(f"{file} line {row.line}: {row.reason}")

    @property
    def digest(self) -> str | None:
        """SHA-256 of the rows so far, one a line; None where there is none."""
        return self._sum.hexdigest() if self.count else None

    def publish(self, folder: Path) -> str | None:
        """Move the closed file to `folder`; return its path, or None where there is no row.

        The name is not the snapshot's digest: files with the same kept rows may differ in the quarantined ones.
        """
        if not self.count:
            return None
        target = folder / f"quarantine-{sha256_of(self._path)}.parquet"
        self._path.replace(target)
        return str(target)
