"""Opens data files, compressed ones as the bytes that they hold.

A file of a few kilobytes may hold gigabytes, so that what is read out of one is bounded. Memory does not grow with it.
"""

import gzip
import io
import os
import sys
import zlib
from pathlib import Path

import pyarrow as pa

from tasks.core.errors import DataRejected, first_line
from tasks.data.file_kinds import COMPRESSION_STARTS, HEAD_BYTES, reject_foreign
from tasks.data.object_store import is_remote, open_remote

MAX_EXPANDED = 64 << 20  # bytes that any compressed file may hold; larger ones may hold EXPANSION times their size
EXPANSION = 64
BUFFER_BYTES = 1 << 20
UNPACKERS = {"gzip": "gzip", "zstd": "zstd", "bz2": "bzip2"}


def expansion_limit(size: int) -> int:
    """Return how many bytes a compressed file of `size` bytes may hold."""
    return max(MAX_EXPANDED, EXPANSION * size)


def open_data(path: Path | str) -> io.BufferedReader:
    """Open a file or an object of an S3 store, decompressed where its first bytes are those of gzip, zstd or bzip2.

    Raises:
        UsageError: if it is neither table nor text.
        DataRejected: if the beginning of a compressed file is damaged; reading may raise it later, too.
        OSError: if it cannot be opened.
    """
    remote = isinstance(path, str) and is_remote(path)
    stream = open_remote(str(path)) if remote else Path(path).open("rb")  # noqa: SIM115
    try:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        return unpacked_stream(stream, str(path), expansion_limit(size))
    except BaseException:
        stream.close()
        raise


def unpacked_stream(stream: io.BufferedReader, path: str, limit: int | None = None) -> io.BufferedReader:
    """Return a stream, decompressed where its first bytes are those of gzip, zstd or bzip2.

    Args:
        stream: from its start.
        path: for messages.
        limit: bytes that it may hold if it is compressed; None for any number, as from a pipe out of gzip.

    Raises:
        UsageError: if it is neither table nor text.
        DataRejected: if the beginning of compressed bytes is damaged; reading may raise it later, too.
    """
    head = stream.peek(HEAD_BYTES)
    kind = next((kind for start, kind in COMPRESSION_STARTS.items() if head.startswith(start)), None)
    if kind:
        stream = io.BufferedReader(_Decompressed(stream, kind, path, limit), BUFFER_BYTES)
    reject_foreign(stream.peek(HEAD_BYTES)[:HEAD_BYTES], path, UNPACKERS[kind] if kind else "")
    return stream


class _Decompressed(io.RawIOBase):
    """The bytes in a compressed file, at most `limit` of them."""

    def __init__(self, packed: io.BufferedReader, kind: str, path: str, limit: int | None) -> None:
        self._packed = packed
        self._kind = kind
        self._path = path
        self._limit = self._left = sys.maxsize if limit is None else limit
        # zlib's reader skips the zeros that tapes and some servers append; Arrow's does not.
        self._stream: gzip.GzipFile | pa.NativeFile = (
            gzip.GzipFile(fileobj=packed) if kind == "gzip" else pa.CompressedInputStream(packed, kind)
        )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        try:
            data = self._stream.read(len(buffer))
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise DataRejected(
                f"{self._path} cannot be unpacked with {self._kind} ({first_line(error, 200)}); "
                "expected a whole file: download or copy it again"
            ) from error
        self._left -= len(data)
        if self._left < 0:
            raise DataRejected(
                f"{self._path} holds more than {self._limit:,} bytes, the limit of a compressed file of its size; "
                "expected sentences: unpack it and name the file if they are"
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._packed.close()
        super().close()
