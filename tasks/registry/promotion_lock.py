"""One promotion at a time: a lock that ends with the process that holds it.

Local SQLite store: a file lock beside the database, which the operating system releases when its holder dies.

Every other store: a lease. MLflow has no compare-and-swap, so each process writes a tag of its own to the audit log's
experiment and then reads all tags. Of two that write at the same time at least one sees the other's tag; whoever sees
another live tag removes its own and retries after a random pause. A tag that was watched for LEASE_S seconds belongs to
a dead process and is removed. No clocks of two machines are compared: holder and watcher each measure on their own.

Limits. The lock does not bind whoever sets an alias in MLflow's page, or reaches the store by another address: a file
lock and a lease do not know of each other. A process that is suspended between its last check and the write after it,
for longer than CLOCK_MARGIN_S, writes late; the history shows such a change as unexplained. The file system of a local
store must support file locks, which some network file systems do not.
"""

import contextlib
import random
import time
import uuid
from collections.abc import Callable, Iterator

from filelock import FileLock, Timeout

from tasks.core.errors import UnreachableError, VerdictError
from tasks.registry.local_database import AUDIT_EXPERIMENT, await_lock
from tasks.registry.mlflow_client import connect, experiment_of, unless_missing
from tasks.registry.store import MlflowStore, database_of

LOCK_TIMEOUT_S = 180.0  # longer than the lease of a dead process
LEASE_S = 60.0  # a tag that was watched for so long belongs to a dead process
CLOCK_MARGIN_S = 20.0  # a holder stops writing so long before its lease ends
POLL_RANGE_S = (0.05, 0.5)  # pause between two tries, at random
LEASE_TAG_PREFIX = "lease."


class LockTimeout(VerdictError):
    """The lock could not be taken in time, or was held for so long that it may have been taken over."""


@contextlib.contextmanager
def promotion_lock(store: MlflowStore, wait_s: float = LOCK_TIMEOUT_S) -> Iterator[Callable[[], None]]:
    """Hold the promotion lock of a store during the block.

    Yields:
        a check to call right before each write: it raises LockTimeout where the block took so long that another process
        may have taken the lock over.

    Raises:
        LockTimeout: if others hold it for `wait_s` seconds.
        UnreachableError: if the store does not answer.
    """
    database = database_of(store)
    if database is None:
        with _lease(store, wait_s) as check_lease:
            yield check_lease
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(database.with_name(f"{database.name}.promotion"), timeout=wait_s)
    try:
        lock.acquire()
    except Timeout as error:
        raise _timeout_error(wait_s) from error
    except OSError as error:
        raise VerdictError(f"{database} cannot be locked ({error.strerror}); is its folder writable?") from error
    try:
        await_lock(database, write=True)
        yield lambda: None
    finally:
        lock.release()


@contextlib.contextmanager
def _lease(store: MlflowStore, wait_s: float) -> Iterator[Callable[[], None]]:
    key = f"{LEASE_TAG_PREFIX}{uuid.uuid4().hex}"
    acquired = _acquire(store, key, wait_s)

    def check_lease() -> None:
        if time.monotonic() - acquired > LEASE_S - CLOCK_MARGIN_S:
            raise LockTimeout(
                f"the store took over {LEASE_S - CLOCK_MARGIN_S:.0f} s; nothing was moved, run the same command again"
            )

    try:
        yield check_lease
    finally:
        with contextlib.suppress(UnreachableError):  # then the lease expires
            _remove(store, key)


def _acquire(store: MlflowStore, key: str, wait_s: float) -> float:
    """Write this process's tag once no other is live; return the monotonic time right before that."""
    deadline = time.monotonic() + wait_s
    first_seen: dict[str, float] = {}  # monotonic time by tag
    while time.monotonic() < deadline:
        if not _live_tags(store, key, first_seen):
            acquired = time.monotonic()
            with connect(store) as client:
                client.set_experiment_tag(experiment_of(client, store, AUDIT_EXPERIMENT), key, "held")
            if not _live_tags(store, key, first_seen):
                return acquired
            _remove(store, key)
        time.sleep(random.uniform(*POLL_RANGE_S))
    raise _timeout_error(wait_s)


def _live_tags(store: MlflowStore, own: str, first_seen: dict[str, float]) -> list[str]:
    """Return the tags of other live processes; remove those that were watched for LEASE_S seconds."""
    with connect(store) as client:
        tags = client.get_experiment(experiment_of(client, store, AUDIT_EXPERIMENT)).tags
    now = time.monotonic()
    live = []
    for key in tags:
        if key.startswith(LEASE_TAG_PREFIX) and key != own:
            if now - first_seen.setdefault(key, now) > LEASE_S:
                _remove(store, key)
            else:
                live.append(key)
    return live


def _remove(store: MlflowStore, key: str) -> None:
    """Remove a tag; one that another process that waits removed meanwhile is removed."""
    with connect(store) as client:
        experiment = experiment_of(client, store, AUDIT_EXPERIMENT)
        if key in client.get_experiment(experiment).tags:
            with unless_missing():
                client.delete_experiment_tag(experiment, key)


def _timeout_error(wait_s: float) -> LockTimeout:
    return LockTimeout(f"another promotion has been under way for {wait_s:.0f} s; see: verdict history, then run again")
