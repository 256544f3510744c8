"""Keeps Python's garbage collector off what large libraries bring, during their import and afterwards."""

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Make no cyclic garbage collections during the block, and leave all objects of its end out of later ones.

    Imports create a million objects that stay, and each full collection would look through them again and find nothing:
    a fifth of the time of a run's imports, and a tenth of that in which a tiny model scores a file. Where the block
    imports nothing new, as when it is repeated, later collections stay as they are: what is garbage then would never
    be freed.
    """
    known = len(sys.modules)
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:
            gc.freeze()
        if enabled:
            gc.enable()
