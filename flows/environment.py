"""Process-wide choices for Prefect and MLflow, made before either is imported; what the user set stays."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tasks.core import log_format as logs
from tasks.core.errors import UsageError

STORES = ".verdict"
CHAMPION_URI = "models:/acceptability@champion"  # default model of commands and deployments


def verdict_home() -> str:
    """Return the folder of the stores: VERDICT_HOME, or ./.verdict."""
    return str(Path(os.environ.get("VERDICT_HOME") or STORES).resolve())


def usable_home() -> str:
    """Return the folder of the stores, made where it is missing.

    Raises:
        WrongUsage: if nothing can be written there.
    """
    folder = verdict_home()
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise UsageError(
            f"nothing can be written to {folder} ({error.strerror}); name another: VERDICT_HOME"
        ) from error


def set_process_defaults() -> None:
    """Set the defaults of this process and its children."""
    defaults = {
        # Nothing is reported to anybody. MLflow wants the word, Prefect's server its own switch.
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Standard output belongs to the command.
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # A run's page shows what the machine did meanwhile; tasks/registry/system_metrics.py samples it.
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
        # A server that is down is told in seconds, not after minutes of retries.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        # Tokenisers run in threads of their own; a fork after that would only warn.
        "TOKENIZERS_PARALLELISM": "true",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def show_log(quiet_prefect: bool) -> None:
    """Send what the tasks say to standard error, in the form that VERDICT_LOG names.

    Args:
        quiet_prefect: keep what Prefect and the other libraries say for the server's log of the run.

    Raises:
        WrongUsage: if VERDICT_LOG names no form.
    """
    handler = logging.StreamHandler(sys.stderr)
    logs.set_formatter(handler)
    logger = logging.getLogger("tasks")
    logger.handlers = [handler]  # calls in one process do not add up
    logger.setLevel(logging.INFO)
    if quiet_prefect:
        for console in _prefect_consoles([logging.getLogger()]):
            console.setLevel(logging.CRITICAL + 1)


def show_worker_log() -> None:
    """Let a run's page show what the tasks say, and a worker's output be in the form that VERDICT_LOG names.

    Raises:
        WrongUsage: if it names no form.
    """
    logging.getLogger("tasks").setLevel(logging.INFO)
    if logs.wants_json():
        known = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
        for console in _prefect_consoles([logging.getLogger(), *known]):
            logs.set_formatter(console)


def _prefect_consoles(loggers: Iterable[logging.Logger]) -> set[logging.Handler]:
    return {
        handler
        for logger in loggers
        for handler in logger.handlers
        if type(handler).__name__ == "PrefectConsoleHandler"
    }
