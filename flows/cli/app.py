"""The `verdict` command: options of every command, and exit codes.

The commands themselves are in run, sweep, review, request_review, hub, settings, stores and completion.
Each imports the libraries that it needs when it is called, so that `verdict --help` answers in less than half a second.
"""

import errno
import gc
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from flows import environment, extras
from flows.cli import completion, hub, request_review, review, run, settings, standard_streams, stopping, stores, sweep
from tasks.core import log_format
from tasks.core.errors import (
    OUT_OF_MEMORY,
    STORAGE_ERRORS,
    UsageError,
    VerdictError,
    first_line,
    is_disk_full,
    is_out_of_memory,
)
from tasks.core.printable import quote
from tasks.core.refusals import describe_refusal

EXIT_CODES = {
    0: "done, also where the verdict is HOLD or REJECT",
    1: "failed: the work or a check, or a server or GPU that is not there",
    2: "wrong usage: a command, option, setting or address; nothing was started",
    3: "data refused: damaged, empty or rejected by the gate; nothing was trained",
    stopping.EXIT_CODE: "stopped by SIGINT (Ctrl-C) or SIGTERM; the same command resumes",
}
# Commands by what a person wants, each with an example for its help.
COMMANDS: dict[str, dict[Callable[..., None], str]] = {
    "Train": {
        run.retrain: "verdict retrain --data DIR --set finetune.epochs=3\n  verdict retrain --data DIR --dry-run",
        sweep.sweep: "verdict sweep --set finetune.learning_rate=1e-5,3e-5,5e-5 --seeds 3",
        run.check: "verdict check --data sentences.csv --columns text=sentence,label=acceptable",
        run.watch: "verdict watch --data DIR --set watch.retrain_on=on_drift",
        settings.init: "verdict init mine.toml --profile cola-small",
        settings.settings: "verdict settings finetune.epochs",
    },
    "Review": {
        review.status: "verdict status",
        review.report: "verdict report 2 --open",
        review.compare: "verdict compare 2 1",
        review.approve: 'verdict approve 2 --reason "better on questions"',
        review.reject: 'verdict reject 2 --reason "worse on questions"',
        review.rollback: 'verdict rollback --reason "too slow" --dry-run',
        review.history: "verdict history",
        review.verify: "verdict verify 2 --copy-to DIR",
        request_review.requests: "verdict requests --hours 24 --queue review.csv",
        review.judge: "verdict judge .verdict/runs/JOB/evidence.json --policy mine.toml",
    },
    "Use the model": {
        run.predict: 'verdict predict "The child has eaten the apple."',
        run.score: "verdict score sentences.csv scores.parquet --columns text=sentence",
        run.serve: "verdict serve --port 8080",
        run.api_key: "verdict api-key alice keys.txt",
        run.export_triton: "verdict export-triton DIR",
        hub.export_hub: "verdict export-hub ORG/NAME --model 2",
    },
    "Operate": {
        review.deploy: "verdict deploy --data DIR --profile mine.toml",
        review.prune: "verdict prune --days 30 --dry-run",
        stores.backup: "verdict backup stores.tar.gz",
        stores.restore: "VERDICT_HOME=DIR verdict restore stores.tar.gz",
        stores.upgrade: "verdict upgrade --dry-run",
        review.doctor: "verdict doctor",
        completion.completion: 'eval "$(verdict completion bash)"',
    },
}


class GroupedHelp(typer.core.TyperGroup):
    """Lists commands in groups; typer does so with rich alone, which takes long to import."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group."""
        width = max(map(len, self.commands))
        for group, members in COMMANDS.items():
            names = [function.__name__.replace("_", "-") for function in members]
            with formatter.section(group):
                formatter.write_dl([(name.ljust(width), self.commands[name].get_short_help_str(120)) for name in names])


