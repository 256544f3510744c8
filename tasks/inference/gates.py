"""A gate that many pass at a time, or one alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ReadWriteLock:
    """Everybody comes through one door; who wants to be alone keeps it shut, until those inside have left and after."""

    def __init__(self) -> None:
        self._door = threading.Lock()
        self._left = threading.Condition()
        self._inside = 0

    @contextmanager
    def read(self) -> Iterator[None]:
        """Be inside with others."""
        with self._door, self._left:
            self._inside += 1
        try:
            yield
        finally:
            with self._left:
                self._inside -= 1
                self._left.notify_all()

    @contextmanager
    def write(self) -> Iterator[None]:
        """Be inside with nobody else."""
        with self._door:
            with self._left:
                self._left.wait_for(lambda: not self._inside)
            yield
