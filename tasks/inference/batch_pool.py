"""Runs many batches side by side.

On a CPU each runs on one core: no core waits at each operator for the slowest. One sentence is answered sooner where
all cores share each operator, so this is a session beside that one, and opened when it is first asked for. On a GPU it
is the same session: one batch is made and copied while another computes. The threads stay, because ONNX Runtime
prepares what it needs of a GPU for each thread anew.

Shape letters: B sentences of a batch, S tokens.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ..core.errors import VerdictError
from .runner import Runner
from .tokenization import TokenIds

log = logging.getLogger(__name__)


class BatchPool:
    """Runs batches on threads of its own; any number of threads may call it."""

    def __init__(self, opens: Callable[[], Runner], otherwise: Runner, threads: int) -> None:
        """Keep what is needed to begin.

        Args:
            opens: makes the runner; on a CPU one whose runs keep to one core each.
            otherwise: is taken where that fails.
            threads: batches at a time.
        """
        self._opens, self._otherwise, self._threads = opens, otherwise, threads
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0
        self._runner: Runner | None = None

    def run_batches(self, batches: Iterable[tuple[TokenIds, TokenIds]]) -> Iterator[NDArray[np.float32]]:
        """Yield logits [B, 2] of each batch of token ids and attention mask [B, S], in their order."""
        runner, pool = self._open()
        return pool.map(lambda batch: runner.logits(*batch), batches)

    def _open(self) -> tuple[Runner, ThreadPoolExecutor]:
        with self._lock:
            if self._pool is None or self._process != os.getpid():  # a fork has no threads but the one that forked
                self._pool, self._process = ThreadPoolExecutor(self._threads, "crowd"), os.getpid()
            if self._runner is None:
                try:
                    self._runner = self._opens()
                except VerdictError as error:  # the bundle was moved or altered since; what was loaded is as it was
                    log.info("%s; sentences are judged as before, only slower", error)
                    self._runner = self._otherwise
            return self._runner, self._pool
