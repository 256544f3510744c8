"""The connection to MLflow: which store, clients for it, and its errors as one clear line.

Every module that talks to MLflow goes through `connect`, except MLflow's own monitor in system_metrics.py.
"""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Experiment, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST, ErrorCode

from ..core.database_templates import copy_template
from ..core.errors import UnreachableError, UsageError, first_line
from ..core.files import atomic_write
from ..core.hidden_addresses import conceal, reveal
from ..core.printable import shorten
from .local_database import AUDIT_EXPERIMENT, EXPERIMENT, SQLITE, SWEEP_EXPERIMENT
from .store import MlflowStore, prepare_local

NOTE = "mlflow.note.content"  # the tag that pages show as the description of an experiment or run
# Follows the address of a page: model training, not agents. The browser's own switch, which says agents at first, would
# decide otherwise: the pages of MLflow 3.17.2 do not look at the kind of an experiment.
PAGE_MODE = "?workflowType=machine_learning"
# Tags of a new experiment; releases whose pages look at the kind open it with those of model training.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
EXPERIMENT_TAGS = {
    EXPERIMENT: _KIND
    | {
        "mlflow.experiment.primaryMetric.name": "mcc",
        "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
        NOTE: "One run for each retraining: settings, curves, data sets, and as files the data gate, report, evidence "
        "and predictions. `mcc` is that of the holdout. A run's description says how its model was judged.",
    },
    AUDIT_EXPERIMENT: _KIND
    | {
        NOTE: "The audit log: one run for each move of the champion's alias and each rejection. `verdict history` "
        "shows it. Its runs are not to be changed or deleted: `verdict status` reports that.",
    },
    SWEEP_EXPERIMENT: _KIND
    | {
        NOTE: "One run for each `verdict sweep`, with a child run for each trial: what it varied, and its validation "
        "MCC. The parent has pictures of all trials; the winner's own run is in the experiment of retrainings.",
    },
}
CONNECT_TIMEOUT_S = 5
LIMITED_DRIVERS = {"psycopg2", "psycopg", "pymysql", "mysqldb"}  # that take `connect_timeout`
REMEDIES = {  # by words of an error
    "readonly database": "make it and its folder writable",
    "out-of-date database schema": "upgrade it: verdict upgrade",
}
LONGEST_MESSAGE, LONGEST_REASON = 10_000, 200  # characters

log = logging.getLogger(__name__)

_process_address = threading.RLock()  # held while MLflow's process-wide address is a store's


@contextlib.contextmanager
def connect(store: MlflowStore, process_wide: bool = False) -> Iterator[mlflow.MlflowClient]:
    """Yield a client of the store.

    Args:
        store: which.
        process_wide: also make the store MLflow's address of the whole process during the block. Two things take no
            other: addresses of the form models:/ (mlflow/store/artifact/models_artifact_repo.py resolves them in
            `mlflow.get_registry_uri()`), and writing a model. Such blocks of different threads run one after the other.

    Raises:
        UnreachableError: instead of MLflow's, SQLAlchemy's and the file system's errors; if a local database is lost.
        UsageError: if the store's address needs a library that is not installed.
    """
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    if os.environ.get("VERDICT_DEBUG") != "1":  # it logs a traceback of what it raises
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if (database := prepare_local(store)) and not database.exists():
        _make_database(database)
    with _clear_errors(store):
        uri = reveal(store["uri"])
        with _process_wide(uri) if process_wide else contextlib.nullcontext():
            yield mlflow.MlflowClient(uri, registry_uri=uri)


@contextlib.contextmanager
def unless_missing() -> Iterator[None]:
    """End the block where MLflow says that what it names does not exist: another process has deleted it."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise


def check_database(store: MlflowStore) -> None:
    """Check that the database of a store answers; MLflow itself tries for minutes, and waits for ever for a silent one.

    Args:
        store: whose; other than PostgreSQL and MySQL pass.

    Raises:
        UnreachableError: if it does not answer within CONNECT_TIMEOUT_S.
        UsageError: if the library for it is not installed.
    """
    if not store["uri"].startswith(("postgresql", "mysql")):
        return
    from sqlalchemy import NullPool, create_engine, make_url

    with _clear_errors(store):
        url = make_url(reveal(store["uri"]))
        limit = {"connect_timeout": CONNECT_TIMEOUT_S} if url.get_dialect().driver in LIMITED_DRIVERS else {}
        create_engine(url, poolclass=NullPool, connect_args=limit).connect().close()


@contextlib.contextmanager
def _clear_errors(store: MlflowStore) -> Iterator[None]:
    """Raise what `connect` says instead of the errors of the block."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"MLflow store {store['uri']} needs the Python package {error.name}, which is not installed; install it, "
            "or name another store: MLFLOW_TRACKING_URI"
        ) from error
    except (MlflowException, OSError, *_database_errors()) as error:
        cause = first_line(_find_cause(error), LONGEST_MESSAGE)
        reason = shorten(conceal(cause), LONGEST_REASON)  # afterwards: half a secret would stay
        remedy = next((text for words, text in REMEDIES.items() if words in cause), "check it: verdict doctor")
        raise UnreachableError(f"MLflow store {store['uri']} failed ({reason}); {remedy}") from error


