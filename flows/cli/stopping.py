"""SIGINT and SIGTERM end a command within five seconds, with one line on standard error.

The first of them raises KeyboardInterrupt in the main thread, so that MLflow runs, locks and child processes end in
good order; a second exception while that one is handled would be a traceback. Ending may take long: Python calls
handlers of signals between two of its own instructions, and a library may be computing, or waiting for a server that
was stopped as well. So a thread, which reads each signal's number from the pipe that Python writes it to at once, ends
the process after STOP_LIMIT_S. The kernel ends its children (tasks/core/child_process.py).
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
SIGNALS = (signal.SIGINT, signal.SIGTERM)

# When a signal raised Stopped. No Event: one handler may interrupt another, which holds its lock.
_raised: list[float] = []
_seen = threading.Event()  # by the thread, also where a library has set a handler of its own
_pipe: list[int] = []  # its end to which Python writes
_errors: list[str] = []  # why the command ends, if it is no signal from outside


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM; the message is recorded as the reason of a run's end.

    A plain KeyboardInterrupt that meets Python while it executes text, as namedtuple does, kills a `python -m` process
    with SIGINT at its end although it was handled (findings/python_handled_interrupt.sh).
    """


@functools.cache
def end_on_signals() -> None:
    """Let SIGINT and SIGTERM stop this process; what a shell in the background has it ignore stays ignored."""
    sys.unraisablehook = _report_unraisable
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    _pipe.append(writing)
    threading.Thread(target=_enforce_end, args=(reading,), daemon=True).start()
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def leave_to_command() -> None:
    """Do not enforce the end: a server's own handlers finish its requests first, within a limit of their own."""
    signal.set_wakeup_fd(-1)


def finish() -> None:
    """Let signals raise nothing any more, as the command's work is done; the end of the process is enforced again."""
    for number in SIGNALS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, _ignore)
    if _pipe:
        signal.set_wakeup_fd(_pipe[0], warn_on_full_buffer=False)


def is_requested() -> bool:
    """Return whether a signal came; an error after that is a consequence of it."""
    return bool(_raised) or _seen.is_set()


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
    now = time.monotonic()
    # Later signals count again: of a server the end is not enforced, and a library may have swallowed the exception.
    if _raised and now - _raised[-1] < STOP_LIMIT_S:
        return
    _raised.append(now)
    raise Stopped(_errors[0] if _errors else f"stopped by {signal.Signals(number).name}")


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing, but unlike SIG_IGN let Python write the signal's number to the pipe."""


def _report_unraisable(failure: "sys.UnraisableHookArgs") -> None:
    """Print what Python cannot raise, except for Stopped, which met a finaliser: the next signal raises it again."""
    if issubclass(failure.exc_type, Stopped):
        _raised.clear()
    else:
        sys.__unraisablehook__(failure)


def _enforce_end(reading: int) -> None:
    while not {*SIGNALS} & set(os.read(reading, 64)):
        pass
    _seen.set()
    time.sleep(STOP_LIMIT_S)
    os._exit(report())
