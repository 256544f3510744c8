"""Backups of the stores' folder: exact contents, what a damaged one and a killed restore leave."""

import contextlib
import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from vanishing import once_listed

from tasks.core import home_backup
from tasks.core.errors import UsageError, VerdictError

FILES = {"artifacts/models/m-1/model.onnx": b"graph", "snapshots/aa/rows.parquet": b"\0rows", "name": b"id"}
LEFT_OUT = ("cache/triton/kernel", "runs/1/lock", "stack/mlflow.log", "mlflow.db.promotion", ".name.tmp")
KILLED_RESTORE = """
import os, signal, sys
from pathlib import Path
from tasks.core import home_backup
home, source, fatal = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
rename, calls = Path.rename, []
def killed(path, target):
    calls.append(path)
    if len(calls) == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
Path.rename = killed
with home_backup.unpacked(source, home) as (folder, _):
    home_backup.replace_home(folder, home)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Stores with a database in WAL mode, which another program has open and is writing to."""
    folder = tmp_path / "home"
    for name, content in {**FILES, **dict.fromkeys(LEFT_OUT, b"x")}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    with sqlite3.connect(folder / "mlflow.db", isolation_level=None) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE versions (number)")
        connection.execute("INSERT INTO versions VALUES (1)")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO versions VALUES (2)")  # never committed
        yield folder
        connection.execute("ROLLBACK")
    connection.close()


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "mlflow.db"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def versions(folder: Path) -> list[int]:
    with sqlite3.connect(folder / "mlflow.db") as connection:
        found = [number for (number,) in connection.execute("SELECT number FROM versions")]
    connection.close()
    return found


