"""Scores one chunk of an input into its parts, in whatever process: what a run finished before is not scored again."""

import logging
import time
from pathlib import Path
from typing import NamedTuple

from tasks.core.printable import counted
from tasks.data.sentence_chunks import Chunk, read_chunk
from tasks.data.sentences import SentenceSource
from tasks.serving.score_counts import ScoreCounts
from tasks.serving.score_parts import Scorer, divide, read_counted, write_part

log = logging.getLogger(__name__)


class ScoredChunk(NamedTuple):
    """A chunk that is finished: its number from 1, and how many parts it has."""

    number: int
    parts: int


def part_path(folder: Path, chunk: int, part: int) -> Path:
    """Return the path of a part of a chunk, both numbered from 1."""
    return folder / f"part-{chunk:06}-{part:05}.parquet"


def score_chunk(
    source: SentenceSource, number: int, chunk: Chunk, folder: Path, scorer: Scorer, size: int, counts: ScoreCounts
) -> ScoredChunk:
    """Write the parts of a chunk that no earlier run wrote, and count the records of all.

    Args:
        source: the input.
        number: of the chunk, from 1.
        chunk: what is read of the input.
        folder: of the parts.
        scorer: the model.
        size: records of a part.
        counts: of the run so far.

    Raises:
        VerdictError: if the input cannot be read.
        DataRejected: if it is damaged.
        OSError: if a part cannot be written.
    """
    parts, started = 0, time.perf_counter()
    for parts, records in enumerate(divide(read_chunk(source, chunk), size), start=1):
        path, key = part_path(folder, number, parts), scorer.key(records)
        part = read_counted(path, key)
        if part is not None:
            counts.reused += part.num_rows
        else:
            if not counts.fresh:
                _log_reuse(path, counts.reused)
            part = scorer.score(records)
            write_part(path, part, key)
            counts.add_scored(records, started)
        counts.add(part)
        started = time.perf_counter()
    return ScoredChunk(number, parts)


def _log_reuse(path: Path, reused: int) -> None:
    """Log what is reused of an earlier run, before the first part that has to be scored."""
    if reused:
        log.info("%s of an earlier run", counted(reused, "scored row"))
    if path.exists():
        log.warning("parts in %s belong to another input, model or option and are not used", path.parent)
