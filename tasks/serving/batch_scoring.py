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
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from tasks.core.errors import DataRejected, UsageError, VerdictError
from tasks.core.printable import counted
from tasks.core.progress import progress_bar
from tasks.data.sentence_chunks import Chunk, plan_chunks
from tasks.data.sentences import STDIO, SentenceSource, open_source, read_sentences
from tasks.data.snapshots import QUARANTINE_SCHEMA
from tasks.inference.classifier import Classifier
from tasks.serving.chunk_scoring import ScoredChunk, score_chunk
from tasks.serving.part_merge import Output, PartMerger
from tasks.serving.score_counts import ScoreCounts, ScoreResult
from tasks.serving.score_parts import (
    ANSWER_FIELDS,
    NO_ANSWER,
    PART_ROWS,
    SCORE_SCHEMA,
    TRUNCATED,
    Scorer,
    Stamp,
    divide,
    drop_killed,
    drop_parts,
    lock_parts,
    quarantined_rows,
    scored_rows,
)

STREAM_BATCH = 1_000  # records scored at a time for standard output

# Scores chunks into a folder, adds to the counts, and yields each chunk that is finished.
ScoreChunks = Callable[[Sequence[Chunk], Path, ScoreCounts], Iterator[ScoredChunk]]


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
        if sys.stdout is None:
            raise UsageError("standard output is closed; expected a file or a program that reads it, or name a file")
        return source
    target = Path(out)
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise UsageError(f"output {out!r} is a pipe or device; expected a Parquet file, or - for JSON lines")
    if target.suffix.lower() != ".parquet" or target.is_dir():
        what = "is a folder" if target.is_dir() else "does not end in .parquet"
        raise UsageError(f"output {out!r} {what}; expected a Parquet file, or - for JSON lines on standard output")
    if path != STDIO and os.path.realpath(path) in map(os.path.realpath, (target, _quarantine_path(target))):
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

    def score_chunks(chunks: Sequence[Chunk], folder: Path, counts: ScoreCounts) -> Iterator[ScoredChunk]:
        for number, chunk in enumerate(chunks, 1):
            yield score_chunk(source, number, chunk, folder, scorer, size, counts)

    counts, quarantine = write_scores(source, out, scorer.stamp, score_chunks, size)
    return counts.result(scorer.stamp, scorer.classifier.provider, str(out), quarantine)


def write_scores(
    source: SentenceSource, out: Path, stamp: Stamp, score_chunks: ScoreChunks, size: int
) -> tuple[ScoreCounts, str | None]:
    """Have the chunks of an input scored, and merge their parts; return the counts, and the file of rejected rows.

    Args:
        source: the input.
        out: the file of all scores.
        stamp: of the model.
        score_chunks: see `ScoreChunks`.
        size: records of a part.

    Raises:
        DataRejected: if no row could be scored, or the input is damaged.
        VerdictError: if another run writes the same output, or the disk is full.
    """
    counts = ScoreCounts(source.name)
    folder, aside = Path(f"{out}.parts"), _quarantine_path(out)
    outputs = {
        "rejected": Output(aside, QUARANTINE_SCHEMA, lambda part: quarantined_rows(part, source.name)),
        "scored": Output(out, SCORE_SCHEMA, lambda part: scored_rows(part, stamp)),
    }
    try:
        with lock_parts(folder):
            drop_killed(folder)
            chunks = list(plan_chunks(source, size))
            with PartMerger(folder, outputs) as merger, _progress(chunks, size) as advance:
                for scored in score_chunks(chunks, folder, counts):
                    merger.add(scored)
                    advance()
                merger.publish()
            if not counts.kinds:
                aside.unlink(missing_ok=True)  # of an earlier run
            drop_parts(folder)
    except OSError as error:
        raise _unwritten(error, out, counts) from error
    quarantine = str(aside) if counts.kinds else None
    _reject_empty(counts, quarantine, out)
    return counts, quarantine


def score_to_stream(source: SentenceSource, sink: TextIO, scorer: Scorer, size: int = STREAM_BATCH) -> ScoreResult:
    """Write one line of JSON for each record, in order; one that cannot be scored has a reason and no label.

    Raises:
        DataRejected: if no row could be scored, or the input is damaged.
        VerdictError: if the stream was closed by its reader.
    """
    counts = ScoreCounts(source.name)
    stamp = scorer.stamp._asdict()
    for records in divide(read_sentences(source), size):
        started = time.perf_counter()  # not before: the input may be a program that takes its time
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
        counts.add_scored(records, started)
    _reject_empty(counts, None)
    return counts.result(scorer.stamp, scorer.classifier.provider, STDIO, None)


def _quarantine_path(out: Path) -> Path:
    return Path(f"{out}.quarantine.parquet")


@contextlib.contextmanager
def _progress(chunks: Sequence[Chunk], size: int) -> Iterator[Callable[[], None]]:
    """Show how many chunks are done, where there are several."""
    if len(chunks) < 2:
        yield lambda: None
        return
    with progress_bar(f"chunks of {size:,} sentences", len(chunks)) as advance:
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
    if set(counts.kinds) == {NO_ANSWER}:
        return "take another version: --model VERSION"
    return "name the format: --format"


def _unwritten(error: OSError, out: Path, counts: ScoreCounts) -> VerdictError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return VerdictError(
            f"no space left for {out}; {counts.rows_in} rows are done and kept: free space, run the same command again"
        )
    return VerdictError(f"{error.filename or out} cannot be written ({error.strerror or error}); name another output")
