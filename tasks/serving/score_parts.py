"""Parts of a batch-scoring run: their schemas, and the key that lets a later run reuse one.

A part holds the answers and faults of consecutive records. It is written atomically, with checksums, and its metadata
hold a digest of its records and of what scored them, so that a part of another input or another model, or a damaged
one, is never reused.
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import Timeout

from tasks.core.errors import VerdictError
from tasks.core.files import atomic_write, json_digest, remove_stale
from tasks.core.folder_locks import exclusive
from tasks.data.cola_format import QuarantinedRow, Row
from tasks.data.record_readers import ParsedRow
from tasks.data.snapshots import QUARANTINE_SCHEMA
from tasks.inference.bundle import digest_version
from tasks.inference.classifier import Classifier, bundle_errors

PART_ROWS = 10_000  # records of a part
PART_BYTES = 64 << 20  # of records; parts of longer records hold fewer
KEY_METADATA = b"verdict.key"  # of the digest in a part's metadata
LAYOUT_VERSION = 3  # of a part; parts of another version are not reused

STAMP_TYPE = pa.dictionary(pa.int32(), pa.string())
ANSWER_FIELDS = [
    ("line", pa.int64()),
    ("sentence", pa.string()),
    ("label", pa.string()),
    ("probability", pa.float64()),
    ("truncated", pa.bool_()),
]
FAULT_FIELDS = [("kind", pa.string()), ("reason", pa.string()), ("raw", pa.binary())]
PART_SCHEMA = pa.schema([*ANSWER_FIELDS, *FAULT_FIELDS])
TRUNCATED: Final = "truncated"  # kind of a row that is refused because the model would read its beginning only
NO_ANSWER: Final = "no answer"  # kind of a row for which the model gives NaN
COUNTED_COLUMNS = ["line", "label", "truncated", "kind", "reason"]  # what the counts of a part need
SCORE_SCHEMA = pa.schema([*ANSWER_FIELDS, ("version", STAMP_TYPE), ("digest", STAMP_TYPE)])


class Stamp(NamedTuple):
    """What each scored row carries: the model's version (None for a bundle that is not registered), and its digest."""

    version: str | None
    digest: str


class Scorer(NamedTuple):
    """A model, its version (None for a bundle that is not registered), and whether truncated sentences are refused."""

    classifier: Classifier
    version: str | None
    refuse_truncated: bool = False

    @property
    def digest(self) -> str:
        """The bundle's digest."""
        return self.classifier.manifest["digest"]

    @property
    def stamp(self) -> Stamp:
        """What the rows that it scores carry."""
        return Stamp(self.version, self.digest)

    def key(self, records: Sequence[ParsedRow]) -> str:
        """Return the digest of records and of everything that determines their answers."""
        total = hashlib.sha256(
            json_digest(
                [LAYOUT_VERSION, self.digest, self.version, self.classifier.provider, self.refuse_truncated]
            ).encode()
        )
        for record in records:
            if isinstance(record, Row):
                total.update(f"{record.line}\t{record.sentence}\n".encode())
            else:
                total.update(f"{record.line}\t\t{record.kind}\t{record.reason}\t{len(record.raw)}\n".encode())
                total.update(record.raw)
        return total.hexdigest()

    def score(self, records: Sequence[ParsedRow]) -> pa.Table:
        """Return records, in order, with their answers or faults, in the columns of PART_SCHEMA."""
        sentences = [record.sentence for record in records if isinstance(record, Row)]
        with bundle_errors(digest_version(self.classifier.manifest), "it cannot answer"):
            answers = self.classifier.answer(sentences)
        found = zip(np.isnan(answers.probabilities).tolist(), answers.truncated.tolist(), strict=True)
        faults = [
            record if isinstance(record, QuarantinedRow) else self._check(record, *next(found)) for record in records
        ]
        labels = pa.array(self.classifier.manifest["labels"], pa.string()).take(pa.array(answers.labels))
        answered = [
            pa.array(sentences, pa.string()),
            labels,
            pa.array(answers.probabilities),
            pa.array(answers.truncated),
        ]
        numbers = np.cumsum([isinstance(record, Row) for record in records], dtype=np.int64) - 1  # of its sentence
        rows = pa.array(numbers, mask=np.array([fault is not None for fault in faults], np.bool_))
        columns = [pa.array([record.line for record in records], pa.int64())]
        columns += [column.take(rows) for column in answered]
        columns += [pa.array([fault and getattr(fault, name) for fault in faults], of) for name, of in FAULT_FIELDS]
        return pa.table(columns, PART_SCHEMA)

    def _check(self, row: Row, missing: bool, truncated: bool) -> QuarantinedRow | None:
        """Return the fault of a row that has no answer, or is truncated, where that is refused."""
        if missing:
            reason = f"the model's variant {self.classifier.variant} gives NaN"
            return QuarantinedRow(row.line, NO_ANSWER, reason, row.sentence.encode())
        if not (truncated and self.refuse_truncated):
            return None
        limit = self.classifier.manifest["max_length"]
        reason = f"sentence of more than the {limit} tokens that the model reads"
        return QuarantinedRow(row.line, TRUNCATED, reason, row.sentence.encode())


