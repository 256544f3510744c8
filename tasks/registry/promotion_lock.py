"""One promotion at a time: a lock that a killed holder cannot keep for ever.

Local SQLite store: a file lock beside the database. The system drops it when its holder dies, however that happens.

Every other store: a lease. MLflow has no compare-and-swap, so each process writes a tag of its own to the record's
experiment and then reads all of them. Of two that write at once at least one sees the other; who sees another's live
tag takes its own back and tries again after a random pause. A tag that somebody has watched for LEASE seconds belongs
to a dead process and is removed. Nobody compares clocks of two machines: holder and watcher each count on their own.

What this does not do: it does not bind who sets an alias in MLflow's own page or reaches the store by another address
(a file lock and a lease know nothing of each other). A process that is suspended, not killed, between its last check
and the write after it, for longer than MARGIN, writes late; the record shows such a move as one that nothing explains.
The file system of a local store must have locks that work, which some network file systems do not.
"""

import contextlib
import random
import time
import uuid
from collections.abc import Callable, Iterator

from filelock import FileLock, Timeout

from tasks.core.errors import UnreachableError, VerdictError
from tasks.registry.mlflow_client import AUDIT_EXPERIMENT, MlflowStore, connect, database_of, experiment_of

LOCK_TIMEOUT_S = 180.0  # seconds that somebody waits for a turn; longer than a dead process's lease
LEASE_S = 60.0  # seconds after which a lease that was watched belongs to a dead process
CLOCK_MARGIN_S = 20.0  # seconds before the end of its lease from which a holder writes no more
POLL_RANGE_S = (0.05, 0.5)  # seconds between two tries, at random
LEASE_TAG_PREFIX = "turn."


class LockTimeout(VerdictError):
    """Others are promoting, for longer than one waits."""


@contextlib.contextmanager
def promotion_lock(store: MlflowStore, wait_s: float = LOCK_TIMEOUT_S) -> Iterator[Callable[[], None]]:
    """Wait until nobody else promotes, and let nobody else promote during the block.

    Yields:
        a check to call right before each write that others must not interleave with: it raises Busy where the turn
        took so long that somebody else may have begun.

    Raises:
        Busy: if others keep it for so many seconds.
        Unreachable: if the store cannot be asked.
    """
    database = database_of(store)
    if database is None:
        with _lease(store, wait_s) as check:
            yield check
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(database.with_name(f"{database.name}.promotion"), timeout=wait_s)
    try:
        lock.acquire()
    except Timeout as error:
        raise _timeout_error(wait_s) from error
    except OSError as error:
        raise VerdictError(f"no lock can be taken beside {database} ({error.strerror}); is it writable?") from error
    try:
        yield lambda: None
    finally:
        lock.release()


@contextlib.contextmanager
def _lease(store: MlflowStore, wait_s: float) -> Iterator[Callable[[], None]]:
    key = f"{LEASE_TAG_PREFIX}{uuid.uuid4().hex}"
    began = _acquire(store, key, wait_s)

    def check() -> None:
        if time.monotonic() - began > LEASE_S - CLOCK_MARGIN_S:
            raise LockTimeout(
                f"the store took over {LEASE_S - CLOCK_MARGIN_S:.0f} s; nothing was moved, run the same command again"
            )

    try:
        yield check
    finally:
        with contextlib.suppress(UnreachableError):  # then it ends by itself
            _remove(store, key)


def _acquire(store: MlflowStore, key: str, wait_s: float) -> float:
    """Write a tag when no other lives; return when that began, on this process's clock."""
    deadline = time.monotonic() + wait_s
    seen: dict[str, float] = {}  # when each tag was first seen
    while time.monotonic() < deadline:
        if not _others(store, key, seen):
            began = time.monotonic()
            with connect(store) as client:
                client.set_experiment_tag(experiment_of(client, store, AUDIT_EXPERIMENT), key, "held")
            if not _others(store, key, seen):
                return began
            _remove(store, key)
        time.sleep(random.uniform(*POLL_RANGE_S))
    raise _timeout_error(wait_s)


def _others(store: MlflowStore, own: str, seen: dict[str, float]) -> list[str]:
    """Return the tags of other live processes; those that were watched for LEASE seconds are removed."""
    with connect(store) as client:
        tags = client.get_experiment(experiment_of(client, store, AUDIT_EXPERIMENT)).tags
    now = time.monotonic()
    live = []
    for key in tags:
        if key.startswith(LEASE_TAG_PREFIX) and key != own:
            if now - seen.setdefault(key, now) > LEASE_S:
                _remove(store, key)
            else:
                live.append(key)
    return live


def _remove(store: MlflowStore, key: str) -> None:
    with connect(store) as client:
        experiment = experiment_of(client, store, AUDIT_EXPERIMENT)
        if key in client.get_experiment(experiment).tags:
            client.delete_experiment_tag(experiment, key)


def _timeout_error(wait_s: float) -> LockTimeout:
    return LockTimeout(f"another promotion has been under way for {wait_s:.0f} s; see: verdict history, then run again")