@pytest.mark.parametrize("name", ["copy", "copy.tar", "copy.tar.gz"])
def test_what_is_restored_is_what_was_there(home: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "backups" / name
    manifest = home_backup.write_backup(home, target, "acceptability")
    assert set(manifest["files"]) == {*FILES, "mlflow.db"}
    assert [path.name for path in target.parent.iterdir()] == [name]
    restored = tmp_path / "restored"
    with home_backup.unpacked(target, restored) as (folder, read):
        assert read == manifest
        assert home_backup.replace_home(folder, restored) is None
    assert contents(restored) == FILES
    assert versions(restored) == [1]


def test_a_replaced_home_is_kept_aside(home: Path, tmp_path: Path) -> None:
    home_backup.write_backup(home, tmp_path / "copy", "acceptability")
    (home / "name").write_bytes(b"later")
    with home_backup.unpacked(tmp_path / "copy", home) as (folder, _):
        aside = home_backup.replace_home(folder, home)
    assert aside is not None
    assert (home / "name").read_bytes() == b"id"
    assert (aside / "name").read_bytes() == b"later"


@pytest.mark.parametrize("damage", ["alter", "remove", "add", "manifest", "cut"])
def test_a_damaged_backup_is_refused_and_nothing_is_left_of_it(home: Path, tmp_path: Path, damage: str) -> None:
    target = tmp_path / "backups" / ("copy.tar.gz" if damage == "cut" else "copy")
    home_backup.write_backup(home, target, "acceptability")
    if damage == "cut":
        target.write_bytes(target.read_bytes()[:-200])
    elif damage == "alter":
        (target / "name").write_bytes(b"ie")
    elif damage == "remove":
        (target / "name").unlink()
    elif damage == "add":
        (target / "more").write_bytes(b"")
    else:
        manifest = target / "backup.json"
        manifest.write_text(manifest.read_text().replace("acceptability", "another"))
    with pytest.raises(VerdictError), home_backup.unpacked(target, tmp_path / "restored"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backups", "home"]


def test_an_archive_of_which_any_byte_is_another_is_refused_or_restored_as_it_was(home: Path, tmp_path: Path) -> None:
    (home / "more").write_bytes(bytes(range(256)) * 40)
    target = tmp_path / "copy.tar.gz"
    home_backup.write_backup(home, target, "acceptability")
    content = target.read_bytes()
    for place in range(12, len(content) - 8, 5):  # after gzip's header, before its checksum
        target.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with contextlib.suppress(VerdictError), home_backup.unpacked(target, tmp_path / "restored") as (copy, _):
            assert (copy / "more").read_bytes() == bytes(range(256)) * 40  # what is between files does not matter


@pytest.mark.parametrize("fatal", [1, 2])
def test_a_restore_that_is_killed_leaves_the_old_stores_and_can_be_run_again(
    home: Path, tmp_path: Path, fatal: int
) -> None:
    home_backup.write_backup(home, tmp_path / "copy", "acceptability")
    (home / "name").write_bytes(b"later")
    command = [sys.executable, "-c", KILLED_RESTORE, home, tmp_path / "copy", str(fatal)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})
    assert done.returncode == -signal.SIGKILL
    [old] = [path for path in tmp_path.glob("home*") if (path / "name").is_file()]
    assert old.name == "home" if fatal == 1 else old.name.startswith("home.before-")
    assert (old / "name").read_bytes() == b"later"
    with home_backup.unpacked(tmp_path / "copy", home) as (folder, _):
        home_backup.replace_home(folder, home)
    assert (home / "name").read_bytes() == b"id"


@pytest.mark.parametrize("call", ["copyfile", "copymode"])
def test_a_file_that_vanishes_while_it_is_copied_is_left_out(
    call: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, vanishing = getattr(shutil, call), home / "artifacts" / "models" / "m-1" / "model.onnx"

    def delete_first(source: Path, *arguments: object, **named: object) -> None:
        if source == vanishing:
            vanishing.unlink()
        copy(source, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, call, delete_first)
        manifest = home_backup.write_backup(home, tmp_path / "copy", "acceptability")
    assert set(manifest["files"]) == {"snapshots/aa/rows.parquet", "name", "mlflow.db"}
    with home_backup.unpacked(tmp_path / "copy", tmp_path / "restored") as (folder, _):
        assert set(contents(folder)) == {"snapshots/aa/rows.parquet", "name"}


def test_folders_that_vanish_while_files_are_listed_are_left_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        once_listed(patch, home, lambda: shutil.rmtree(home / "artifacts"))
        names = home_backup.list_files(home)
    assert set(names) == {"snapshots/aa/rows.parquet", "name", "mlflow.db"}


def test_a_damaged_database_is_not_backed_up(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "mlflow.db").write_bytes(home_backup.SQLITE_HEADER + b"\1" * 5_000)
    with pytest.raises(VerdictError, match=r"mlflow\.db cannot be copied .*; nothing was backed up"):
        home_backup.write_backup(home, tmp_path / "copy", "acceptability")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_locked_database_is_waited_for_and_then_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_backup, "COPY_ATTEMPT_S", 0.2)
    source = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(source, isolation_level=None, check_same_thread=False)) as other:
        other.execute("CREATE TABLE versions (number)")
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        with pytest.raises(VerdictError, match=r"mlflow\.db cannot be copied \(database is locked\); nothing was"):
            home_backup.copy_database(source, tmp_path / "copy.db")
        assert 0.2 <= time.monotonic() - began < 5
        monkeypatch.setattr(home_backup, "COPY_ATTEMPT_S", 60)
        release = threading.Timer(0.3, other.execute, ("COMMIT",))
        release.start()
        home_backup.copy_database(source, tmp_path / "copy.db")
        release.join()


def test_a_target_that_exists_or_lies_within_the_stores_is_refused(home: Path, tmp_path: Path) -> None:
    for target, message in ((home / "copy", "lies within the stores"), (tmp_path, "exists; expected a new file")):
        with pytest.raises(UsageError, match=message):
            home_backup.write_backup(home, target, "acceptability")


def test_a_full_disk_is_not_taken_for_a_damaged_archive(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home_backup.write_backup(home, tmp_path / "copy.tar.gz", "acceptability")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tarfile.TarFile, "extractall", fail)
    with (
        pytest.raises(
            VerdictError, match=r"^there is no room for what .*copy\.tar\.gz holds .*No space left on device"
        ),
        home_backup.unpacked(tmp_path / "copy.tar.gz", tmp_path / "restored"),
    ):
        pass


@pytest.mark.parametrize("name", ["copy.zip", "copy.gz", "copy.TAR.XZ", "copy.7z"])
def test_a_name_of_an_archive_of_another_kind_is_refused(name: str, home: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"is named as an archive of another kind; expected \.tar, \.tar\.gz, or a folder"
    ):
        home_backup.check_target(home, tmp_path / name)
    for right in ("copy.tar", "copy.tar.gz", "copy.tgz", "copy", "copy.2026"):
        home_backup.check_target(home, tmp_path / right)
