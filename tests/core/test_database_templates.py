"""Empty databases, made once for an installation and copied into new folders of stores."""

import sqlite3
from pathlib import Path

import pytest

from tasks.core.database_templates import copy_template, make_template, template_path


def migrate(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE things (name TEXT)")


def tables(path: Path) -> list[str]:
    with sqlite3.connect(path) as database:
        return [row[0] for row in database.execute("SELECT name FROM sqlite_master")]


def test_a_template_is_made_once_and_copied_once(tmp_path: Path) -> None:
    folder, home = tmp_path / "templates", tmp_path / "new" / "home"
    assert not copy_template("pytest", home / "a.db", folder)
    assert not home.exists()
    assert make_template("pytest", migrate, folder) == template_path("pytest", folder)

    def fail(path: Path) -> None:
        raise AssertionError(path)

    make_template("pytest", fail, folder)
    assert [path.name for path in folder.iterdir()] == [template_path("pytest", folder).name]
    assert copy_template("pytest", home / "a.db", folder)
    assert tables(home / "a.db") == ["things"]
    with sqlite3.connect(home / "a.db") as database:
        database.execute("INSERT INTO things VALUES ('kept')")
    assert not copy_template("pytest", home / "a.db", folder)
    with sqlite3.connect(home / "a.db") as database:
        assert database.execute("SELECT name FROM things").fetchall() == [("kept",)]
    assert [path.name for path in home.iterdir()] == ["a.db"]


def test_a_template_of_another_version_is_not_used_and_goes(tmp_path: Path) -> None:
    other = tmp_path / "pytest-0.1.db"
    migrate(other)
    assert not copy_template("pytest", tmp_path / "a.db", tmp_path)
    assert make_template("pytest", migrate, tmp_path).is_file()
    assert not other.exists()


def test_a_template_of_another_version_that_goes_meanwhile_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, unlink = tmp_path / "pytest-0.1.db", Path.unlink
    migrate(other)

    def unlink_second(path: Path, missing_ok: bool = False) -> None:
        if path == other:
            unlink(path)  # by another installation
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_second)
    assert make_template("pytest", migrate, tmp_path).is_file()
    assert not other.exists()


def test_a_migration_that_fails_leaves_no_template(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise ValueError("no migration")

    with pytest.raises(ValueError, match="no migration"):
        make_template("pytest", fail, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not copy_template("no-such-distribution", tmp_path / "a.db", tmp_path)
