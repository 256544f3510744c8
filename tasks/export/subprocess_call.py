"""Runs a function in a process of its own: what crashes, hangs or is killed there ends as one clear line here.

The processes are forked from a server that has imported the heavy libraries and done nothing else, so each starts in
milliseconds; a fork of this process would copy its threads' locks without the threads. The server starts while other
work goes on, see `warm_up`.
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

from tasks.core.errors import VerdictError, summarise_error

P = ParamSpec("P")
R = TypeVar("R")

# torch, transformers and ONNX Runtime's tools with it. Where the server cannot find it, each process imports it itself.
PRELOADED_MODULES = ["tasks.export.onnx_export"]


def start_forkserver() -> None:
    """Start the server in the background; on a free core its imports cost the first `run_apart` nothing."""
    _context()
    forkserver.ensure_running()


def run_in_subprocess(what: str, seconds: float, function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Call a function in a process of its own and return what it returns.

    Args:
        what: name of the work in messages.
        seconds: limit; counted from when the server has imported its libraries.
        function: of a module, so that the other process finds it; arguments and result are pickled.
        arguments: by place.
        named: by name.

    Raises:
        VerdictError: if the function raises, takes too long, or its process ends without an answer.
    """
    ours, theirs = _context().Pipe(duplex=False)
    process = _context().Process(target=_work, args=(theirs, what, function, arguments, named), daemon=True)
    try:
        process.start()
        theirs.close()  # with the other process gone nobody holds it, and waiting ends
        if not ours.poll(seconds):
            raise VerdictError(
                f"{what} did not end in {seconds:g} s and was stopped; run again, or see: verdict doctor"
            )
        answer = ours.recv()
    except (EOFError, ConnectionError) as error:
        raise VerdictError(f"{what} {_describe_exit(process)}") from error
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
        ours.close()
    if isinstance(answer, VerdictError):
        raise answer
    return answer[0]


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED_MODULES)
    return context


def _describe_exit(process: multiprocessing.process.BaseProcess) -> str:
    """Tell how a process ended that gave no answer."""
    if process.pid is None:
        return "could not be started; run again, or see: verdict doctor"
    process.join()
    code = process.exitcode or 0
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}; where memory ran out, free some, then run again"
    return f"ended with exit code {code} before it could say why; run again, or see: verdict doctor"


def _work(
    line: Connection, what: str, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """Be the process: call the function and send its result in a tuple, or the error that it raised."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever pressed Ctrl-C is told once, by the process that waits
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(2, 1)  # standard output belongs to the command
    logging.disable(logging.ERROR)  # exporters and optimisers talk; what matters is in the result
    warnings.simplefilter("ignore")
    try:
        line.send((function(*arguments, **named),))
    except VerdictError as error:
        line.send(error)
    except Exception as error:
        failed = VerdictError(f"{what} failed: {summarise_error(error, 300)}")
        failed.add_note("".join(traceback.format_exception(error)))
        line.send(failed)


def _end_with_parent() -> None:
    """End this process when the one that waits for it ends, however it does: nobody would read the answer."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
