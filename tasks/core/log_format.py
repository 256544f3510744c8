"""Formats the log on standard error: lines for people, or with VERDICT_LOG=json one JSON object per line.

Each object has time, level, logger, message and the bound context: MLflow run, Prefect flow run, digest of the data,
version and digest of the model.
"""

import logging
import os
import sys
from typing import TextIO

from tasks.core.errors import UsageError
from tasks.core.hidden_addresses import conceal
from tasks.core.printable import escape_controls, escape_json, redact, wrap_words

FORMAT_VARIABLE = "VERDICT_LOG"
DEFAULT_WIDTH = 80  # of a terminal that does not know its size
JSON_FIELDS = {"asctime": "time", "levelname": "level", "name": "logger"}

OWN_LOGGERS = ("tasks", "verdict")

_context: dict[str, str] = {}  # one for the process and all its threads: it runs one job or serves one model


def bind_context(**facts: str) -> None:
    """Add fields to every later log record of this process; an empty value removes a field."""
    for name, value in facts.items():
        if value:
            _context[name] = value
        else:
            _context.pop(name, None)


def wants_json() -> bool:
    """Return whether VERDICT_LOG is json.

    Raises:
        UsageError: if it is neither json nor text.
    """
    chosen = os.environ.get(FORMAT_VARIABLE, "").strip().lower()
    if chosen not in ("", "text", "json"):
        raise UsageError(f"{FORMAT_VARIABLE} is {chosen!r}; expected text or json")
    return chosen == "json"


class PrintableFormatter(logging.Formatter):
    """Formats log records as lines without control characters and secrets; for a terminal, wrapped between words."""

    def __init__(self, form: str | None = None, *, on_terminal: bool = False) -> None:
        super().__init__(form)
        self._on_terminal = on_terminal

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text."""
        text = escape_controls(_without_secrets(record, super().format(record)))
        if not self._on_terminal:
            return text
        return wrap_words(text, os.get_terminal_size(sys.stderr.fileno()).columns or DEFAULT_WIDTH)


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is at the time: a live display on the terminal replaces it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Return standard error."""
        return sys.stderr


def _without_secrets(record: logging.LogRecord, text: str) -> str:
    """Hide the secrets of a record: other libraries also quote parts of addresses, such as the path of a request.

    In our own lines the secrets of hidden addresses stay: addresses are hidden there before, and a password may be a
    word.
    """
    own = str(record.name).partition(".")[0] in OWN_LOGGERS
    return redact(text) if own else conceal(redact(text))


def set_formatter(handler: logging.Handler) -> None:
    """Set the format of a handler as VERDICT_LOG says.

    Raises:
        UsageError: if it names no known format.
    """
    if not wants_json():
        handler.setFormatter(PrintableFormatter("%(message)s", on_terminal=sys.stderr.isatty()))
        return
    from pythonjsonlogger.json import JsonFormatter

    class PrintableJsonFormatter(JsonFormatter):
        def format(self, record: logging.LogRecord) -> str:
            return escape_json(_without_secrets(record, super().format(record)))

    form = "%(asctime)s %(levelname)s %(name)s %(message)s"
    handler.setFormatter(
        PrintableJsonFormatter(form, datefmt="%Y-%m-%dT%H:%M:%S%z", rename_fields=JSON_FIELDS, json_ensure_ascii=False)
    )
    handler.addFilter(_add_context)


def print_error(*lines: str) -> None:
    """Print why a command failed on standard error, in the format that VERDICT_LOG names."""
    handler = StderrHandler()
    handler.setFormatter(PrintableFormatter())
    text = "\n".join(lines)
    try:
        set_formatter(handler)
        message = text if wants_json() else f"error: {text}"
    except UsageError:  # VERDICT_LOG itself is what is wrong
        message = f"error: {text}"
    handler.handle(logging.makeLogRecord({"name": "verdict", "levelname": "ERROR", "msg": message}))


def _add_context(record: logging.LogRecord) -> bool:
    for name, value in list(_context.items()):
        if not hasattr(record, name):
            setattr(record, name, value)
    return True
