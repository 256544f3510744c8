"""Process-wide defaults for Prefect and MLflow, set before either is imported; variables that the user set win."""

import contextlib
import errno
import logging
import os
import re
import resource
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tasks.core import log_format
from tasks.core.errors import UsageError, VerdictError, is_disk_full
from tasks.core.hidden_addresses import check_address
from tasks.inference.bundle import DEFAULT_MODEL_NAME, MODEL_NAME, MODEL_VARIABLE, check_model_name

DEFAULT_HOME = ".verdict"
MODEL_FILE = "model-name"  # in the stores' folder of a model with another name than the default
OPENMP_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # how its threads wait
# Defaults of a run: it waits for a server that is away for minutes, as the deployments do (infra/prefect.yaml).
RETRY_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "7",
    "PREFECT_CLIENT_MAX_RETRIES": "7",
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
}
MLFLOW_CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME")
# Why there can be no folder, where the system's own words name something else.
HOME_FAULTS = {
    errno.EEXIST: "it is a file",
    errno.ENOTDIR: "a part of its path is a file",
    errno.ENOENT: "its file system takes no new folders",
}
MIN_ADDRESS_SPACE = 10**9  # bytes for a flow and the server that it starts
MIN_FILE_SIZE = 10**8  # bytes of the largest file of a run: a graph of the packaged encoder has 90 MB
MIN_OPEN_FILES = 64
LOAD_SAMPLES, LOAD_SAMPLE_S = 3, 0.005


def verdict_home() -> str:
    """Return the folder of the stores: VERDICT_HOME, or ./.verdict."""
    return str(Path(os.environ.get("VERDICT_HOME") or DEFAULT_HOME).resolve())


def usable_home() -> str:
    """Return the folder of the stores; create it if it is missing.

    Raises:
        UsageError: if it cannot be created, or is not writable.
        VerdictError: if this process may not take what a flow needs: address space, size of a file, open files.
    """
    _check_limits()
    folder = verdict_home()
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            _claim(Path(folder))
            return folder
    except OSError as error:
        fault = "cannot be written to" if Path(folder).is_dir() else "cannot be created"
        reason = HOME_FAULTS.get(error.errno or 0) or (error.strerror or type(error).__name__).lower()
        advice = "make room: verdict prune, or name another" if is_disk_full(error) else "name another"
        raise UsageError(f"the folder of the stores {folder} {fault} ({reason}); {advice}: VERDICT_HOME=DIR") from error


def own_home() -> str:
    """Return the folder of the stores, which need not be there.

    Raises:
        UsageError: if it is another model's, of which this one's aliases and history say nothing.
    """
    folder = verdict_home()
    _check_model(Path(folder))
    return folder


def _claim(home: Path) -> None:
    """Keep the stores' folder for one registered model: jobs and snapshots of another would be taken for its own.

    Raises:
        UsageError: if it is another's.
    """
    _check_model(home)
    record = home / MODEL_FILE
    if MODEL_NAME != DEFAULT_MODEL_NAME and not record.is_file():
        record.write_text(f"{MODEL_NAME}\n", encoding="utf-8")


def _check_model(home: Path) -> None:
    """Raise UsageError if the stores' folder is another model's."""
    record = home / MODEL_FILE
    # The default name leaves no record: what a run left is its own. MLflow's database may be elsewhere.
    is_used = any((home / name).exists() for name in ("mlflow.db", "runs", "snapshots"))
    used = DEFAULT_MODEL_NAME if is_used else MODEL_NAME
    held = record.read_text(encoding="utf-8").strip() if record.is_file() else used
    if held != MODEL_NAME:
        raise UsageError(
            f"{home} holds the model {held!r}, and {MODEL_VARIABLE} names {MODEL_NAME!r}; each has its own folder: "
            f"VERDICT_HOME={home}-{MODEL_NAME}"
        )


def _check_limits() -> None:
    """Raise VerdictError under a limit in which libraries abort, or wait for a server that cannot start."""
    for limited, least, what, remedy in (
        (resource.RLIMIT_AS, MIN_ADDRESS_SPACE, "address space is limited to {:,} bytes", "-v unlimited"),
        (resource.RLIMIT_FSIZE, MIN_FILE_SIZE, "files are limited to {:,} bytes", "-f unlimited"),
        (resource.RLIMIT_NOFILE, MIN_OPEN_FILES, "open files are limited to {:,}", "-n 1024"),
    ):
        limit = resource.getrlimit(limited)[0]
        if limit != resource.RLIM_INFINITY and limit < least:
            raise VerdictError(
                f"{what.format(limit)}; expected at least {least:,}: ulimit {remedy}, then run the same command again"
            )


