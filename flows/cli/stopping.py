"""SIGINT and SIGTERM end a command within five seconds, with one line on standard error.

Both raise KeyboardInterrupt in the main thread, so that MLflow runs, locks and child processes end in good order. That
may take long: Python calls handlers of signals between two of its own instructions, and a library may be computing, or
waiting for a server that was stopped as well. So a thread, which reads each signal's number from the pipe that Python
writes it to at once, ends the process after STOP_LIMIT_S. The kernel ends its children (tasks/core/child_process.py).
"""

import functools
import os
import signal
import sys
import threading
import time
from types import FrameType

from tasks.core import log_format
from tasks.core.errors import VerdictError

STOP_LIMIT_S = 4.0  # in all a command ends within five seconds
RESUMED = {"retrain", "score", "sweep"}  # commands that continue where they stopped
EXIT_CODE = 130  # of a shell, for a command that SIGINT ended; typer's as well

_requested = threading.Event()
_errors: list[str] = []  # why the command ends, if it is no signal from outside


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM; the message is recorded as the reason of a run's end.

    A plain KeyboardInterrupt that meets Python while it executes text, as namedtuple does, kills a `python -m` process
    with SIGINT at its end although it was handled (findings/python_handled_interrupt.sh).
    """


def end_on_signals() -> None:
    """Let SIGINT and SIGTERM stop this process; what a shell in the background has it ignore stays ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_enforce_end, args=(reading,), daemon=True).start()


def leave_to_command() -> None:
    """Do not enforce the end: a server's own handlers finish its requests first, within a limit of their own."""
    signal.set_wakeup_fd(-1)


def is_requested() -> bool:
    """Return whether a signal came; an error after that is a consequence of it."""
    return _requested.is_set()


def fail(message: str) -> None:
    """End the command as a signal does, with an error that another thread than the main one found."""
    _errors.append(message)
    # Not by SIGTERM where it can be helped: Prefect's handler of that knows no reason.
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGTERM if ignored else signal.SIGINT)


@functools.cache
def report() -> int:
    """Print once why the command was stopped; return its exit code."""
    if _errors:
        log_format.print_error(_errors[0])
        return VerdictError.exit_code
    resumes = " to resume" if RESUMED & set(sys.argv[1:]) else ""
    print(f"stopped; run the same command again{resumes}", file=sys.stderr, flush=True)
    return EXIT_CODE


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _requested.set()  # before what a library makes of the exception; the thread may come later
    raise Stopped(_errors[0] if _errors else f"stopped by {signal.Signals(number).name}")


def _enforce_end(reading: int) -> None:
    while not {signal.SIGINT, signal.SIGTERM} & set(os.read(reading, 64)):
        pass
    _requested.set()
    time.sleep(STOP_LIMIT_S)
    os._exit(report())
