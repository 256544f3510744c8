"""Dynamic batching: bounded queues in front of a model, and one thread that answers waiting requests together.

A batch takes short requests until it is full, or its first request has waited `max_wait` seconds; while the model
computes, the next requests queue up. A request that is longer than a batch is computed piece by piece, each between two
batches of short requests, which so pass it. One version answers all of a request, also of a divided one.
"""

import collections
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from tasks.core.errors import NoAnswer, VerdictError
from tasks.serving.champion import ChampionAnswer, LoadedModel

log = logging.getLogger(__name__)

MAX_RETRY_AFTER_S = 60
BYTES_PER_TOKEN = 4  # of English text; a sentence's tokens are estimated, because the queue does not tokenise
SPECIAL_TOKENS = 2  # of each sentence
TOKENS_PER_SENTENCE = 32  # that a batch has room for; three times the mean of CoLA
BatchListener = Callable[[list[ChampionAnswer], float], None]


class QueueFull(VerdictError):
    """The queue is full; `seconds` is when to try again."""

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


class BatcherClosed(VerdictError):
    """The queue is closed."""


class BatchStage(NamedTuple):
    """Something that a request waited for: queue, tokenise or run; times in nanoseconds since 1970."""

    name: str
    start_ns: int
    end_ns: int


class BatchReply(NamedTuple):
    """The answers to one request, all of one version, which reads at most `max_length` tokens of a sentence."""

    version: str
    max_length: int
    answers: list[ChampionAnswer]
    stages: tuple[BatchStage, ...] = ()
    """recorded where a batcher is traced"""

    @property
    def truncated(self) -> list[int]:
        """Indices of the sentences that are longer than the model reads."""
        return [index for index, answer in enumerate(self.answers) if answer["truncated"]]


@dataclass(eq=False)
class _QueuedRequest:
    """A request, and what was computed of it."""

    sentences: list[str]
    tokens: list[int]
    """estimated, of each sentence"""
    arrived: float
    future: "Future[BatchReply]" = field(default_factory=Future)
    model: LoadedModel | None = None
    """that computed the first piece"""
    answers: list[ChampionAnswer] = field(default_factory=list)
    queued_ns: int = field(default_factory=time.time_ns)
    stages: tuple[BatchStage, ...] = ()


class _Queue:
    """Requests that wait, and the sum of their sentences and tokens."""

    def __init__(self) -> None:
        self.requests: collections.deque[_QueuedRequest] = collections.deque()
        self.sentences = self.tokens = 0

    def __len__(self) -> int:
        return len(self.requests)

    def append(self, request: _QueuedRequest) -> None:
        self.requests.append(request)
        self.sentences += len(request.sentences)
        self.tokens += sum(request.tokens)

    def pop(self) -> _QueuedRequest:
        request = self.requests.popleft()
        self.sentences -= len(request.sentences)
        self.tokens -= sum(request.tokens)
        return request


@dataclass(frozen=True)
class BatchLimits:
    """How large a batch may be; its first sentence, or request, is taken in any case."""

    sentences: int
    tokens: int
    """estimated, of all sentences"""
    padded: int
    """sentences times the tokens of the longest, to which a device fills the others up; 0: not limited"""


