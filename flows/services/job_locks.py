"""Whether a process works on a job or sweep: the operating system releases the lock of one that died."""

from pathlib import Path

from filelock import FileLock, Timeout


def is_locked(folder: Path) -> bool:
    """Return whether a process works in the folder of a job or sweep."""
    if not (folder / "lock").is_file():
        return False
    try:
        with FileLock(folder / "lock", timeout=0):
            return False
    except Timeout:
        return True