def _find_cause(error: BaseException) -> BaseException:
    """Return the error of a database or of a connection, where there is one behind MLflow's and SQLAlchemy's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(database := getattr(cause, "orig", None), BaseException):
            return database
        if isinstance(cause, ConnectionError | TimeoutError | socket.gaierror) and cause.strerror:
            return ConnectionError(f"no server answers: {cause.strerror}")
        cause = cause.__cause__ or cause.__context__
    return error


@contextlib.contextmanager
def _process_wide(uri: str) -> Iterator[None]:
    """Make an address MLflow's own; MLflow also writes it to the environment, which is put back as the user left it."""
    with _process_address:
        configured = os.environ.get("MLFLOW_TRACKING_URI")
        try:
            mlflow.set_tracking_uri(uri)
            mlflow.set_registry_uri(uri)
            yield
        finally:
            if configured is None:
                os.environ.pop("MLFLOW_TRACKING_URI", None)
            else:
                os.environ["MLFLOW_TRACKING_URI"] = configured


def _make_database(database: Path) -> None:
    """Make a new database in one process while others wait; MLflow would make the tables in each of them."""
    from filelock import FileLock  # not in the inference image, which only reaches servers

    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        if not database.exists() and not copy_template("mlflow", database):
            with atomic_write(database) as scratch:
                create_tables(scratch)


def create_tables(database: Path) -> None:
    """Make a new, empty SQLite store, by all of MLflow's migrations."""
    with connect(MlflowStore(uri=f"{SQLITE}{database}", artifacts="")) as client:
        client.search_registered_models(max_results=1)


def experiment_of(client: mlflow.MlflowClient, store: MlflowStore, name: str = EXPERIMENT) -> str:
    """Return an experiment's id; create it where it is missing, in a local store with the store's artifact folder.

    One that somebody else made, such as infra/images/accounts.py, gets what its page shows.
    """
    found = client.get_experiment_by_name(name)
    if found and found.lifecycle_stage == "deleted":
        _restore_audit_log(client, store, found)
    if found:
        with contextlib.suppress(MlflowException):  # of an account that may only read
            for key in EXPERIMENT_TAGS[name].keys() - found.tags.keys():
                client.set_experiment_tag(found.experiment_id, key, EXPERIMENT_TAGS[name][key])
        return str(found.experiment_id)
    folder = Path(store["artifacts"]).as_uri() if store["uri"].startswith("sqlite:") else None
    try:
        return str(client.create_experiment(name, folder, tags=EXPERIMENT_TAGS[name]))
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
        made = client.get_experiment_by_name(name)  # by another process, meanwhile
        if not made:
            raise
        return str(made.experiment_id)


def _restore_audit_log(client: mlflow.MlflowClient, store: MlflowStore, deleted: Experiment) -> None:
    """Restore the experiment of the audit log, whose records count even where they were deleted.

    Raises:
        UnreachableError: for another experiment. Restoring it revives runs that were deleted before it, one by one.
    """
    if deleted.name != AUDIT_EXPERIMENT:
        raise UnreachableError(
            f"experiment {deleted.name!r} was deleted in MLflow; to restore it with all of its runs: "
            f"MLFLOW_TRACKING_URI={store['uri']} mlflow experiments restore --experiment-id {deleted.experiment_id}"
        )
    log.warning("experiment %r was deleted in MLflow; it is restored, because it is the audit log", deleted.name)
    client.restore_experiment(deleted.experiment_id)


def search_all(search: Callable[..., Any], *args: Any, **filters: Any) -> list[Any]:
    """Return the results of every page of a search.

    Args:
        search: a `search_` method of the client.
        args: positional arguments of the search.
        filters: keyword arguments of the search.
    """
    found: list[Any] = []
    token: str | None = None
    while token != "":
        page = search(*args, **filters, page_token=token)
        found += page
        token = page.token or ""
    return found


def all_runs(client: mlflow.MlflowClient, name: str) -> list[Run]:
    """Return every run of an experiment, also those deleted in MLflow's page; none where the experiment is missing."""
    found = client.get_experiment_by_name(name)
    return search_all(client.search_runs, [found.experiment_id], run_view_type=ViewType.ALL) if found else []


def _database_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of a store in a database; mlflow-skinny of the inference image only reaches servers."""
    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return ()
    return (SQLAlchemyError,)