class _BatchRoom:
    """What a batch holds while it is filled."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self.sentences = self._tokens = self._longest = 0

    def take(self, tokens: Sequence[int]) -> bool:
        """Take sentences, given by their tokens, if there is room for all of them."""
        limits = self._limits
        sentences, total = self.sentences + len(tokens), self._tokens + sum(tokens)
        longest = max((self._longest, *tokens))
        too_large = sentences > limits.sentences or total > limits.tokens
        if self.sentences and (too_large or 0 < limits.padded < sentences * longest):
            return False
        self.sentences, self._tokens, self._longest = sentences, total, longest
        return True


class Batcher:
    """Answers requests of any number of threads in batches.

    Args:
        current: returns the loaded model; called once for each batch.
        max_batch: sentences, of 32 tokens on average.
        max_wait: seconds that the first request of a batch waits for others.
        capacity: tokens that may wait, of short requests and of longer ones each; an empty queue accepts any request.
        max_requests: that may wait.
        max_padded: sentences of a batch times the tokens of its longest; 0: not limited.
    """

    def __init__(
        self,
        current: Callable[[], LoadedModel],
        max_batch: int = 64,
        max_wait: float = 0.002,
        capacity: int = 131_072,
        max_requests: int = 128,
        max_padded: int = 0,
    ) -> None:
        self._current = current
        self.listeners: list[BatchListener] = []
        """each is called with the answers and the seconds of each batch, in the thread that computes"""
        self.traced = False
        """replies have the stages of their requests"""
        self._limits = BatchLimits(max_batch, max_batch * TOKENS_PER_SENTENCE, max_padded)
        self._max_wait, self._capacity, self._max_requests = max_wait, capacity, max_requests
        self._short, self._long = _Queue(), _Queue()
        self._rate = 0.0  # tokens per second, moving average over batches
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="inference", daemon=True)
        self._worker.start()

    @property
    def waiting(self) -> int:
        """Number of sentences in the queue."""
        return self._short.sentences + self._long.sentences

    def submit(self, sentences: Sequence[str]) -> "Future[BatchReply]":
        """Queue a request.

        Raises:
            NotReady: if no model is loaded.
            QueueFull: if too many requests or tokens wait.
            BatcherClosed: after `close`.
        """
        limit = self._current().max_length
        tokens = [min(limit, SPECIAL_TOKENS + len(sentence.encode()) // BYTES_PER_TOKEN) for sentence in sentences]
        request = _QueuedRequest(list(sentences), tokens, time.monotonic())
        with self._changed:
            if self._closed:
                raise BatcherClosed("the server is stopping; send the request to another one")
            queue = self._long if self._count_fitting(request, 0) < len(tokens) else self._short
            self._check_room(queue, sum(tokens))
            queue.append(request)
            self._changed.notify()
        return request.future

    def close(self) -> None:
        """Accept no more requests, answer those that wait, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._worker.join()

    def _check_room(self, queue: _Queue, tokens: int) -> None:
        waiting = len(self._short) + len(self._long)
        if waiting >= self._max_requests:
            full = f"{waiting} requests wait, at most {self._max_requests} may"
        elif queue and queue.tokens + tokens > self._capacity:
            full = f"{queue.tokens} tokens wait, at most {self._capacity} may"
        else:
            return
        ahead = self._short.tokens + self._long.tokens if queue is self._long else self._short.tokens
        seconds = min(MAX_RETRY_AFTER_S, 1 + int(ahead / self._rate)) if self._rate else 1
        raise QueueFull(f"the queue is full: {full}; try again in {seconds} s", seconds)

    def _count_fitting(self, request: _QueuedRequest, start: int) -> int:
        """Return how many sentences from `start` on fit into a batch; at least one."""
        room = _BatchRoom(self._limits)
        for tokens in request.tokens[start:]:
            if not room.take([tokens]):
                break
        return room.sentences

    def _work(self) -> None:
        """Compute a batch of short requests and a piece of a longer one in turn, as long as any wait."""
        while self._wait():
            if batch := self._collect():
                self._answer(batch)
            if self._long:
                self._compute_piece(self._long.requests[0])

    def _wait(self) -> bool:
        """Wait until there is something to compute; return False once the queue is closed and empty."""
        with self._changed:
            while not self._short and not self._long and not self._closed:
                self._changed.wait()
            full = self._limits.sentences
            while self._short and not self._long and self._short.sentences < full and not self._closed:
                left = self._short.requests[0].arrived + self._max_wait - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return bool(self._short or self._long)

    def _collect(self) -> list[_QueuedRequest]:
        """Return the short requests of a batch, which may be none."""
        with self._changed:
            batch: list[_QueuedRequest] = []
            room = _BatchRoom(self._limits)
            while self._short and room.take(self._short.requests[0].tokens):
                batch.append(self._short.pop())
            return batch

    def _answer(self, batch: list[_QueuedRequest]) -> None:
        """Answer requests together; where that fails, one by one, so that one bad request does not fail the others."""
        live = [request for request in batch if not request.future.cancelled()]
        if not live:
            return
        try:
            model = self._current()
            sentences = [sentence for request in live for sentence in request.sentences]
            answers, stages = self._predict(model, sentences, sum(sum(request.tokens) for request in live))
        except Exception as error:  # every exception goes to the clients that wait
            if len(live) > 1 and (isinstance(error, NoAnswer) or not isinstance(error, VerdictError)):
                for request in live:
                    self._answer([request])
                return
            for request in live:
                _resolve_future(request.future, error)
            return
        start = 0
        for request in live:
            end = start + len(request.sentences)
            reply = BatchReply(model.version, model.max_length, answers[start:end], _with_queue(request, stages))
            _resolve_future(request.future, reply)
            start = end

    def _compute_piece(self, request: _QueuedRequest) -> None:
        """Compute the next piece of the first long request; answer it after the last one."""
        start = len(request.answers)
        end = start + self._count_fitting(request, start)
        outcome: BatchReply | Exception
        try:
            request.model = request.model or self._current()
            piece, tokens = request.sentences[start:end], sum(request.tokens[start:end])
            answers, stages = self._predict(request.model, piece, tokens)
            request.answers += answers
            request.stages = request.stages + stages if request.stages else _with_queue(request, stages)
            outcome = BatchReply(request.model.version, request.model.max_length, request.answers, request.stages)
        except Exception as error:  # goes to the client that waits
            outcome, end = error, len(request.sentences)
            if isinstance(error, NoAnswer):
                outcome = NoAnswer(start + error.index, error.variant)
        if end == len(request.sentences) or request.future.cancelled():
            with self._changed:
                self._long.pop()
            _resolve_future(request.future, outcome)

    def _predict(
        self, model: LoadedModel, sentences: list[str], tokens: int
    ) -> tuple[list[ChampionAnswer], tuple[BatchStage, ...]]:
        """Compute answers, and measure how fast."""
        started = time.perf_counter()
        times = [time.time_ns()]
        marks = (lambda: times.append(time.time_ns()),) if self.traced else ()
        answers = model.predict(sentences, *marks)
        times.append(time.time_ns())
        seconds = time.perf_counter() - started
        rate = tokens / max(seconds, 1e-9)
        self._rate = 0.8 * self._rate + 0.2 * rate if self._rate else rate
        for listener in self.listeners:
            listener(answers, seconds)
        if not self.traced:
            return answers, ()
        return answers, (BatchStage("tokenise", times[0], times[1]), BatchStage("run", times[1], times[-1]))


def _with_queue(request: _QueuedRequest, stages: tuple[BatchStage, ...]) -> tuple[BatchStage, ...]:
    """Return the stages of a request's first batch, before which it waited in the queue."""
    return (BatchStage("queue", request.queued_ns, stages[0].start_ns), *stages) if stages else ()


def _resolve_future(future: "Future[BatchReply]", outcome: BatchReply | Exception) -> None:
    """Set the result or exception of a future, unless it was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
