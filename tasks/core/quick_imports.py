"""Keeps Python's garbage collector off what large libraries bring, during their import and afterwards."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Make no cyclic garbage collections during the block, and leave all objects of its end out of later ones.

    Imports create a million objects that stay, and each full collection would look through them again and find nothing:
    a fifth of the time of a run's imports, and half of the time in which a Ray worker scores with a tiny model.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
