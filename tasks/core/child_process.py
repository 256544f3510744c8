"""Child processes that end with the process that started them, whatever ends it."""

import ctypes
import os
import signal
import sys

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