def divide(records: Iterable[ParsedRow], size: int) -> Iterator[list[ParsedRow]]:
    """Divide records into lists of at most `size` records and about PART_BYTES bytes."""
    part: list[ParsedRow] = []
    part_bytes = 0
    for record in records:
        part.append(record)
        part_bytes += len(record.sentence) if isinstance(record, Row) else len(record.raw)
        if len(part) == size or part_bytes > PART_BYTES:
            yield part
            part, part_bytes = [], 0
    if part:
        yield part


def read_counted(path: Path, key: str) -> pa.Table | None:
    """Return the COUNTED_COLUMNS of a part; None if there is none with this key, or any column is damaged."""
    try:
        with open_part(path) as part:
            if (part.schema_arrow.metadata or {}).get(KEY_METADATA) != key.encode():
                return None
            return part.read().select(COUNTED_COLUMNS)
    except (OSError, ValueError, pa.ArrowException):
        return None


def open_part(path: Path) -> pq.ParquetFile:
    """Open a part; what is read of it is compared with its checksums.

    Raises:
        OSError: if it cannot be read, or is damaged (without errno).
        pa.ArrowInvalid: if it is damaged.
    """
    return pq.ParquetFile(path, page_checksum_verification=True)


def write_part(path: Path, table: pa.Table, key: str) -> None:
    """Write a part atomically, with the key that `read_counted` compares.

    It is not synced to disk, which may take longer than the part's sentences do: a part that a crash of the machine
    damaged is known by its checksums, and scored again.
    """
    with atomic_write(path, sync=False) as temporary:
        pq.write_table(table.replace_schema_metadata({KEY_METADATA: key}), temporary, write_page_checksum=True)


def quarantined_rows(part: pa.Table, name: str) -> pa.Table:
    """Return the quarantined rows of a part in QUARANTINE_SCHEMA.

    Args:
        part: in PART_SCHEMA.
        name: of the input.
    """
    rejected = part.filter(pc.is_valid(part["kind"]))
    names = pa.array([name] * rejected.num_rows, pa.string()).dictionary_encode()
    return pa.table([names, *rejected.select(QUARANTINE_SCHEMA.names[1:]).columns], schema=QUARANTINE_SCHEMA)


def scored_rows(part: pa.Table, stamp: Stamp) -> pa.Table:
    """Return the scored rows of a part in SCORE_SCHEMA, with version and digest of the model."""
    scored = part.filter(pc.is_valid(part["label"])).select([name for name, _ in ANSWER_FIELDS])
    stamps = [
        pa.DictionaryArray.from_arrays(pa.array([code] * scored.num_rows, pa.int32()), pa.array(words, pa.string()))
        for code, words in ((0 if stamp.version else None, [stamp.version or ""]), (0, [stamp.digest]))
    ]
    return pa.table([*scored.columns, *stamps], schema=SCORE_SCHEMA)


@contextlib.contextmanager
def lock_parts(folder: Path) -> Iterator[None]:
    """Create the folder of the parts and lock it for one run at a time."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(exclusive(folder, 0.0))
        except Timeout:
            raise VerdictError(f"another run writes to {folder} already; wait for it, or name another output") from None
        yield


def drop_parts(folder: Path) -> None:
    """Delete the folder of the parts while its lock is held.

    It is moved aside first. Another run would otherwise find it without its lock file, take a new lock in it, and write
    into what is being deleted.
    """
    with tempfile.TemporaryDirectory(prefix=_aside(folder), dir=folder.parent, ignore_cleanup_errors=True) as scratch:
        folder.rename(Path(scratch) / folder.name)


def drop_killed(folder: Path) -> None:
    """Delete what `drop_parts` left where its process was killed more than a day ago."""
    remove_stale(folder.parent, _aside(folder))


def _aside(folder: Path) -> str:
    return f".{folder.name}."
