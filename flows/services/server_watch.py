"""Watches the external servers that a run needs: says when one is away, and ends the run where it stays away.

The clients of Prefect and MLflow retry each request for minutes, and say nothing. A run whose server is gone for good
would try again with each of its last requests.
"""

import contextlib
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from tasks.core.errors import UnreachableError
from tasks.core.hidden_addresses import check_address
from tasks.core.printable import redact_address
from tasks.registry.store import SQLITE, MlflowStore, locate_store

CHECK_SECONDS = 5.0
START_LIMIT_S = 1.0  # for a server to answer before a run begins
START_TRY_S = 2.0  # for each try then
AWAY_LIMIT_S = 240.0  # the clients' own retries, MLFLOW_HTTP_REQUEST_MAX_RETRIES=7, take 250 s

log = logging.getLogger("tasks.servers")


def external_servers(prefect: str = "") -> dict[str, str]:
    """Return the address of the health check of each external server, by its name and address.

    Args:
        prefect: address of Prefect's API; empty for an embedded server.

    Raises:
        UsageError: if MLFLOW_TRACKING_URI is no address.
    """
    check_address("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI", ""))
    found = {"Prefect": prefect, "MLflow": os.environ.get("MLFLOW_TRACKING_URI", "")}
    return {f"{name} at {redact_address(url)}": _health(url) for name, url in found.items() if url.startswith("http")}


def check_servers(servers: dict[str, str], wait: bool = True) -> None:
    """Check that each server answers, before anything takes time.

    Args:
        servers: as `external_servers` returns them.
        wait: up to START_LIMIT_S for one that does not; otherwise each is tried once.

    Raises:
        UnreachableError: for the first one that does not.
    """
    for name, url in servers.items():
        deadline = time.monotonic() + START_LIMIT_S * wait
        while not _answers(url, START_TRY_S):
            if time.monotonic() > deadline:
                raise UnreachableError(f"{name} does not answer; start it, or correct the address: verdict doctor")
            time.sleep(0.5)


def reach_store(home: str) -> MlflowStore:
    """Return the store once its server or database answers; MLflow itself would try for minutes.

    Raises:
        UsageError: if MLFLOW_TRACKING_URI is no address.
        UnreachableError: if it does not answer within seconds.
    """
    store = locate_store(home)
    check_servers(external_servers(), wait=False)
    if not store["uri"].startswith(SQLITE):
        from tasks.registry.mlflow_client import check_database  # imports MLflow, which takes seconds

        check_database(store)
    return store


@contextlib.contextmanager
def watched(servers: dict[str, str], on_lost: Callable[[str], None]) -> Iterator[None]:
    """Watch servers during the block.

    Args:
        servers: as `external_servers` returns them.
        on_lost: called in another thread, with a message, where one has been away for AWAY_LIMIT_S.
    """
    ended = threading.Event()
    threads = [threading.Thread(target=_watch, args=(*item, ended, on_lost), daemon=True) for item in servers.items()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()


def _watch(name: str, url: str, ended: threading.Event, on_lost: Callable[[str], None]) -> None:
    last, said = time.monotonic(), False
    while not ended.wait(CHECK_SECONDS):
        if _answers(url):
            if said:
                log.info("%s answers again", name)
            last, said = time.monotonic(), False
            continue
        if time.monotonic() - last > AWAY_LIMIT_S:
            on_lost(
                f"{name} did not answer for {AWAY_LIMIT_S:.0f} s; start it, then run the same command again to resume"
            )
            return
        if not said:
            log.warning("%s does not answer; waiting up to %.0f s", name, AWAY_LIMIT_S)
            said = True


def _health(url: str) -> str:
    """Return the health check's address, without a password: it needs none."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/health"


def _answers(url: str, seconds: float = CHECK_SECONDS) -> bool:
    """Return whether anything answers; that it refuses us is for others to report."""
    try:
        urllib.request.urlopen(url, timeout=seconds).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True
