"""The garbage collector rests during imports, and then goes on without what they brought."""

import gc
import importlib
import sys

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


@pytest.mark.parametrize("imports", [True, False])
def test_what_an_import_leaves_is_in_no_later_collection(monkeypatch: pytest.MonkeyPatch, imports: bool) -> None:
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with collection_paused():
        left = [[number] for number in range(10_000)]
        if imports:
            importlib.import_module("wave")
    tracked = {id(each) for each in gc.get_objects()}
    assert {id(each) in tracked for each in left} == {not imports}


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
