"""The folder of what a process downloads from a registry: deleted when the process ends, as MLflow deletes none.

A process that is killed leaves its folder. It had a lock on it, so that a later process knows, and deletes it.
"""

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "verdict-downloads-"
NEW_S = 60.0  # a folder as young as this may not be locked yet


def new_download() -> str:
    """Return a new folder for a download, which is there until this process ends."""
    return tempfile.mkdtemp(dir=_downloads())


def is_download(path: Path) -> bool:
    """Return whether a path is deleted when this process ends."""
    return bool(_downloads.cache_info().currsize) and path.is_relative_to(_downloads())


@functools.cache
def _downloads() -> str:
    if os.name == "posix":  # elsewhere there are no such locks, and what a killed process left stays
        _delete_left()
    folder, process = tempfile.mkdtemp(prefix=PREFIX), os.getpid()
    if os.name == "posix":
        _lock(Path(folder))

    def delete() -> None:
        if os.getpid() == process:  # not at the end of a forked process
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(delete)
    return folder


def _delete_left() -> None:
    """Delete the folders of processes that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it is locked, another user's, or gone
            if time.time() - left.stat().st_mtime > NEW_S:
                os.close(_lock(left))
                shutil.rmtree(left)


def _lock(folder: Path) -> int:
    """Lock a folder until the descriptor that is returned is closed, at the latest with this process.

    Raises:
        OSError: if another process has the lock, or the folder is another user's.
    """
    import fcntl  # of POSIX alone

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
