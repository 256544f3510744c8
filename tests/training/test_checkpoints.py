"""Checkpoints are written atomically, and a damaged or foreign one is never used."""

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from tasks.training import checkpoints
from tasks.training.checkpoints import (
    MAX_KEPT,
    STATE_FILE,
    TENSORS_FILE,
    Checkpoint,
    delete_checkpoints,
    load_checkpoint,
    save_checkpoint,
)

ROOT = Path(__file__).parents[2]
RUN = "r" * 64
RECORDED = {"losses": [0.1, None, 1e-300, 2 / 3], "order": {"state": 2**127 + 1}, "word": "größer"}


def checkpoint(epoch: int) -> Checkpoint:
    tensors = {
        "master": torch.full((100,), float(epoch)),
        "half": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
        "step": torch.tensor(float(epoch), dtype=torch.float64),
        "random": torch.arange(256).byte(),
    }
    return Checkpoint(epoch, tensors, RECORDED | {"epoch": epoch})


def same(found: Checkpoint | None, expected: Checkpoint) -> bool:
    return (
        found is not None
        and (found.epoch, found.record) == (expected.epoch, expected.record)
        and found.tensors.keys() == expected.tensors.keys()
        and all(
            torch.equal(tensor, expected.tensors[name]) and tensor.dtype == expected.tensors[name].dtype
            for name, tensor in found.tensors.items()
        )
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with checkpoints of epochs 1 and 2."""
    for epoch in (1, 2):
        save_checkpoint(str(tmp_path / "held"), RUN, checkpoint(epoch))
    return tmp_path / "held"


def test_what_was_saved_is_loaded(folder: Path) -> None:
    assert same(load_checkpoint(str(folder), RUN), checkpoint(2))


def test_nothing_is_loaded_where_nothing_was_saved(tmp_path: Path) -> None:
    assert load_checkpoint(str(tmp_path), RUN) is None
    assert load_checkpoint(str(tmp_path / "none"), RUN) is None


def test_the_last_two_are_kept(folder: Path) -> None:
    assert MAX_KEPT == 2
    assert names(folder) == ["epoch-0001", "epoch-0002"]
    save_checkpoint(str(folder), RUN, checkpoint(3))
    save_checkpoint(str(folder), RUN, checkpoint(11))
    assert names(folder) == ["epoch-0003", "epoch-0011"]
    assert names(folder / "epoch-0011") == [STATE_FILE, TENSORS_FILE]


def test_a_checkpoint_takes_the_place_of_one_of_the_same_epoch(folder: Path) -> None:
    save_checkpoint(str(folder), "another", checkpoint(2))
    assert same(load_checkpoint(str(folder), "another"), checkpoint(2))
    assert names(folder) == ["epoch-0001", "epoch-0002"]


def test_checkpoints_of_later_epochs_do_not_push_out_a_new_one(folder: Path) -> None:
    """They are of a course that was left: of another recipe, or after damage."""
    save_checkpoint(str(folder), RUN, checkpoint(9))
    save_checkpoint(str(folder), "another", checkpoint(1))
    assert same(load_checkpoint(str(folder), "another"), checkpoint(1))
    assert names(folder) == ["epoch-0001"]


def test_all_are_deleted(folder: Path) -> None:
    delete_checkpoints(str(folder))
    assert not folder.exists()
    delete_checkpoints(str(folder))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a bit of the tensors is another": lambda path: _flip(path / TENSORS_FILE),
    "the tensors are cut off": lambda path: (path / TENSORS_FILE).write_bytes((path / TENSORS_FILE).read_bytes()[:-1]),
    "the tensors are empty": lambda path: (path / TENSORS_FILE).write_bytes(b""),
    "the tensors are gone": lambda path: (path / TENSORS_FILE).unlink(),
    "the tensors are of another checkpoint": lambda path: (path / TENSORS_FILE).write_bytes(
        (path.parent / "epoch-0001" / TENSORS_FILE).read_bytes()
    ),
    "the record is no JSON": lambda path: (path / STATE_FILE).write_text("{"),
    "the record is empty": lambda path: (path / STATE_FILE).write_text(""),
    "the record is no object": lambda path: (path / STATE_FILE).write_text("[1]"),
    "the record lacks everything": lambda path: (path / STATE_FILE).write_text("{}"),
    "the record has another figure": lambda path: (path / STATE_FILE).write_text(
        (path / STATE_FILE).read_text().replace("0.1", "0.2")
    ),
    "the record is no text": lambda path: (path / STATE_FILE).write_bytes(b"\xff\xfe"),
    "the record is gone": lambda path: (path / STATE_FILE).unlink(),
    "the record is a folder": lambda path: ((path / STATE_FILE).unlink(), (path / STATE_FILE).mkdir()),
    "it is another run's": lambda path: save_checkpoint(str(path.parent), "another", checkpoint(2)),
    "its name has no epoch": lambda path: path.rename(path.with_name("epoch-2nd")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_one_is_passed_over_with_a_line_and_the_one_before_is_taken(
    damage: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[damage](folder / "epoch-0002")
    assert same(load_checkpoint(str(folder), RUN), checkpoint(1))
    (line,) = caplog.messages
    assert line.startswith(f"checkpoint {folder}/epoch-")
    assert "is ignored: " in line
    assert "\n" not in line


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_none_is_whole_there_is_none(damage: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("epoch-0002", "epoch-0001"):
        DAMAGES[damage if name == "epoch-0002" else "the record is gone"](folder / name)
    assert load_checkpoint(str(folder), RUN) is None
    assert len(caplog.messages) == 2


def test_a_line_says_that_it_is_another_runs(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_checkpoint(str(folder), "another") is None
    assert caplog.messages == [
        f"checkpoint {folder / name} is ignored: it belongs to another run" for name in ("epoch-0002", "epoch-0001")
    ]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(name=st.sampled_from([STATE_FILE, TENSORS_FILE]), data=st.data())
def test_no_changed_byte_is_ever_believed(name: str, data: st.DataObject, folder: Path) -> None:
    save_checkpoint(str(folder), RUN, checkpoint(2))
    path = folder / "epoch-0002" / name
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    found = load_checkpoint(str(folder), RUN)
    # Another kind of white space between two figures changes nothing.
    assert same(found, checkpoint(2)) or same(found, checkpoint(1))


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")],
    ids=["system", "library"],
)
def test_a_full_disk_is_one_warning_and_the_last_one_stays(
    error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoints, "save_file", refuse)
    save_checkpoint(str(folder), RUN, checkpoint(3))
    (line,) = caplog.messages
    assert line.startswith(f"checkpoint {folder / 'epoch-0003'} cannot be written (")
    assert line.endswith("No space left on device); training continues without it")
    assert names(folder) == ["epoch-0001", "epoch-0002"]
    assert same(load_checkpoint(str(folder), RUN), checkpoint(2))


def test_a_file_that_the_system_refuses_to_write_is_one_warning(tmp_path: Path) -> None:
    """What the library raises where a write fails is no OSError. The limit holds for all files of its process."""
    script = f"""
import logging, resource, torch
from tasks.training.checkpoints import Checkpoint, save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
logging.basicConfig(format="%(message)s")
for epoch, count in ((1, 10), (2, 1_000_000)):
    save_checkpoint({str(tmp_path)!r}, {RUN!r}, Checkpoint(epoch, {{"master": torch.zeros(count)}}, {{}}))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.count("cannot be written") == 1
    assert names(tmp_path) == ["epoch-0001"]
    found = load_checkpoint(str(tmp_path), RUN)
    assert found is not None
    assert found.epoch == 1


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    save_checkpoint(str(tmp_path / "file"), RUN, checkpoint(1))
    assert len(caplog.messages) == 1


def test_a_write_that_is_broken_off_leaves_the_last_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path, value: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "write_checksummed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(str(folder), RUN, checkpoint(2))
    assert names(folder) == ["epoch-0001", "epoch-0002"]
    assert same(load_checkpoint(str(folder), RUN), checkpoint(2))
