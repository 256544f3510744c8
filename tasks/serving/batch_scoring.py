"""Batch inference: a file of sentences in, Parquet stamped with the model out, in memory that does not grow.

    OUT                         one row a sentence: line of the input, sentence, label, probability, version, digest
    OUT.quarantine.parquet      rows that could not be scored, with line, kind, reason and bytes; only if there are any
    OUT.parts/                  finished parts of a run that has not ended; gone when it has

Rows in = scored + quarantined, always. A part is written whole or not at all and carries a digest of its records and
of what scored them: a run that was killed goes on after its last part, and nothing is taken from a part that belongs
to other sentences or another model. OUT appears last, in one rename.
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

from tasks.core.errors import UsageError, VerdictError
from tasks.core.progress import progress_bar
from tasks.data.cola_format import QuarantinedRow, Row
from tasks.data.record_readers import ParsedRow
from tasks.data.sentences import STDIO, SentenceSource, count_records, open_source, read_sentences
from tasks.data.snapshots import MAX_EXAMPLES, QUARANTINE_SCHEMA
from tasks.inference.classifier import Classifier
from tasks.serving.score_parts import (
    ANSWER_FIELDS,
    PART_ROWS,
    SCORE_SCHEMA,
    Scorer,
    divide,
    is_reusable,
    lock_parts,
    merge_parts,
    quarantined_rows,
    scored_rows,
    write_part,
)

log = logging.getLogger(__name__)

STREAM_BATCH = 1_000  # records answered at a time on standard output


class ScoreResult(TypedDict):
    """What became of an input; rows_in = scored + quarantined, `reused` of them by an earlier run.

    `version` is None for a bundle that is no registered one. The rate is this run's, None where it scored nothing.
    """

    rows_in: int
    scored: int
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
    """Counts what became of the records so far."""

    name: str
    rows_in: int = 0
    scored: int = 0
    reused: int = 0
    fresh: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, records: Sequence[ParsedRow]) -> None:
        """Count records, scored now or before."""
        rejected = [record for record in records if isinstance(record, QuarantinedRow)]
        self.rows_in += len(records)
        self.scored += len(records) - len(rejected)
        self.kinds.update(record.kind for record in rejected)
        for record in rejected[: MAX_EXAMPLES - len(self.examples)]:
            self.examples.append(f"{self.name} line {record.line}: {record.reason}")

    @contextlib.contextmanager
    def timing(self, records: Sequence[ParsedRow]) -> Iterator[None]:
        """Count the sentences among records, and the time that they take."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started
        self.fresh += sum(isinstance(record, Row) for record in records)

    def describe(self) -> str:
        """Write why rows were quarantined."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        return f"{kinds}; {self.examples[0]}"

    def result(self, scorer: Scorer, out: str, quarantine: str | None) -> ScoreResult:
        """Return the counts with what scored."""
        return ScoreResult(
            rows_in=self.rows_in,
            scored=self.scored,
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
    """Check, before anything is loaded, that sentences can be read from one place and written to the other.

    Args:
        path: file of sentences, or - for standard input.
        out: Parquet file, or - for JSON lines on standard output.
        columns: text=NAME, where the column has no usual name.
        form: format of the input; empty: what its ending says.

    Raises:
        WrongUsage: if one of them cannot be meant.
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
        raise UsageError(
            f"nothing can be written to {str(target.parent)!r} ({error.strerror}); name another"
        ) from error


def score_file(
    path: str, out: str, bundle: str, version: str | None, device: str = "auto", columns: str = "", form: str = ""
) -> ScoreResult:
    """Score a file of sentences with a bundle; the other arguments are those of `check_paths`.

    Args:
        path: file of sentences, or - for standard input.
        out: Parquet file, or - for JSON lines on standard output.
        bundle: the bundle's folder.
        version: what it is registered as; None where it is not.
        device: cuda, cpu, or auto: a GPU where one works.
        columns: text=NAME, where the column has no usual name.
        form: format of the input; empty: what its ending says.

    Raises:
        WrongUsage: if input or output cannot be meant.
        VerdictError: if no row could be scored, the bundle is damaged, or the disk is full.
    """
    source = check_paths(path, out, columns, form)
    scorer = Scorer(Classifier.from_bundle(bundle, device), version)
    return score_to_stream(source, sys.stdout, scorer) if out == STDIO else score_to_file(source, Path(out), scorer)


