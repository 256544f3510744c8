r"""Strict reader of CoLA's tab-separated format; every input row ends up kept or quarantined with a reason.

A row has four columns and no quoting: source code, label (1 acceptable, 0 not), the author's mark, sentence.

    gj04\t0\t*\tThe sailors rode the breeze clear the rocks.

CSV readers guess: a lone quote swallows lines, `NA` becomes a missing value, a fifth column shifts the others. Here a
line is split at its tabs and nothing else happens to it. The format: https://nyu-mll.github.io/CoLA.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self, TypedDict

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import VerdictError
from tasks.files import digest_of, sha256_of

BATCH_ROWS = 65_536  # rows held in memory at a time
EXAMPLES = 5  # quarantined rows that a snapshot's summary shows
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

ROWS = pa.schema(
    {"line": pa.int64(), "source": pa.string(), "label": pa.int8(), "mark": pa.string(), "sentence": pa.string()}
)
REJECTED = pa.schema({"line": pa.int64(), "reason": pa.string(), "raw": pa.binary()})


class Row(NamedTuple):
    """One kept row; `line` counts from 1."""

    line: int
    source: str
    label: int
    mark: str
    sentence: str


class Rejected(NamedTuple):
    """One quarantined row with its reason and its bytes as found, without the line end."""

    line: int
    reason: str
    raw: bytes


class Snapshot(TypedDict):
    """What one file held; rows_in = kept + quarantined."""

    digest: str
    path: str
    rows_in: int
    kept: int
    quarantined: int
    quarantine: str | None
    examples: list[str]


class Data(TypedDict):
    """The snapshots of one run; `reported` is a holdout that does not judge."""

    digest: str
    train: Snapshot
    holdout: Snapshot
    reported: Snapshot | None


def parse_row(line: int, raw: bytes, max_chars: int) -> Row | Rejected:
    """Parse one line without its line end; never raises.

    Args:
        line: number of the line, from 1.
        raw: the bytes of the line.
        max_chars: longest sentence that is kept, in characters.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return Rejected(line, "not UTF-8", raw)
    if "\0" in text:
        return Rejected(line, "NUL character", raw)
    if "\r" in text or text.startswith("\ufeff"):
        return Rejected(line, "carriage return or byte order mark inside the file", raw)
    fields = text.split("\t")
    if len(fields) != 4:
        return Rejected(line, f"{len(fields)} fields instead of 4", raw)
    source, label, mark, sentence = fields
    if label not in ("0", "1"):
        return Rejected(line, f"label {label[:20]!r} instead of 0 or 1", raw)
    if not sentence.strip():
        return Rejected(line, "empty sentence", raw)
    if len(sentence) > max_chars:
        return Rejected(line, f"sentence of {len(sentence)} characters, more than {max_chars}", raw)
    return Row(line, source, int(label), mark, sentence)


def parse_rows(lines: Iterable[bytes], max_chars: int = 2_000) -> Iterator[Row | Rejected]:
    """Parse lines as a binary file yields them (LF or CRLF, the last one with or without); one result a line."""
    for number, raw in enumerate(lines, start=1):
        if number == 1:
            raw = raw.removeprefix(BYTE_ORDER_MARK)
        yield parse_row(number, raw.removesuffix(b"\n").removesuffix(b"\r"), max_chars)


def format_row(row: Row) -> str:
    """Write a row as one line of the format, LF included; the inverse of `parse_row`."""
    return f"{row.source}\t{row.label}\t{row.mark}\t{row.sentence}\n"


def take_snapshot(path: str, folder: str, max_chars: int = 2_000) -> Snapshot:
    """Read a file strictly and keep its rows as Parquet in `folder`, named by the SHA-256 of the kept rows.

    The digest is that of the kept rows written back in the format, so for a clean file with LF line ends it is the
    digest that `sha256sum` prints for the file itself, whatever Parquet version wrote the snapshot.

    Raises:
        VerdictError: if the file cannot be read or holds nothing.
    """
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=home) as scratch:
        kept_file, rejected_file = Path(scratch) / "rows.parquet", Path(scratch) / "quarantine.parquet"
        with _Sink(kept_file, ROWS) as kept, _Sink(rejected_file, REJECTED) as rejected:
            digest, examples = _sort_rows(path, max_chars, kept, rejected)
        rows_in = kept.rows + rejected.rows
        if rows_in == 0:
            raise VerdictError(f"{path} is empty; expected tab-separated rows: source, label, mark, sentence")
        target = home / f"{digest}.parquet"
        # Files with the same good rows can differ in the bad ones, so these are named by their own digest.
        quarantine = home / f"quarantine-{sha256_of(rejected_file)}.parquet"
        kept_file.replace(target)
        if rejected.rows:
            rejected_file.replace(quarantine)
    return Snapshot(
        digest=digest,
        path=str(target),
        rows_in=rows_in,
        kept=kept.rows,
        quarantined=rejected.rows,
        quarantine=str(quarantine) if rejected.rows else None,
        examples=examples,
    )


def take_snapshots(train: str, holdout: str, reported: str | None, folder: str, max_chars: int) -> Data:
    """Snapshot the files of a run; its digest names all of them together."""
    snapshots = {
        role: take_snapshot(path, folder, max_chars) if path else None
        for role, path in {"train": train, "holdout": holdout, "reported": reported}.items()
    }
    digests = {role: snapshot["digest"] for role, snapshot in snapshots.items() if snapshot}
    return Data(digest=digest_of(digests), **snapshots)  # type: ignore[typeddict-item]


def load_rows(path: str) -> pd.DataFrame:
    """Load a snapshot: columns line, source, label (0 or 1), mark, sentence; one row a sentence.

    Raises:
        VerdictError: if the snapshot cannot be read.
    """
    try:
        return pq.read_table(path).to_pandas()
    except (OSError, ValueError, pa.ArrowException) as error:
        first = str(error).splitlines()[0]
        raise VerdictError(f"snapshot {path} cannot be read ({first}); delete it and run again") from error


def _sort_rows(path: str, max_chars: int, kept: "_Sink", rejected: "_Sink") -> tuple[str, list[str]]:
    """Send each row of a file to one of two sinks; return the kept rows' digest and the first rejections."""
    digest = hashlib.sha256()
    examples: list[str] = []
    try:
        with Path(path).open("rb") as lines:
            for row in parse_rows(lines, max_chars):
                if isinstance(row, Row):
                    digest.update(format_row(row).encode())
                    kept.add(row)
                    continue
                rejected.add(row)
                if len(examples) < EXAMPLES:
                    examples.append(f"line {row.line}: {row.reason}")
    except OSError as error:
        raise VerdictError(
            f"{path} cannot be read ({error.strerror}); expected a readable file of CoLA rows"
        ) from error
    return digest.hexdigest(), examples


class _Sink:
    """A Parquet file that takes rows one by one and holds at most `BATCH_ROWS` of them in memory."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.rows = 0
        self._schema = schema
        self._pending: list[tuple] = []
        self._writer = pq.ParquetWriter(path, schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, row: tuple) -> None:
        self.rows += 1
        self._pending.append(row)
        if len(self._pending) == BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        columns: list[Any] = list(zip(*self._pending, strict=True)) or [[] for _ in self._schema]
        self._writer.write_table(pa.table(dict(zip(self._schema.names, columns, strict=True)), schema=self._schema))
        self._pending.clear()
