"""Writes a sample of the answered sentences to Parquet files by hour (UTC), off the request path.

    DIR/2026-11-29T03/HOST-PID-RANDOM.00007.parquet    a part: what was answered within a few seconds
    DIR/2026-11-29T03/HOST-PID-RANDOM.parquet          all parts of that hour, merged at its end

Rows of an hour that come after its parts were merged are in files HOST-PID-RANDOM-1. Each file is written atomically.
Several servers may share DIR. A killed server loses what it has not written yet, a few seconds, and leaves parts. A
sentence is sampled by its hash: all of its requests are logged, or none. What reads the files: logged_requests.py.
"""

import datetime
import hashlib
import logging
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.errors import UsageError
from tasks.core.files import atomic_write
from tasks.serving.champion import ChampionAnswer

log = logging.getLogger(__name__)

REQUEST_LOG_SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("us", "UTC")),
        ("version", pa.string()),
        ("sentence", pa.string()),
        ("characters", pa.int32()),
        ("tokens", pa.int32()),
        ("label", pa.string()),
        ("probability", pa.float64()),
        ("truncated", pa.bool_()),
        ("seconds", pa.float32()),
    ]
)
HOUR_FORMAT = "%Y-%m-%dT%H"
HOUR_NAME = re.compile(r"\d{4}-\d\d-\d\dT\d\d")
FLUSH_S = 5.0  # a killed server loses so much
MAX_WAITING_ROWS = 8_192  # the writer is woken at half of it
MAX_LOGGED_CHARACTERS = 2_000  # of a sentence; the default of data.max_chars
REDACTIONS = {"<email>": re.compile(r"[^\s@]{1,64}@[^\s@]{1,255}"), "<number>": re.compile(r"\d+(?:[.,:/-]\d+)*")}
REDACTED = "<redacted>"  # what an additional pattern matches

SentenceMode = Literal["text", "redacted", "hashed", "off"]


@dataclass(frozen=True)
class RequestLogConfig:
    """Where requests are logged, and what of them."""

    folder: str
    sample: float = 0.1
    """share of the sentences, 0 to 1"""
    days: int = 30
    """until an hour's files are deleted"""
    sentences: SentenceMode = "redacted"
    """redacted: e-mail addresses, numbers and `patterns` are replaced; hashed: 32 hex digits; off: empty"""
    patterns: tuple[str, ...] = ()
    """regular expressions of what is redacted besides"""


class _LoggedAnswer(NamedTuple):
    """One row, before its sentence is redacted."""

    time: float
    seconds: float
    answer: ChampionAnswer


