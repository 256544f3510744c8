"""Standard input, output and error of a command: what a shell closed, what cannot show a character, what is full."""

import contextlib
import errno
import io
import os
import sys
from typing import Any, cast


class RecordingOutput(io.FileIO):
    """Standard output that remembers why it could not be written to: the error itself names no file."""

    failure = ""

    def write(self, data: Any) -> int:
        """Write bytes; return how many were written."""
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error.strerror or type(error).__name__
            raise


def prepare() -> None:
    """Open what the shell closed, so that no other file gets its number; standard output alone stays None.

    A database with the number of standard error would be written to by whatever prints there. A character that the
    encoding of standard output does not have becomes an escape.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    if isinstance(given := sys.stdout, io.TextIOWrapper):
        raw = RecordingOutput(given.fileno(), "w", closefd=False)
        sys.stdout = io.TextIOWrapper(
            cast(io.BufferedWriter, raw) if given.write_through else io.BufferedWriter(raw),  # as Python does with -u
            given.encoding,
            "backslashreplace" if given.errors == "strict" else given.errors,
            line_buffering=given.line_buffering,
            write_through=given.write_through,
        )


def take_failure() -> str:
    """Write what is left; return once why standard output could not be written to, and discard what it did not take.

    Empty where it could be, or whoever reads it has ended.
    """
    buffer = getattr(sys.stdout, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    if not isinstance(raw, RecordingOutput):
        return ""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    failure, raw.failure = raw.failure, ""
    if failure:
        os.dup2(os.open(os.devnull, os.O_WRONLY), raw.fileno())  # at exit Python flushes once more
    return "" if failure == os.strerror(errno.EPIPE) else failure
