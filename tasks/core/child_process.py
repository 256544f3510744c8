"""Child processes that end with the process that started them, and get no Ctrl-C while they import."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker

PR_SET_PDEATHSIG = 1  # of prctl(2)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, even by SIGKILL; only Linux does that.

    What counts is the end of the thread that started this process: its main thread, in all uses here.

    Args:
        parent: process id of the parent; if it ended before this call, this process exits now.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@contextlib.contextmanager
def sigint_blocked() -> Iterator[None]:
    """Block SIGINT in this thread, and in each process that starts within the block until it calls `unblock_sigint`.

    A terminal sends it to all processes at once, and Python prints a traceback where it meets one of multiprocessing
    that still imports what it needs.
    """
    resource_tracker.ensure_running()  # multiprocessing starts it with its first process and then unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_sigint() -> None:
    """Let SIGINT come in, in a process that started with it blocked and has set what it does then."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
