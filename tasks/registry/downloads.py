"""The folder of what a process downloads from a registry: deleted when the process ends, as MLflow deletes none."""

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path


def new_download() -> str:
    """Return a new folder for a download, which is there until this process ends."""
    return tempfile.mkdtemp(dir=_downloads())


def is_download(path: Path) -> bool:
    """Return whether a path is deleted when this process ends."""
    return path.is_relative_to(_downloads())


@functools.cache
def _downloads() -> str:
    folder, process = tempfile.mkdtemp(prefix="verdict-downloads-"), os.getpid()

    def delete() -> None:
        if os.getpid() == process:  # not at the end of a forked process
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(delete)
    return folder
