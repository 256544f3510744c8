"""A package is there, or it is not; what an uninstalled one left behind is not."""

from pathlib import Path

import pytest

from tasks.core.packages import is_installed


def test_a_folder_that_an_uninstalled_package_left_is_not_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "left_behind").mkdir()
    (tmp_path / "left_behind" / "hash_seed.txt").write_text("1")
    assert not is_installed("left_behind")
    (tmp_path / "left_behind" / "__init__.py").touch()
    assert is_installed("left_behind")


def test_a_module_and_a_package_are_found_and_what_is_not_there_is_not() -> None:
    assert is_installed("csv")
    assert is_installed("numpy")
    assert not is_installed("nothing_of_this_name")
