"""The `verdict` command: options of every command, and exit codes.

The commands themselves are in run.py and review.py. Each imports the libraries that it needs when it is called, so that
`verdict --help` answers in less than half a second.
"""

import gc
import os
import sys
import threading
from collections.abc import Sequence
from typing import Annotated

import typer

from flows import environment
from flows.cli import review, run, stopping
from tasks.core import log_format
from tasks.core.errors import (
    OUT_OF_MEMORY,
    STORAGE_ERRORS,
    VerdictError,
    first_line,
    is_disk_full,
    is_out_of_memory,
)

app = typer.Typer(
    help="Retrain, judge and ship a sentence-acceptability classifier.",
    epilog="Stores are kept in ./.verdict, or in VERDICT_HOME; VERDICT_LOG=json logs one JSON object a line. "
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 data damaged or rejected by the gate, 130 stopped by a signal.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def configure(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and Prefect's own log.")] = False,
) -> None:
    """Apply the options that every command has."""
    if debug:
        os.environ["VERDICT_DEBUG"] = "1"
    log_format.wants_json()  # an unknown VERDICT_LOG is reported before anything starts


for command in (
    run.retrain,
    run.check,
    run.watch,
    review.judge,
    review.status,
    review.compare,
    review.approve,
    review.reject,
    review.rollback,
    review.history,
    review.verify,
    run.predict,
    run.score,
    run.serve,
    run.export_triton,
    review.deploy,
    review.prune,
    review.doctor,
):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code; a failure is one or two lines on standard error.

    Args:
        arguments: of a call within a process; by default this process runs the command alone and gets its signals.
    """
    if arguments is None:
        stopping.end_on_signals()
        threading.excepthook = _report_of_thread
    command = typer.main.get_command(app)
    try:
        code = command.main(
            args=list(arguments or sys.argv[1:]) or ["--help"], prog_name="verdict", standalone_mode=False
        )
    except Exception as error:
        if os.environ.get("VERDICT_DEBUG") == "1":
            raise
        code = stopping.EXIT_CODE if stopping.is_requested() else _explain(error)
    except KeyboardInterrupt:
        code = stopping.EXIT_CODE
    except BaseException as error:  # of libraries in Rust, such as tokenizers, which panic
        if not is_out_of_memory(error):
            raise
        code = _explain(error)
    if code == stopping.EXIT_CODE:
        code = stopping.report()
    gc.freeze()  # the interpreter's last collections would go through a million imported objects: 3 s after a run
    sys.exit(code if isinstance(code, int) else 0)


def _report_of_thread(failure: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread that failed, except for want of memory, of which the command itself fails."""
    if not is_out_of_memory(failure.exc_value) or os.environ.get("VERDICT_DEBUG") == "1":
        threading.__excepthook__(failure)


def _explain(error: BaseException) -> int:
    """Print a failure and return the exit code."""
    if is_out_of_memory(error):
        log_format.print_error(OUT_OF_MEMORY)
        return VerdictError.exit_code
    if isinstance(error, VerdictError):
        log_format.print_error(str(error))
        return error.exit_code
    # Usage errors of click; the copy that typer vendors is not importable under click's name.
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        context = getattr(error, "ctx", None)
        log_format.print_error(error.format_message(), f"see: {context.command_path if context else 'verdict'} --help")
        return int(error.exit_code)
    stored = isinstance(error, OSError) and error.errno in STORAGE_ERRORS
    if stored or is_disk_full(error):
        where = getattr(error, "filename", None) or f"a file in {environment.verdict_home()} or the temporary folder"
        reason = getattr(error, "strerror", None) or first_line(error)
        log_format.print_error(
            f"{where} cannot be read or written ({reason}); expected access and free space: "
            "verdict doctor, or name other folders: VERDICT_HOME, TMPDIR"
        )
        return 1
    if isinstance(error, ModuleNotFoundError):
        log_format.print_error(f"Python package {error.name} is not installed; install what is missing: make install")
        return 1
    what = f"{type(error).__name__}: {error}".removesuffix(": ")  # of an error without a message
    log_format.print_error(what, "this is a bug; for the traceback: verdict --debug ...")
    return 1


if __name__ == "__main__":
    main()
