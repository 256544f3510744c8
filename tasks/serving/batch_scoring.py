"""Batch inference: a file of sentences in, Parquet with labels and the model's version out, in bounded memory.

    OUT                       one row for each sentence: line of input, sentence, label, probability, truncated,
                              version, digest
    OUT.quarantine.parquet    rows that could not be scored: line, kind, reason and bytes; only where there are any
    OUT.parts/                finished parts of an unfinished run (score_parts.py); deleted at its end

Rows in = scored + quarantined, always. A run that was killed resumes after its last part. OUT is written atomically, at
the end.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.errors import DataRejected, UsageError, VerdictError
from tasks.core.printable import counted
from tasks.core.progress import progress_bar
from tasks.data.cola_format import Row
from tasks.data.record_readers import ParsedRow
from tasks.data.sentences import STDIO, SentenceSource, count_records, open_source, read_sentences
from tasks.data.snapshots import MAX_EXAMPLES, QUARANTINE_SCHEMA
from tasks.inference.classifier import Classifier
from tasks.serving.score_parts import (
    ANSWER_FIELDS,
    PART_ROWS,
    SCORE_SCHEMA,
    TRUNCATED,
    Scorer,
    divide,
    lock_parts,
    merge_parts,
    quarantined_rows,
    read_counted,
    scored_rows,
    write_part,
)

log = logging.getLogger(__name__)

STREAM_BATCH = 1_000  # records scored at a time for standard output


class ScoreResult(TypedDict):
    """The result of scoring an input: rows_in = scored + quarantined, of which an earlier run scored `reused`.

    `truncated` counts the scored sentences that are longer than the model reads.
    `version` is None for a bundle that is not registered; the rate is this run's, None where it scored nothing.
    """

    rows_in: int
    scored: int
    truncated: int
    quarantined: int
    reused: int
    reasons: dict[str, int]
    examples: list[str]
    quarantine: str | None
    out: str
    version: str | None
    digest: str
    provider: str
    sentences_per_second: float | None


@dataclass
class ScoreCounts:
    """Counts of the records so far."""

    name: str
    rows_in: int = 0
    scored: int = 0
    truncated: int = 0
    reused: int = 0
    fresh: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, part: pa.Table) -> None:
        """Count the rows of a part, with at least COUNTED_COLUMNS, of this run or an earlier one."""
        rejected = part.filter(pc.is_valid(part["kind"])).select(["line", "kind", "reason"])
        self.rows_in += part.num_rows
        self.scored += part.num_rows - rejected.num_rows
        self.truncated += pc.sum(part["truncated"]).as_py() or 0
        self.kinds.update(rejected["kind"].to_pylist())
        for row in rejected.slice(0, MAX_EXAMPLES - len(self.examples)).to_pylist():
            self.examples.append(f"{self.name} line {row['line']}: {row['reason']}")

    @contextlib.contextmanager
    def timing(self, records: Sequence[ParsedRow]) -> Iterator[None]:
        """Count the sentences among records, and the time that the block takes."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started
        self.fresh += sum(isinstance(record, Row) for record in records)

    def describe(self) -> str:
        """Return why rows were quarantined, with the first example."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        return f"{kinds}; {self.examples[0]}"

    def result(self, scorer: Scorer, out: str, quarantine: str | None) -> ScoreResult:
        """Return the counts with model and output."""
        return ScoreResult(
            rows_in=self.rows_in,
            scored=self.scored,
            truncated=self.truncated,
            quarantined=self.rows_in - self.scored,
            reused=self.reused,
            reasons=dict(self.kinds.most_common()),
            examples=self.examples,
            quarantine=quarantine,
            out=out,
            version=scorer.version,
            digest=scorer.digest,
            provider=scorer.classifier.provider,
            sentences_per_second=round(self.fresh / self.seconds, 1) if self.fresh else None,
        )


def check_paths(path: str, out: str, columns: str = "", form: str = "") -> SentenceSource:
    """Check input and output before a model is loaded.

    Args:
        path: file or folder of sentences, or - for standard input.
        out: Parquet file, or - for JSON lines on standard output.
        columns: text=NAME, where the column has no usual name.
        form: format of the input; empty: by the file's extension.

    Raises:
        UsageError: if one of them is invalid.
        VerdictError: if the input cannot be read.
    """
    source = open_source(path, columns, form)
    if out == STDIO:
        return source
    target = Path(out)
    if target.suffix.lower() != ".parquet" or target.is_dir():
        what = "is a folder" if target.is_dir() else "does not end in .parquet"
        raise UsageError(f"output {out!r} {what}; expected a Parquet file, or - for JSON lines on standard output")
    if path != STDIO and Path(path).resolve() in (target.resolve(), _quarantine_path(target).resolve()):
        raise UsageError(f"output {out!r} would replace the input {path!r}; name another file")
    if not target.parent.is_dir():
        raise UsageError(f"folder {str(target.parent)!r} of the output does not exist; run: mkdir -p {target.parent}")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            return source
    except OSError as error:
        raise UsageError(f"folder {str(target.parent)!r} is not writable ({error.strerror}); name another") from error


def score_file(
    path: str,
    out: str,
    bundle: str,
    version: str | None,
    device: str = "auto",
    columns: str = "",
    form: str = "",
    refuse_truncated: bool = False,
    manifest_digest: str = "",
) -> ScoreResult:
    """Score a file of sentences with a bundle.

    Args:
        path: file or folder of sentences, or - for standard input.
        out: Parquet file, or - for JSON lines on standard output.
        bundle: the bundle's folder.
        version: its registered version; None where it is not registered.
        device: cuda, cpu, or auto: a GPU where one works.
        columns: text=NAME, where the column has no usual name.
        form: format of the input; empty: by the file's extension.
        refuse_truncated: quarantine sentences of more tokens than the model reads, instead of scoring their beginning.
        manifest_digest: of the bundle that it has to be; empty: any.

    Raises:
        UsageError: if input or output is invalid.
        DataRejected: if no row could be scored, or the input is damaged.
        VerdictError: if the bundle is damaged, or the disk is full.
    """
    source = check_paths(path, out, columns, form)
    scorer = Scorer(Classifier.from_bundle(bundle, device, expected=manifest_digest), version, refuse_truncated)
    return score_to_stream(source, sys.stdout, scorer) if out == STDIO else score_to_file(source, Path(out), scorer)


def score_to_file(source: SentenceSource, out: Path, scorer: Scorer, size: int = PART_ROWS) -> ScoreResult:
    """Score an input into parts of `size` records, then merge them.

    Raises:
        DataRejected: if no row could be scored, or the input is damaged.
        VerdictError: if another run writes the same output, or the disk is full.
    """
    counts = ScoreCounts(source.name)
    folder = Path(f"{out}.parts")
    try:
        with lock_parts(folder):
            parts = _score_parts(source, folder, scorer, counts, size)
            quarantine = str(_quarantine_path(out)) if counts.kinds else None
            if quarantine:
                merge_parts(
                    parts,
                    folder / "rejected",
                    Path(quarantine),
                    QUARANTINE_SCHEMA,
                    lambda part: quarantined_rows(part, source.name),
                )
            else:
                _quarantine_path(out).unlink(missing_ok=True)  # of an earlier run
            if counts.scored:
                merge_parts(parts, folder / "scored", out, SCORE_SCHEMA, lambda part: scored_rows(part, scorer))
            shutil.rmtree(folder)
    except OSError as error:
        raise _unwritten(error, out, counts) from error
    _reject_empty(counts, quarantine, out)
    return counts.result(scorer, str(out), quarantine)


def score_to_stream(source: SentenceSource, sink: TextIO, scorer: Scorer, size: int = STREAM_BATCH) -> ScoreResult:
    """Write one line of JSON for each record, in order; one that cannot be scored has a reason and no label.

    Raises:
        DataRejected: if no row could be scored, or the input is damaged.
        VerdictError: if the stream was closed by its reader.
    """
    counts = ScoreCounts(source.name)
    stamp = {"version": scorer.version, "digest": scorer.digest}
    for records in divide(read_sentences(source), size):
        with counts.timing(records):
            part = scorer.score(records)
            answers = part.select([name for name, _ in ANSWER_FIELDS] + ["reason"]).to_pylist()
        counts.add(part)
        try:
            sink.writelines(json.dumps({**answer, **stamp}, ensure_ascii=False) + "\n" for answer in answers)
            sink.flush()
        except OSError as error:
            # At exit Python flushes what is left, and would fail a second time.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sink.fileno())
            raise VerdictError(
                f"standard output was closed ({error.strerror}) at row {counts.rows_in}; read it whole, or name a file"
            ) from error
    _reject_empty(counts, None)
    return counts.result(scorer, STDIO, None)


def _score_parts(source: SentenceSource, folder: Path, scorer: Scorer, counts: ScoreCounts, size: int) -> list[Path]:
    """Write the parts that no earlier run wrote; return the paths of all parts."""
    parts: list[Path] = []
    logged = False
    with _progress(source, size) as advance:
        for number, records in enumerate(divide(read_sentences(source), size), start=1):
            path, key = folder / f"part-{number:06}.parquet", scorer.key(records)
            part = read_counted(path, key)
            if part is not None:
                counts.reused += part.num_rows
            else:
                if not logged:
                    _log_reuse(path, counts.reused)
                logged = True
                with counts.timing(records):
                    part = scorer.score(records)
                write_part(path, part, key)
            counts.add(part)
            parts.append(path)
            advance()
    return parts


def _log_reuse(path: Path, reused: int) -> None:
    """Log what is reused of an earlier run, before the first part that has to be scored."""
    if reused:
        log.info("%s of an earlier run", counted(reused, "scored row"))
    if path.exists():
        log.warning("parts in %s belong to another input, model or option and are not used", path.parent)


def _quarantine_path(out: Path) -> Path:
    return Path(f"{out}.quarantine.parquet")


@contextlib.contextmanager
def _progress(source: SentenceSource, size: int) -> Iterator[Callable[[], None]]:
    """Show the progress in parts, where the length of the input is known."""
    records = count_records(source)
    if records is None:
        yield lambda: None
        return
    with progress_bar(f"parts of {size:,} sentences", max(-(-records // size), 1)) as advance:
        yield advance


def _reject_empty(counts: ScoreCounts, quarantine: str | None, out: Path | None = None) -> None:
    """Raise an error where no row could be scored; it says so where `out` is the file of an earlier run."""
    if not counts.rows_in:
        raise DataRejected(f"{counts.name} holds no sentence; expected at least one: write it again, or name another")
    if not counts.scored:
        raise DataRejected(
            f"none of {counted(counts.rows_in, 'row')} could be scored: {counts.describe()}"
            + (f"; see {quarantine}, or {_advice(counts)}" if quarantine else "")
            + (f"; {out} is of an earlier run" if out and out.exists() else "")
        )


def _advice(counts: ScoreCounts) -> str:
    if set(counts.kinds) == {TRUNCATED}:
        return "score them without --refuse-truncated"
    return "name the format: --format"


def _unwritten(error: OSError, out: Path, counts: ScoreCounts) -> VerdictError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return VerdictError(
            f"no space left for {out}; {counts.rows_in} rows are done and kept: free space, run the same command again"
        )
    return VerdictError(f"{error.filename or out} cannot be written ({error.strerror or error}); name another output")