def _codes() -> str:
    return "\n".join(f"{code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())


app = typer.Typer(
    cls=GroupedHelp,
    help="Retrain, judge and ship a sentence-acceptability classifier.",
    epilog="Stores are kept in ./.verdict, or in VERDICT_HOME; VERDICT_LOG=json logs one JSON object a line.\n\n"
    f"\b\nExit codes:\n{_codes()}",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from tasks.core.provenance import git_commit, library_versions

        versions = library_versions()
        print(f"verdict {versions.get('verdict-mlops', 'unknown')}, commit {git_commit()}, Python {versions['python']}")
        raise typer.Exit


@app.callback()
def configure(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and Prefect's own log.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Apply the options that every command has."""
    if debug:
        os.environ["VERDICT_DEBUG"] = "1"
    log_format.wants_json()  # an unknown VERDICT_LOG is reported before anything starts


for group, members in COMMANDS.items():
    for command, example in members.items():
        app.command(rich_help_panel=group, epilog=f"\b\nExample:\n  {example}")(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code; a failure is one or two lines on standard error.

    Args:
        arguments: of a call within a process; by default this process runs the command alone and gets its signals.
    """
    try:
        if arguments is None:
            standard_streams.prepare()
            stopping.end_on_signals()
            threading.excepthook = _report_of_thread
        code = _run(list(arguments or sys.argv[1:]) or ["--help"])
        code = 1 if _report_output() else code
        stopping.finish()
    except KeyboardInterrupt:
        stopping.finish()
        code = stopping.EXIT_CODE
    if code == stopping.EXIT_CODE:
        code = stopping.report()
    gc.freeze()  # the interpreter's last collections would go through a million imported objects: 3 s after a run
    sys.exit(code if isinstance(code, int) else 0)


def _run(words: list[str]) -> Any:
    """Run the command, explain a failure, and return the exit code.

    Raises:
        KeyboardInterrupt: if a signal stopped it; what a library makes of that is no failure either.
    """
    completion.prepare()
    if not _has_current_folder():
        log_format.print_error("the current folder was deleted; go to one that is there: cd DIR")
        return UsageError.exit_code
    group: Any = typer.main.get_command(app)
    command = next((word for word in words if word in group.commands), "")
    try:
        return group.main(args=words, prog_name="verdict", standalone_mode=False)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        if os.environ.get("VERDICT_DEBUG") == "1":
            raise
        return stopping.EXIT_CODE if stopping.is_requested() else _explain(error, command)
    except BaseException as error:  # of libraries in Rust, such as tokenizers, which panic
        if not is_out_of_memory(error):
            raise
        return _explain(error, command)


def _report_output() -> bool:
    """Say why standard output could not be written to, if that is so and was not said; return whether it is."""
    reason = standard_streams.take_failure()
    if reason:
        log_format.print_error(f"standard output cannot be written to ({reason}); expected a place with free space")
    return bool(reason)


def _has_current_folder() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def _report_of_thread(failure: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread that failed, except when memory ran out, which the command itself reports."""
    if not is_out_of_memory(failure.exc_value) or os.environ.get("VERDICT_DEBUG") == "1":
        threading.__excepthook__(failure)


def _explain(error: BaseException, command: str) -> int:
    """Print a failure of a command and return the exit code."""
    if is_out_of_memory(error):
        log_format.print_error(OUT_OF_MEMORY)
        return VerdictError.exit_code
    if isinstance(error, VerdictError):
        log_format.print_error(str(error))
        return error.exit_code
    # Usage errors of click; the copy that typer vendors is not importable under click's name.
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        context = getattr(error, "ctx", None)  # None where an option lacks its value
        where = context.command_path if context else f"verdict {command}".strip()
        log_format.print_error(_describe_usage(error), f"see: {where} --help")
        return int(error.exit_code)
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        log_format.print_error("too many files are open at once; ulimit -n 1024, then run the same command again")
        return 1
    stored = isinstance(error, OSError) and error.errno in STORAGE_ERRORS
    if stored or is_disk_full(error):
        if _report_output():
            return 1
        where = getattr(error, "filename", None) or f"a file in {environment.verdict_home()} or the temporary folder"
        reason = getattr(error, "strerror", None) or first_line(error)
        log_format.print_error(
            f"{where} cannot be read or written ({reason}); expected access and free space: "
            "verdict doctor, or name other folders: VERDICT_HOME, TMPDIR"
        )
        return 1
    if isinstance(error, ModuleNotFoundError):
        log_format.print_error(extras.explain_missing(str(error.name).partition(".")[0], command))
        return 1
    what = f"{type(error).__name__}: {error}".removesuffix(": ")  # of an error without a message
    log_format.print_error(what, "this is a bug; for the traceback: verdict --debug ...")
    return 1


def _describe_usage(error: Any) -> str:
    """Return what is wrong with a command's arguments, in one line."""
    refused = error.__cause__
    if not hasattr(refused, "errors"):
        return " ".join(error.format_message().split())
    first = refused.errors()[0]  # of pydantic, with which typer checks values
    option = error.param.get_error_hint().strip("'")
    return f"{option} = {quote(first['input'])} is refused: {describe_refusal(first)}"


if __name__ == "__main__":
    main()
