"""Runs a function in a subprocess with a time limit; a crash, a hang or a kill there becomes one VerdictError here.

Subprocesses are forked from multiprocessing's forkserver, which has imported the heavy libraries, so each starts in
milliseconds. Forking this process instead would copy locks held by its other threads. `start_forkserver` starts the
server in the background, while the caller does other work.
"""

import logging
import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from typing import Any, ParamSpec, TypeVar

from tasks.core.child_process import sigint_blocked, unblock_sigint
from tasks.core.errors import OUT_OF_MEMORY, STORAGE_ERRORS, VerdictError, is_out_of_memory, summarise_error

P = ParamSpec("P")
R = TypeVar("R")

# Brings torch and ONNX Runtime's tools. If the server fails to import it, each subprocess does.
PRELOADED_MODULES = ["tasks.export.preload"]


class ProcessEnded(VerdictError):
    """A subprocess ended without a result: killed, crashed, or stopped after its time."""


def start_forkserver() -> None:
    """Start the server in the background, so that `run_in_subprocess` does not wait for its imports."""
    _context()
    with sigint_blocked():  # the server ignores SIGINT only once it has imported everything
        forkserver.ensure_running()


def run_in_subprocess(what: str, seconds: float, function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Call a function in a subprocess and return its result.

    Args:
        what: name of the work in messages.
        seconds: time limit, from the end of the server's imports.
        function: a module-level function; arguments and result are pickled.
        arguments: positional.
        named: keyword arguments.

    Raises:
        VerdictError: if the function raises; ProcessEnded: if it takes too long, or its process ends without a result.
        OSError: if the function cannot read or write a file; ModuleNotFoundError: if a package is missing.
    """
    ours, theirs = _context().Pipe(duplex=False)
    process = _context().Process(target=_work, args=(theirs, what, function, arguments, named), daemon=True)
    try:
        start_forkserver()
        process.start()
        theirs.close()  # the subprocess holds the only other end, so its death ends poll()
        if not ours.poll(seconds):
            raise ProcessEnded(
                f"{what} did not end in {seconds:g} s and was stopped; run again, or see: verdict doctor"
            )
        result = _receive(ours)
    except (EOFError, ConnectionError) as error:
        raise ProcessEnded(f"{what} {_describe_exit(process)}") from error
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
        ours.close()
    if isinstance(result, Exception):
        raise result
    return result[0]


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED_MODULES)
    return context


def _receive(line: Connection) -> Any:
    """Return what the subprocess sent.

    Raises:
        EOFError: if it ended before all of that was sent; `Connection.recv` raises a plain OSError within a message.
    """
    try:
        return line.recv()
    except OSError as error:
        raise EOFError from error


def _describe_exit(process: multiprocessing.process.BaseProcess) -> str:
    """Describe how a process without a result ended."""
    if process.pid is None:
        return "could not be started; run again, or see: verdict doctor"
    process.join()
    code = process.exitcode or 0
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}; if memory ran out, free some, then run again"
    if code == 1:  # what the function raises is sent, so this is from before: the main program could not be imported
        return (
            "did not start (see the traceback above); a script has to be a file, and call this under "
            'if __name__ == "__main__": multiprocessing imports it again'
        )
    return f"ended with exit code {code} without an error message; run again, or see: verdict doctor"


def _work(
    line: Connection, what: str, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """Run in the subprocess: call the function; send its result as a 1-tuple, or its error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent, which kills this process
    unblock_sigint()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(2, 1)  # standard output belongs to the command
    logging.disable(logging.ERROR)  # of exporters and optimisers; what matters is in the result
    warnings.simplefilter("ignore")
    try:
        line.send((function(*arguments, **named),))
    except (VerdictError, ModuleNotFoundError) as error:
        line.send(error)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
            line.send(error)
            return
        reason = OUT_OF_MEMORY if is_out_of_memory(error) else summarise_error(error, 300)
        failed = VerdictError(f"{what} failed: {reason}")
        failed.add_note("".join(traceback.format_exception(error)))
        line.send(failed)


def _end_with_parent() -> None:
    """Exit when the parent ends, however it ends: nothing would read the result."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
