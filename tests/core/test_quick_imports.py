"""The garbage collector rests during imports, and then goes on without what they brought."""

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


def test_what_the_block_leaves_is_in_no_later_collection() -> None:
    with collection_paused():
        imported = [[number] for number in range(10_000)]
    assert gc.get_freeze_count() >= len(imported)
    assert not {id(each) for each in imported} & {id(each) for each in gc.get_objects()}


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
