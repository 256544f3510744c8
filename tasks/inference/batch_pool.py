"""Runs many batches in parallel.

CPU: a session of its own with intra_op_num_threads=1 and one batch for each CPU that the process may use; faster in
bulk, slower for one sentence, hence opened on first use. GPU: the session that exists already, with two batches in
flight, so that one is prepared and copied while the other computes. Threads are kept, because ONNX Runtime allocates
GPU resources for each thread.

Shape letters: B sentences of a batch, S tokens.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ..core.errors import VerdictError
from .runner import Runner
from .tokenization import TokenIds

AHEAD = 4  # batches that are prepared for each thread: the GPU has work while the next sentences are tokenised

log = logging.getLogger(__name__)


class BatchPool:
    """Runs batches on a thread pool; thread-safe, and usable after a fork."""

    def __init__(self, open_runner: Callable[[], Runner], fallback: Runner, threads: int) -> None:
        """Configure the pool; nothing is opened yet.

        Args:
            open_runner: opens the runner at first use; on a CPU one whose runs take one core each.
            fallback: used if `open_runner` raises VerdictError.
            threads: batches in flight.
        """
        self._open_runner, self._fallback, self._threads = open_runner, fallback, threads
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._process_id = 0
        self._runner: Runner | None = None

    def run_batches(self, batches: Iterable[tuple[TokenIds, TokenIds]]) -> Iterator[NDArray[np.float32]]:
        """Yield logits [B, 2] of each batch of token ids and attention mask [B, S], in input order.

        Batches are taken from the iterator as they are needed, a few ahead of the results.
        """
        runner, executor = self._open()
        waiting: deque[Future[NDArray[np.float32]]] = deque()
        try:
            for batch in batches:
                waiting.append(executor.submit(runner.logits, *batch))
                if len(waiting) > AHEAD * self._threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _open(self) -> tuple[Runner, ThreadPoolExecutor]:
        with self._lock:
            if self._executor is None or self._process_id != os.getpid():  # only the forking thread survives a fork
                self._executor, self._process_id = ThreadPoolExecutor(self._threads, "batch-pool"), os.getpid()
            if self._runner is None:
                try:
                    self._runner = self._open_runner()
                except VerdictError as error:  # the bundle's folder was moved or changed after it was loaded
                    log.info("%s; batches run one after another on the session that is loaded", error)
                    self._runner = self._fallback
            return self._runner, self._executor
