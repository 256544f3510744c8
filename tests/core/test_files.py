"""Files and folders are whole or absent, and a digest depends on content alone."""

import errno
import hashlib
import os
import shutil
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from vanishing import once_listed

from tasks.core.errors import VerdictError
from tasks.core.files import (
    atomic_directory,
    atomic_write,
    json_digest,
    read_json,
    remove_stale,
    sha256_of,
    walk_files,
    write_json,
    write_text,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def break_off(writing: AbstractContextManager[Path], name: str = "") -> None:
    """Write half of what was to be written, then fail."""
    with writing as temporary:
        (temporary / name).write_text("half")
        raise RuntimeError("stop")


def test_text_is_written_as_utf8_with_lf_into_folders_made_on_the_way(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "note.txt", "naïve\nend\n")
    assert (tmp_path / "a" / "b" / "note.txt").read_bytes() == "naïve\nend\n".encode()
    assert names(tmp_path / "a" / "b") == {"note.txt"}


def test_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert names(tmp_path) == {"note.txt"}


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
    assert path.read_text() == "half"


def test_exception_while_replacing_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="stop"):
        break_off(atomic_write(path))
    assert path.read_text() == "old"
    assert names(tmp_path) == {"note.txt"}


def test_exception_while_replacing_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        break_off(atomic_write(tmp_path / "note.txt"))
    assert names(tmp_path) == set()


@pytest.mark.parametrize("sync", [True, False])
def test_data_is_on_the_disk_before_the_name_unless_it_need_not_be(
    sync: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append((tmp_path / "file").exists()))
    with atomic_write(tmp_path / "file", sync) as temporary:
        temporary.write_text("new")
    assert synced == ([False] if sync else [])
    assert (tmp_path / "file").read_text() == "new"


def test_other_users_may_read_what_was_written(tmp_path: Path) -> None:
    write_text(tmp_path / "note.txt", "x")
    assert (tmp_path / "note.txt").stat().st_mode & 0o777 == 0o644


def test_new_folder_replaces_every_file_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "stale.txt").write_text("old")
    with atomic_directory(path) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "fresh.txt").write_text("new")
        assert names(path) == {"stale.txt"}
    assert names(path) == {"deep"}
    assert (path / "deep" / "fresh.txt").read_text() == "new"
    assert names(tmp_path) == {"model"}


def test_exception_inside_new_folder_leaves_the_old_one_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with pytest.raises(RuntimeError, match="stop"):
        break_off(atomic_directory(path), "half.txt")
    assert (path / "old.txt").read_text() == "old"
    assert names(path) == {"old.txt"}
    assert names(tmp_path) == {"model"}


def test_new_folder_makes_its_parents(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "runs" / "model") as temporary:
        (temporary / "a").touch()
    assert names(tmp_path / "runs" / "model") == {"a"}


def test_folders_of_unfinished_work_are_swept_when_they_are_old(tmp_path: Path) -> None:
    ages = {".incoming-old": 101, ".incoming-fresh": 50, ".other-old": 101, "incoming-old": 101}
    for name, age in ages.items():
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "half.txt").write_text("half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    remove_stale(tmp_path, ".incoming-", seconds=100)
    assert names(tmp_path) == set(ages) - {".incoming-old"}


def test_sweeping_takes_folders_alone_and_follows_no_link(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "snapshots", tmp_path / "elsewhere"
    for path in (folder, elsewhere):
        path.mkdir()
    (elsewhere / "precious.txt").write_text("x")
    os.utime(elsewhere, (0, 0))
    (folder / ".incoming-link").symlink_to(elsewhere)
    (folder / ".incoming-gone").symlink_to(tmp_path / "nowhere")
    (folder / ".incoming-file").write_text("x")
    os.utime(folder / ".incoming-file", (0, 0))
    remove_stale(folder, ".incoming-")
    assert names(folder) == {".incoming-link", ".incoming-gone", ".incoming-file"}
    assert names(elsewhere) == {"precious.txt"}


def test_sweeping_where_nothing_is_yet_is_no_error(tmp_path: Path) -> None:
    remove_stale(tmp_path / "nowhere", ".incoming-")
    assert names(tmp_path) == set()


def test_digest_ignores_key_order_and_nothing_else() -> None:
    assert json_digest({"a": 1, "b": {"c": 2, "d": 3}}) == json_digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert len({json_digest(value) for value in ([1, 2], [2, 1], [1, 2.5], {"a": 1}, {"a": "1"}, "é", "e")}) == 7


def test_digest_is_the_sha256_of_the_sorted_json_text() -> None:
    assert json_digest({"b": "é", "a": 1}) == hashlib.sha256('{"a": 1, "b": "é"}'.encode()).hexdigest()


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_json_comes_back_as_it_went(tmp_path: Path) -> None:
    value = {"name": "naïve", "rows": [1, 2.5, None, True], "deep": {"a": []}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert (tmp_path / "x.json").read_text(encoding="utf-8").startswith('{\n  "name": "naïve",\n')


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_lacks_are_refused_and_the_old_file_stays(tmp_path: Path, value: float) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"mcc": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"mcc": value})
    assert read_json(path) == {"mcc": 0.5}
    assert names(tmp_path) == {"x.json"}


@pytest.mark.parametrize("garbage", [b"", b"{", b'{"a": 1,\n\n oops', b"\xff\xfe", b'{"a": 1} trailing'])
def test_garbage_is_one_line_that_names_the_file_and_the_way_out(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(garbage)
    with pytest.raises(VerdictError) as caught:
        read_json(path)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read as JSON (")
    assert message.endswith("); delete it and run again")
    assert "\n" not in message


def test_missing_json_is_one_line_too(tmp_path: Path) -> None:
    with pytest.raises(VerdictError, match="No such file") as caught:
        read_json(tmp_path / "none.json")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_files_are_found_while_others_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/kept", "a/gone", "gone/inside", "y", "z"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")

    def delete() -> None:
        shutil.rmtree(tmp_path / "gone")
        (tmp_path / "y").unlink()

    with monkeypatch.context() as patch:
        once_listed(patch, tmp_path, delete)
        once_listed(patch, tmp_path / "a", (tmp_path / "a" / "gone").unlink)
        found = {path.relative_to(tmp_path).as_posix(): status.st_size for path, status in walk_files(tmp_path)}
    assert found == {"a/kept": 6, "z": 1}
    assert [path for path, _ in walk_files(tmp_path / "z")] == [tmp_path / "z"]
    assert list(walk_files(tmp_path / "gone")) == []


@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_an_error_of_the_file_system_ends_the_search(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="Input/output error"):
            list(walk_files(tmp_path))
