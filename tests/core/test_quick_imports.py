"""The garbage collector rests during imports, and goes on as it was."""

import gc

import pytest

from tasks.core.quick_imports import collection_paused


def test_collections_are_paused_for_the_block_only() -> None:
    assert gc.isenabled()
    with collection_paused():
        assert not gc.isenabled()
        with collection_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_ends_the_pause_and_a_collector_that_was_off_stays_off() -> None:
    with pytest.raises(ImportError), collection_paused():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with collection_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
