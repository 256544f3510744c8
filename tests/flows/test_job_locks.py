"""The locks of folders: who only looks stops nobody, and nobody takes one who looks for a process that works there."""

import shutil
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from flows.jobs import job
from tasks.core import folder_locks
from tasks.core.errors import VerdictError
from tasks.core.folder_locks import exclusive, is_locked, shared


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which a job worked that ended."""
    with job.locked(tmp_path / "job"):
        pass
    return tmp_path / "job"


def test_a_folder_is_locked_while_a_process_works_there(folder: Path, tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "none")
    assert not is_locked(folder)
    with job.locked(folder):
        assert is_locked(folder)
    assert not is_locked(folder)


def test_two_commands_that_look_do_not_take_each_other_for_a_job(folder: Path) -> None:
    with shared(folder) as first, shared(folder) as second:
        assert (first, second, is_locked(folder)) == (True, True, False)


def test_a_job_that_starts_while_a_command_looks_waits_for_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "START_WAIT_S", 60.0)
    looks, started = threading.Event(), threading.Event()

    class SeenLock(FileLock):
        def acquire(self, *arguments: object, **options: object) -> object:  # type: ignore[override]
            started.set()
            return super().acquire(*arguments, **options)  # type: ignore[arg-type]

    def look() -> None:
        with shared(folder):
            looks.set()
            started.wait(60)  # the job tries while this looks

    monkeypatch.setattr(folder_locks, "FileLock", SeenLock)
    looking = threading.Thread(target=look)
    looking.start()
    assert looks.wait(60)
    with job.locked(folder):
        looking.join()
        assert is_locked(folder)


def test_the_same_job_is_refused_while_another_process_works_on_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "START_WAIT_S", 0.0)
    running = FileLock(folder / "lock")
    with running, pytest.raises(VerdictError, match="the same job is running already"), job.locked(folder):
        raise AssertionError("two at once")


def test_a_folder_that_is_pruned_while_a_job_waits_for_it_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PrunedFirst(FileLock):
        def acquire(self, *arguments: object, **options: object) -> object:  # type: ignore[override]
            if (folder / "result.json").exists():
                shutil.rmtree(folder)
            return super().acquire(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(folder_locks, "FileLock", PrunedFirst)
    (folder / "result.json").touch()
    with exclusive(folder, 10.0):
        assert is_locked(folder)
