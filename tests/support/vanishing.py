"""Folders whose content another process deletes between a reader's listing of them and its look at what it listed."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest


class Listing:
    """What os.scandir returns, read beforehand."""

    def __init__(self, entries: list[os.DirEntry[str]]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        return self

    def __next__(self) -> os.DirEntry[str]:
        return next(self._entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        """Do nothing; the folder has been read."""


def once_listed(patch: pytest.MonkeyPatch, folder: Path, delete: Callable[[], object]) -> None:
    """Call a function, which takes no path, when a folder is listed first; every listing is as it was before that."""
    scan, found = os.scandir, []

    def list_as_before(path: Any) -> Any:
        if isinstance(path, int) or Path(path) != folder:
            return scan(path)
        if not found:
            with scan(path) as entries:
                found.extend(entries)
            delete()
        return Listing(found)

    patch.setattr(os, "scandir", list_as_before)