class RequestLog:
    """A request log that a thread writes; `add` never waits."""

    def __init__(self, config: RequestLogConfig) -> None:
        """Start the thread; `on_write` is called with the number of sentences that were logged or dropped.

        Raises:
            UsageError: if the folder is not writable, or a pattern is not valid.
        """
        self._config = config
        self.on_write: Callable[[int, int], None] = lambda logged, dropped: None
        self.count_tokens: Callable[[list[str]], list[int]] | None = None
        """of each sentence, called by the thread; None: not logged"""
        self.folder, self._redact = _writable(config.folder), _make_redaction(config)
        self._threshold = int(config.sample * 2**64)
        self._server = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._rows: list[_LoggedAnswer] = []
        self._parts: dict[str, list[Path]] = {}  # of each hour that is not merged yet
        self._merges: Counter[str] = Counter()  # of each hour
        self._written, self._failing, self._closed = 0, False, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="request log", daemon=True)
        self._thread.start()

    def add(self, answers: Sequence[ChampionAnswer], seconds: float) -> None:
        """Log the answers to a request that are in the sample; those that find no room are counted as dropped.

        Args:
            answers: to all sentences of a request.
            seconds: that the request took.
        """
        sampled = [answer for answer in answers if self.is_sampled(answer["sentence"])]
        if not sampled:
            return
        now = time.time()
        with self._changed:
            room = max(0, MAX_WAITING_ROWS - len(self._rows))
            self._rows += [_LoggedAnswer(now, seconds, answer) for answer in sampled[:room]]
            if len(self._rows) > MAX_WAITING_ROWS // 2:
                self._changed.notify()
        if len(sampled) > room:
            self.on_write(0, len(sampled) - room)

    def is_sampled(self, sentence: str) -> bool:
        """Return whether a sentence is in the sample: always the same for equal sentences, on every server."""
        digest = hashlib.blake2b(sentence.encode(), digest_size=8, person=b"request log").digest()
        return int.from_bytes(digest) < self._threshold

    def close(self) -> None:
        """Write what waits, merge the parts, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        hour, closed = "", False
        while not closed:
            with self._changed:
                if not self._closed:
                    self._changed.wait(FLUSH_S)
                rows, self._rows, closed = self._rows, [], self._closed
            if rows:
                self._attempt(lambda rows=rows: self._write(rows), len(rows))  # type: ignore[misc]
            if hour != (hour := _hour_of(time.time())):
                self._attempt(lambda: self._merge(before=hour))
                self._attempt(lambda: _delete_old(self.folder, self._config.days))
        self._attempt(self._merge)

    def _attempt(self, write: Callable[[], None], rows: int = 0) -> None:
        """Write to the disk; where that fails, count the rows as dropped and log the first of successive failures."""
        try:
            write()
        except OSError as error:
            self.on_write(0, rows)
            if not self._failing:
                log.warning(
                    "requests are answered, but not logged: %s cannot be written (%s)",
                    *(self.folder, error.strerror or error),
                )
            self._failing = True
        else:
            self.on_write(rows, 0)
            self._failing = self._failing and not rows

    def _write(self, rows: list[_LoggedAnswer]) -> None:
        """Write a part for each hour of the rows."""
        hours: dict[str, list[_LoggedAnswer]] = {}
        for row in rows:
            hours.setdefault(_hour_of(row.time), []).append(row)
        for hour, those in hours.items():
            self._written += 1
            path = self.folder / hour / f"{self._stem(hour)}.{self._written:05}.parquet"
            with atomic_write(path) as temporary:
                pq.write_table(self._to_table(those), temporary)
            self._parts.setdefault(hour, []).append(path)

    def _to_table(self, rows: list[_LoggedAnswer]) -> pa.Table:
        answers = [row.answer for row in rows]
        sentences = [answer["sentence"] for answer in answers]
        columns = {
            "time": [int(row.time * 1e6) for row in rows],
            "version": [answer["version"] for answer in answers],
            "sentence": [self._redact(sentence) for sentence in sentences],
            "characters": [len(sentence) for sentence in sentences],
            "tokens": self.count_tokens(sentences) if self.count_tokens else [None] * len(sentences),
            "label": [answer["label"] for answer in answers],
            "probability": [answer["probability"] for answer in answers],
            "truncated": [answer["truncated"] for answer in answers],
            "seconds": [row.seconds for row in rows],
        }
        return pa.table(columns, REQUEST_LOG_SCHEMA)

    def _merge(self, before: str = "~") -> None:
        """Merge the parts of each hour before one; readers ignore parts beside the file that they were merged to."""
        for hour in [hour for hour in self._parts if hour < before]:
            parts, merged = self._parts.pop(hour), self.folder / hour / f"{self._stem(hour)}.parquet"
            self._merges[hour] += 1
            with atomic_write(merged) as temporary, pq.ParquetWriter(temporary, REQUEST_LOG_SCHEMA) as writer:
                for part in parts:
                    writer.write_table(pq.read_table(part, partitioning=None))
            for part in parts:
                part.unlink()

    def _stem(self, hour: str) -> str:
        """Return how an hour's files are named; rows that come after its parts were merged are in others."""
        merges = self._merges[hour]
        return f"{self._server}-{merges}" if merges else self._server


def hash_sentence(sentence: str) -> str:
    """Return what is logged of a sentence in the mode hashed: 32 hex digits, so that a guess can be checked."""
    return hashlib.blake2b(sentence.encode(), digest_size=16).hexdigest()


def _make_redaction(config: RequestLogConfig) -> Callable[[str], str | None]:
    """Return the function from a sentence to what is logged of it."""
    if config.sentences == "off":
        return lambda sentence: None
    if config.sentences == "hashed":
        return hash_sentence
    rules = list(REDACTIONS.items()) if config.sentences == "redacted" else []
    for pattern in config.patterns:
        if config.sentences == "text":
            raise UsageError("--request-log-redact is of the mode redacted; leave out --request-log-sentences text")
        try:
            rules.append((REDACTED, re.compile(pattern)))
        except re.error as error:
            raise UsageError(f"pattern {pattern!r} is not valid ({error}); expected a regular expression") from error

    def redact(sentence: str) -> str:
        for name, rule in rules:
            sentence = rule.sub(name, sentence)
        return sentence[:MAX_LOGGED_CHARACTERS]

    return redact


def _writable(folder: str) -> Path:
    path = Path(folder).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with atomic_write(path / ".probe") as probe:
            probe.touch()
        (path / ".probe").unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"requests cannot be logged to {folder} ({error.strerror}); name another: --request-log DIR"
        ) from error
    return path


def _hour_of(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime(HOUR_FORMAT)


def _delete_old(folder: Path, days: int) -> None:
    """Delete the hours that are older than so many days."""
    oldest = _hour_of(time.time() - days * 86_400)
    for path in folder.iterdir():
        if HOUR_NAME.fullmatch(path.name) and path.name < oldest:
            shutil.rmtree(path, ignore_errors=True)  # another server may be at it
