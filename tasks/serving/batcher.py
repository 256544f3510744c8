"""Dynamic batching: a bounded queue in front of a model, and one thread that answers waiting requests together.

A batch takes requests until it holds `max_batch` sentences, or its first request has waited `max_wait` seconds; while
the model computes, the next requests queue up. A request is never split, so one version answers all of it.
"""

import collections
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from tasks.core.errors import VerdictError
from tasks.serving.champion import ChampionAnswer, LoadedModel

log = logging.getLogger(__name__)

MAX_RETRY_AFTER_S = 60


class QueueFull(VerdictError):
    """The queue is full; `seconds` is when to try again."""

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


class BatcherClosed(VerdictError):
    """The queue is closed."""


class BatchReply(NamedTuple):
    """The answers to one request, all of one version, which reads at most `max_length` tokens of a sentence."""

    version: str
    max_length: int
    answers: list[ChampionAnswer]

    @property
    def truncated(self) -> list[int]:
        """Indices of the sentences that are longer than the model reads."""
        return [index for index, answer in enumerate(self.answers) if answer["truncated"]]


class _QueuedRequest(NamedTuple):
    sentences: list[str]
    arrived: float
    future: "Future[BatchReply]"


class Batcher:
    """Answers requests of any number of threads in batches.

    Args:
        current: returns the loaded model; called once for each batch.
        max_batch: sentences; a longer request is a batch by itself.
        max_wait: seconds that the first request of a batch waits for others.
        capacity: sentences that may wait; a request of any length is accepted by an empty queue.
        on_batch: called with the number of sentences and the seconds of each batch.
    """

    def __init__(
        self,
        current: Callable[[], LoadedModel],
        max_batch: int = 64,
        max_wait: float = 0.002,
        capacity: int = 4_096,
        on_batch: Callable[[int, float], None] = lambda sentences, seconds: None,
    ) -> None:
        self._current, self.on_batch = current, on_batch
        self._max_batch, self._max_wait, self._capacity = max_batch, max_wait, capacity
        self._queue: collections.deque[_QueuedRequest] = collections.deque()
        self._sentences = 0
        self._rate = 0.0  # sentences per second, moving average over batches
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="inference", daemon=True)
        self._worker.start()

    @property
    def waiting(self) -> int:
        """Number of sentences in the queue."""
        return self._sentences

    def submit(self, sentences: Sequence[str]) -> "Future[BatchReply]":
        """Queue a request.

        Raises:
            QueueFull: if too many sentences wait.
            BatcherClosed: after `close`.
        """
        with self._changed:
            if self._closed:
                raise BatcherClosed("the server is stopping; send the request to another one")
            if self._queue and self._sentences + len(sentences) > self._capacity:
                seconds = min(MAX_RETRY_AFTER_S, 1 + int(self._sentences / self._rate)) if self._rate else 1
                raise QueueFull(
                    f"the queue is full: {self._sentences} sentences wait, at most {self._capacity} may; try again in "
                    f"{seconds} s, or start the server with a longer --queue",
                    seconds,
                )
            request = _QueuedRequest(list(sentences), time.monotonic(), Future())
            self._queue.append(request)
            self._sentences += len(request.sentences)
            self._changed.notify()
            return request.future

    def close(self) -> None:
        """Accept no more requests, answer those that wait, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._worker.join()

    def _work(self) -> None:
        while batch := self._collect():
            started = time.perf_counter()
            count = sum(len(request.sentences) for request in batch)
            self._answer(batch)
            seconds = time.perf_counter() - started
            rate = count / max(seconds, 1e-9)
            self._rate = 0.8 * self._rate + 0.2 * rate if self._rate else rate
            self.on_batch(count, seconds)

    def _collect(self) -> list[_QueuedRequest]:
        """Wait for a batch and return it; empty once the queue is closed and empty."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            while self._queue and self._sentences < self._max_batch and not self._closed:
                left = self._queue[0].arrived + self._max_wait - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            batch: list[_QueuedRequest] = []
            count = 0
            while self._queue and (not batch or count + len(self._queue[0].sentences) <= self._max_batch):
                request = self._queue.popleft()
                self._sentences -= len(request.sentences)
                count += len(request.sentences)
                batch.append(request)
            return batch

    def _answer(self, batch: list[_QueuedRequest]) -> None:
        """Answer requests together; where that fails, one by one, so that one bad request does not fail the others."""
        live = [request for request in batch if not request.future.cancelled()]
        try:
            model = self._current()
            answers = model.predict([sentence for request in live for sentence in request.sentences])
        except Exception as error:  # every exception goes to the clients that wait
            if len(live) > 1 and not isinstance(error, VerdictError):
                for request in live:
                    self._answer([request])
                return
            for request in live:
                _resolve_future(request.future, error)
            return
        start = 0
        for request in live:
            end = start + len(request.sentences)
            _resolve_future(request.future, BatchReply(model.version, model.max_length, answers[start:end]))
            start = end


def _resolve_future(future: "Future[BatchReply]", outcome: BatchReply | Exception) -> None:
    """Set the result or exception of a future, unless it was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