def score_to_file(source: SentenceSource, out: Path, scorer: Scorer, size: int = PART_ROWS) -> ScoreResult:
    """Score an input into parts of so many records, then put them together.

    Raises:
        VerdictError: if no row could be scored, another run writes the same output, or the disk is full.
    """
    tally = ScoreCounts(source.name)
    folder = Path(f"{out}.parts")
    try:
        with lock_parts(folder):
            parts = _score_parts(source, folder, scorer, tally, size)
            aside = str(_quarantine_path(out)) if tally.kinds else None
            if aside:
                merge_parts(
                    parts,
                    folder / "rejected",
                    Path(aside),
                    QUARANTINE_SCHEMA,
                    lambda part: quarantined_rows(part, source.name),
                )
            else:
                _quarantine_path(out).unlink(missing_ok=True)  # of an earlier run
            if tally.scored:
                merge_parts(parts, folder / "scored", out, SCORE_SCHEMA, lambda part: scored_rows(part, scorer))
            shutil.rmtree(folder)
    except OSError as error:
        raise _unwritten(error, out, tally) from error
    _reject_empty(tally, aside)
    return tally.result(scorer, str(out), aside)


def score_to_stream(source: SentenceSource, sink: TextIO, scorer: Scorer, size: int = STREAM_BATCH) -> ScoreResult:
    """Answer each record with one line of JSON, in order; one that cannot be scored has a reason and no label.

    Raises:
        VerdictError: if no row could be scored, or the stream takes no more.
    """
    tally = ScoreCounts(source.name)
    stamp = {"version": scorer.version, "digest": scorer.digest}
    for records in divide(read_sentences(source), size):
        with tally.timing(records):
            answers = scorer.score(records).select([name for name, _ in ANSWER_FIELDS] + ["reason"]).to_pylist()
        tally.add(records)
        try:
            sink.writelines(json.dumps({**answer, **stamp}, ensure_ascii=False) + "\n" for answer in answers)
            sink.flush()
        except OSError as error:
            # Python would fail once more when it flushes what is left at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sink.fileno())
            raise VerdictError(
                f"standard output takes no more ({error.strerror}) at row {tally.rows_in}; read all, or name a file"
            ) from error
    _reject_empty(tally, None)
    return tally.result(scorer, STDIO, None)


def _score_parts(source: SentenceSource, folder: Path, scorer: Scorer, tally: ScoreCounts, size: int) -> list[Path]:
    """Write the parts that an earlier run did not write; return the paths of all."""
    parts: list[Path] = []
    told = False
    with _progress(source, size) as advance:
        for number, records in enumerate(divide(read_sentences(source), size), start=1):
            path, key = folder / f"part-{number:06}.parquet", scorer.key(records)
            if is_reusable(path, key):
                tally.reused += len(records)
            else:
                if not told:
                    _log_part(path, tally.reused)
                told = True
                with tally.timing(records):
                    table = scorer.score(records)
                write_part(path, table, key)
            tally.add(records)
            parts.append(path)
            advance()
    return parts


def _log_part(path: Path, reused: int) -> None:
    """Say what an earlier run left, in front of the first part that has to be scored."""
    if reused:
        log.info("%d rows were done by an earlier run", reused)
    if path.exists():
        log.warning("parts in %s belong to another input or model and are not used", path.parent)


def _quarantine_path(out: Path) -> Path:
    return Path(f"{out}.quarantine.parquet")


@contextlib.contextmanager
def _progress(source: SentenceSource, size: int) -> Iterator[Callable[[], None]]:
    """Show how many parts are done, where their number can be known."""
    records = count_records(source)
    if records is None:
        yield lambda: None
        return
    with progress_bar(f"parts of {size:,} sentences", max(-(-records // size), 1)) as advance:
        yield advance


def _reject_empty(tally: ScoreCounts, aside: str | None) -> None:
    """Raise where no row could be scored."""
    if not tally.rows_in:
        raise VerdictError(f"{tally.name} is empty; expected sentences")
    if not tally.scored:
        raise VerdictError(
            f"none of {tally.rows_in} rows could be scored: {tally.describe()}"
            + (f"; see {aside}, or name the format: --format" if aside else "")
        )


def _unwritten(error: OSError, out: Path, tally: ScoreCounts) -> VerdictError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return VerdictError(
            f"no space left for {out}; {tally.rows_in} rows are done and kept: make room and run the same command again"
        )
    return VerdictError(f"{error.filename or out} cannot be written ({error.strerror or error}); name another output")