def set_process_defaults(more: Mapping[str, str] = {}) -> None:
    """Set the default environment variables of this process and its children.

    Args:
        more: defaults that are preferred to those of all commands.
    """
    check_model_name()
    cache = Path(verdict_home(), "cache")
    defaults = {
        # No telemetry. MLflow needs the word "true"; Prefect's server has a switch of its own.
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "ORT_DISABLE_TELEMETRY": "1",  # read when ONNX Runtime is loaded
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Standard output is for the command's result only.
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # CPU, memory and GPU curves on a run's page; tasks/registry/system_metrics.py samples them.
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
        # Report a server that is down within seconds, not after minutes of retries.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        # torch asks for huge pages for large tensors: a quarter of the page faults of a training step.
        "THP_MEM_ALLOC_ENABLE": "1",
        # Caches lie with the stores: compiled kernels of the training step, matplotlib's fonts, what Prefect's server
        # registered. A home directory may be lost with a container, and is not ours to write to.
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "MPLCONFIGDIR": str(cache / "matplotlib"),
        "PREFECT_SERVER_MEMO_STORE_PATH": str(cache / "prefect_memo_store.toml"),
        # Tokenizers use threads; without this they warn at each fork.
        "TOKENIZERS_PARALLELISM": "true",
        **more,
    }
    # Prefect's profiles. Flows on a terminal leave a device id beside them, even with DO_NOT_TRACK (Prefect 3.8.8).
    if not _has_prefect_profiles():
        defaults["PREFECT_HOME"] = str(cache / "prefect")
        # Prefect makes it without its parents; a command that writes nothing leaves none.
        warnings.filterwarnings("ignore", message="Failed to create the Prefect home directory")
    if not any(os.environ.get(name) for name in OPENMP_VARIABLES):
        defaults |= openmp_waiting(busy=is_machine_busy())
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    _move_credentials()
    if any(os.environ.get(name) for name in MLFLOW_CREDENTIALS):
        # requests, and so MLflow's client, would replace them by what ~/.netrc has for the host (requests 2.34.2).
        os.environ.setdefault("NETRC", os.devnull)


def _has_prefect_profiles() -> bool:
    """Return whether the user has a folder of Prefect's profiles in the home directory."""
    try:
        return Path("~/.prefect").expanduser().is_dir()
    except RuntimeError:  # no home directory is known
        return False


def _move_credentials() -> None:
    """Move name and password of our servers' addresses to the variables that are meant for them.

    Libraries log addresses, and quote them in messages.

    Raises:
        UsageError: if such an address has another form.
    """
    for variable in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        given = os.environ.get(variable, "")
        if not re.match(r"https?://[^/?#]*@", given):
            continue
        check_address(variable, given)
        parts = urlsplit(given)
        name, password = unquote(parts.username or ""), unquote(parts.password or "")
        if variable == "PREFECT_API_URL":
            os.environ.setdefault("PREFECT_API_AUTH_STRING", f"{name}:{password}")
        else:
            os.environ.setdefault("MLFLOW_TRACKING_USERNAME", name)
            os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", password)
        os.environ[variable] = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def openmp_waiting(busy: bool) -> dict[str, str]:
    """Return how torch's threads wait for each other at the end of each operator.

    In a loop, as is libgomp's default, they keep the CPU from the thread that is waited for where other processes are
    busy: measured, a training step took five to nine times as long. Asleep it takes a quarter longer on a quiet
    machine, as it takes time to wake up. A short loop costs 5% there, and halves the loss if others become busy later.
    """
    return {"OMP_WAIT_POLICY": "passive"} if busy else {"GOMP_SPINCOUNT": "10000"}


def is_machine_busy() -> bool:
    """Return whether other processes ask for as much as all CPUs; False where that is not known."""
    running = []
    with contextlib.suppress(OSError, ValueError, IndexError):  # Linux alone has it
        for _ in range(LOAD_SAMPLES):
            running.append(int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[0]) - 1)
            time.sleep(LOAD_SAMPLE_S)
    return bool(running) and sorted(running)[len(running) // 2] >= (os.cpu_count() or 1)


def show_log(verbose: bool = False) -> None:
    """Log records of `tasks` to standard error, in the format that VERDICT_LOG names.

    Args:
        verbose: also those of level DEBUG.

    Raises:
        UsageError: if VERDICT_LOG names no format.
    """
    handler = log_format.StderrHandler()
    log_format.set_formatter(handler)
    logger = logging.getLogger("tasks")
    logger.handlers = [handler]  # replaces the handler of an earlier call
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)


def quiet_prefect() -> None:
    """Do not print the logs of Prefect, once it is imported, and of other libraries; its server still gets them."""
    quiet_steps()
    for console in _prefect_consoles():
        console.setLevel(logging.CRITICAL + 1)


def quiet_steps() -> None:
    """Do not log that a step ended as Completed(), which a run's page says of each; failures are still logged."""
    logging.getLogger("prefect.task_runs").setLevel(logging.WARNING)


def show_worker_log() -> None:
    """Show records of `tasks` on a run's Prefect page; format a worker's output as VERDICT_LOG says.

    Raises:
        UsageError: if it names no format.
    """
    logging.getLogger("tasks").setLevel(logging.INFO)
    quiet_steps()
    if log_format.wants_json():
        for console in _prefect_consoles():
            log_format.set_formatter(console)


def _prefect_consoles() -> set[logging.Handler]:
    """Return Prefect's handlers that print: of the root logger, and those of its internals."""
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    return {
        handler
        for logger in loggers
        for handler in logger.handlers
        if type(handler).__name__ == "PrefectConsoleHandler"
    }
