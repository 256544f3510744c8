"""What programs say on standard error: lines for people, or one JSON object a line for who collects logs.

VERDICT_LOG=json asks for the second. Each object has time, level, logger and message, and what is known where it was
said: the MLflow run, Prefect's flow run, the data's digest, the model's version and digest.
"""

import logging
import os
import sys

from tasks.core.errors import UsageError

FORMAT_VARIABLE = "VERDICT_LOG"
JSON_FIELDS = {"asctime": "time", "levelname": "level", "name": "logger"}

_context: dict[str, str] = {}  # of the process, which does one job or serves one model, in whatever thread


def bind_context(**facts: str) -> None:
    """Add facts to everything that this process says from here on; an empty one takes its name away."""
    for name, value in facts.items():
        if value:
            _context[name] = value
        else:
            _context.pop(name, None)


def wants_json() -> bool:
    """Tell whether the environment asks for JSON.

    Raises:
        WrongUsage: if it asks for something else.
    """
    asked = os.environ.get(FORMAT_VARIABLE, "").strip().lower()
    if asked not in ("", "text", "json"):
        raise UsageError(f"{FORMAT_VARIABLE} is {asked!r}; expected text or json")
    return asked == "json"


def set_formatter(handler: logging.Handler) -> None:
    """Let a handler write what the environment asks for.

    Raises:
        WrongUsage: if that is no known form.
    """
    if not wants_json():
        handler.setFormatter(logging.Formatter("%(message)s"))
        return
    from pythonjsonlogger.json import JsonFormatter

    form = "%(asctime)s %(levelname)s %(name)s %(message)s"
    handler.setFormatter(
        JsonFormatter(form, datefmt="%Y-%m-%dT%H:%M:%S%z", rename_fields=JSON_FIELDS, json_ensure_ascii=False)
    )
    handler.addFilter(_add_context)


def print_error(*lines: str) -> None:
    """Print why a command failed on standard error, in the form that the environment asks for."""
    handler = logging.StreamHandler(sys.stderr)
    text = "\n".join(lines)
    try:
        set_formatter(handler)
        said = text if wants_json() else f"error: {text}"
    except UsageError:  # which is what failed, then
        said = f"error: {text}"
    handler.handle(logging.makeLogRecord({"name": "verdict", "levelname": "ERROR", "msg": said}))


def _add_context(record: logging.LogRecord) -> bool:
    for name, value in list(_context.items()):
        if not hasattr(record, name):
            setattr(record, name, value)
    return True
