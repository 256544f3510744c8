"""Merges the parts of a batch-scoring run into its files, each as soon as the parts before it are there.

A thread merges while other parts are scored, here or by workers of a cluster, which never wait for it. The files grow
in the folder of the parts; what a killed process leaves there is deleted by the next run.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.errors import VerdictError, first_line
from tasks.core.files import atomic_write
from tasks.serving.chunk_scoring import ScoredChunk, part_path
from tasks.serving.score_parts import open_part


class Output(NamedTuple):
    """A file that is made of the parts."""

    target: Path
    schema: pa.Schema
    take: Callable[[pa.Table], pa.Table]
    """Returns the rows of a part that belong into the file."""


class PartMerger:
    """Appends parts, in the order of the input, to files that `publish` moves to their places."""

    def __init__(self, folder: Path, outputs: Mapping[str, Output]) -> None:
        """Prepare to merge.

        Args:
            folder: of the parts.
            outputs: by the names that they have in it; one without rows is not written.
        """
        self._folder, self._outputs = folder, outputs
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._files, self._thread = contextlib.ExitStack(), ThreadPoolExecutor(1, "merge")
        self._finished: dict[int, ScoredChunk] = {}  # chunks that wait for an earlier one, by number
        self._next = 1  # number of the chunk that is merged next
        self._ready: deque[ScoredChunk] = deque()
        self._merging: Future[None] | None = None

    def __enter__(self) -> Self:
        for name in self._outputs:
            for left in self._folder.glob(f".{name}.*"):  # by a run that was killed; it may be large
                left.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ready.clear()
        self._thread.shutdown()
        self._files.__exit__(kind, error, trace)

    def add(self, chunk: ScoredChunk) -> None:
        """Take a chunk that is finished, and let all be merged whose turn it is.

        Raises:
            OSError: if a file could not be written before.
            VerdictError: if a part is damaged.
        """
        self._finished[chunk.number] = chunk
        while self._next in self._finished:
            self._ready.append(self._finished.pop(self._next))
            self._next += 1
        if self._merging is None or self._merging.done():
            self._wait()
            self._merging = self._thread.submit(self._merge)

    def publish(self) -> None:
        """Merge what is left, close the files and move them to their targets, which they replace.

        Raises:
            OSError: if a file cannot be written.
            VerdictError: if a part is damaged.
        """
        self._wait()
        self._merge()
        self._files.close()
        for name in self._writers:
            (self._folder / name).replace(self._outputs[name].target)

    def _wait(self) -> None:
        """Wait until the thread has nothing to do; raise what it met."""
        if self._merging:
            self._merging.result()

    def _merge(self) -> None:
        while self._ready:
            number, parts = self._ready.popleft()
            for part in range(1, parts + 1):
                self._append(_read(part_path(self._folder, number, part)))

    def _append(self, part: pa.Table) -> None:
        for name, output in self._outputs.items():
            rows = output.take(part)
            if not rows.num_rows:
                continue
            if name not in self._writers:
                file = self._files.enter_context(atomic_write(self._folder / name))
                self._writers[name] = self._files.enter_context(
                    pq.ParquetWriter(file, output.schema, write_page_checksum=True)
                )
            self._writers[name].write_table(rows)


def _read(path: Path) -> pa.Table:
    try:
        with open_part(path) as part:
            return part.read()
    except (OSError, pa.ArrowInvalid) as error:
        if isinstance(error, OSError) and error.errno:  # it cannot be read at all
            raise
        raise VerdictError(
            f"{path} is damaged ({first_line(error, 200)}); run the same command again, which scores its rows anew"
        ) from error
