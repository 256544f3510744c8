"""Locks of the folders of jobs and sweeps: the operating system releases the lock of a process that died.

A process that works in a folder holds the lock on its file `lock` exclusively. Whoever only looks holds it shared and
for an instant, so that two that look do not take each other for a process that works there; and whoever takes the lock
waits longer than anyone looks.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = "lock"  # in the folder of a job or sweep
MISSING_WAIT_S = 1.0  # for a folder that others delete and make again


def is_locked(folder: Path) -> bool:
    """Return whether a process works in the folder of a job or sweep."""
    with shared(folder) as free:
        return not free


@contextlib.contextmanager
def shared(folder: Path) -> Iterator[bool]:
    """Keep processes that want to work in a folder waiting during the block; yield whether none works there now."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        yield True  # nobody has worked there
        return
    try:
        free = _lock_shared(descriptor, folder / LOCK_FILE)
        try:
            yield free
        finally:
            _unlock(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive(folder: Path, wait_s: float) -> Iterator[None]:
    """Create a folder and hold its lock over the block.

    Raises:
        Timeout: if another process holds it for `wait_s` seconds.
    """
    lock, started = FileLock(folder / LOCK_FILE), time.monotonic()
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=max(0.0, started + wait_s - time.monotonic()))
            break
        except FileNotFoundError:  # whoever held the lock deleted the folder
            if time.monotonic() > started + wait_s + MISSING_WAIT_S:
                raise
    try:
        yield
    finally:
        lock.release()


def _lock_shared(descriptor: int, path: Path) -> bool:
    """Return whether the shared lock was taken, which is not so where another process holds it exclusively."""
    import fcntl  # of POSIX alone

    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN, errno.ENOSYS):
            raise
        if error.errno == errno.ENOSYS:  # a file system without such locks, for which filelock has another kind
            with contextlib.suppress(Timeout), FileLock(path, timeout=0):
                return True
        return False
    return True


def _unlock(descriptor: int) -> None:
    """Release a lock now, even if a fork in another thread has a copy of the descriptor."""
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
