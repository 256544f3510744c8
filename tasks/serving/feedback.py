"""Feedback of people on sentences, appended to a file in CoLA's format that `verdict retrain` reads as training data.

    verdict retrain --data DIR --data .verdict/feedback/feedback.tsv

One line for each sentence, with the label that it was flagged with last: the source is `feedback`, the mark is `*`
where the label is 0. A line is written atomically, and only where the reader of training data would accept it, so that
feedback never fails a data gate.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from tasks.core.errors import UsageError, VerdictError
from tasks.core.files import atomic_write
from tasks.data.cola_format import QuarantinedRow, Row, RowRules, format_row, make_row, parse_row, parse_tsv
from tasks.data.sources import FILE_ROLES

FEEDBACK_FILE = "feedback/feedback.tsv"  # in the folder of the stores
FEEDBACK_SOURCE = "feedback"
FLAG_LABELS = ("*", "")  # by label
MAX_FILE_BYTES = 64 << 20  # whoever can reach the page can write
FEEDBACK_LOCK_TIMEOUT_S = 10.0  # to wait for another process that writes


class AppendResult(NamedTuple):
    """The number of lines that the file holds now, and whether the sentence or its label is new."""

    lines: int
    new: bool


class Feedback:
    """A feedback file, created with the first sentence; any number of threads and processes may write to it."""

    def __init__(self, path: str) -> None:
        """Check the path; each of `listeners` is called with every sentence and label that was added.

        Raises:
            UsageError: if lines there would not be read as training rows.
        """
        self.path = Path(path).absolute()
        self.listeners: list[Callable[[str, int], None]] = []
        judging = {stem for role in ("holdout", "secondary") for stem in FILE_ROLES[role]}
        if self.path.suffix != ".tsv" or self.path.stem in judging or self.path.is_dir():
            raise UsageError(f"feedback cannot go to {path}; expected a training file's name: --feedback feedback.tsv")
        try:
            with self.path.open("rb") as stream:
                first = stream.readline(MAX_FILE_BYTES).removesuffix(b"\n").removesuffix(b"\r")
        except FileNotFoundError:
            return
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}); name another: --feedback FILE") from error
        row = parse_row(1, first, RowRules())
        if first and isinstance(row, QuarantinedRow):
            raise UsageError(f"{path} is not in CoLA's format (line 1: {row.reason}); name another: --feedback FILE")

    @property
    def shown(self) -> str:
        """The path, relative to the working directory where it lies below that."""
        return str(self.path.relative_to(here) if self.path.is_relative_to(here := Path.cwd()) else self.path)

    def add(self, sentence: str, label: int) -> AppendResult:
        """Append a sentence, or replace its line of another label; white space in it becomes single spaces.

        Args:
            sentence: any text.
            label: 1 acceptable, 0 unacceptable.

        Raises:
            VerdictError: if the reader of training data would reject it, or the file cannot be written.
        """
        row = make_row(1, (FEEDBACK_SOURCE, str(label), FLAG_LABELS[label], one_line(sentence)), b"", RowRules())
        if isinstance(row, QuarantinedRow):
            raise VerdictError(f"not written: {row.reason}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock", timeout=FEEDBACK_LOCK_TIMEOUT_S):
                added = self._append(row)
        except Timeout:
            raise VerdictError(f"not written: another process holds {self.path}.lock; try again") from None
        except (OSError, UnicodeEncodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "half of a surrogate pair"
            raise VerdictError(f"not written to {self.path} ({reason})") from error
        for listener in self.listeners:
            listener(row.sentence, label)
        return added

    def _append(self, row: Row) -> AppendResult:
        """Write a line to disk; truncate what a full disk leaves of it."""
        line = format_row(row).encode()
        opposite = row._replace(label=1 - row.label, mark=FLAG_LABELS[1 - row.label])
        same, other = line.rstrip(b"\n"), format_row(opposite).encode().rstrip(b"\n")
        with self.path.open("a+b", buffering=0) as stream:
            stream.seek(0)
            held = stream.read().splitlines(keepends=True)
            size = stream.tell()
            texts = [each.rstrip(b"\r\n") for each in held]  # a file edited by hand may have other line ends, or none
            if other in texts:
                kept = [each for each, text in zip(held, texts, strict=True) if text not in (other, same)]
                return self._replace(kept, line)
            if same in texts:
                return AppendResult(len(held), False)
            if held and not held[-1].endswith(b"\n"):  # edited by hand
                line = b"\n" + line
            if size + len(line) > MAX_FILE_BYTES:
                raise VerdictError(
                    f"not written: {self.path} has {size} bytes, at most {MAX_FILE_BYTES}; train with it, then move it"
                )
            try:
                _write(stream.fileno(), line)
            except OSError:
                stream.truncate(size)
                raise
            return AppendResult(len(held) + 1, True)

    def _replace(self, kept: list[bytes], line: bytes) -> AppendResult:
        """Write the lines that are kept, and a new one after them."""
        if kept and not kept[-1].endswith(b"\n"):
            kept[-1] += b"\n"
        with atomic_write(self.path) as temporary:
            temporary.write_bytes(b"".join([*kept, line]))
        return AppendResult(len(kept) + 1, True)


def read_flags(path: str) -> dict[str, int]:
    """Return the label that each sentence of a feedback file was flagged with last; none where there is no file.

    Raises:
        VerdictError: if it cannot be read.
    """
    try:
        with Path(path).open("rb") as stream:
            blocks = [block.kept.select(["sentence", "label"]) for block in parse_tsv(stream)]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise VerdictError(f"{path} cannot be read ({error.strerror}); name another: --feedback FILE") from error
    return {row["sentence"]: row["label"] for block in blocks for row in block.to_pylist()}


def one_line(text: str) -> str:
    """Return text with each run of white space, line breaks included, replaced by one space."""
    return " ".join(text.split())


def _write(handle: int, line: bytes) -> None:
    while line:
        line = line[os.write(handle, line) :]
    os.fsync(handle)
