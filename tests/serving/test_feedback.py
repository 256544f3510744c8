"""The feedback file holds complete lines that the reader of training data accepts, from any number of writers."""

import errno
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core.errors import UsageError, VerdictError
from tasks.data.cola_format import parse_tsv
from tasks.serving import feedback as module
from tasks.serving.feedback import AppendResult, Feedback, one_line

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from tasks.serving.feedback import Feedback
for number in range(50):
    Feedback(sys.argv[1]).add(f"sentence {number} of {sys.argv[2]}", number % 2)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feedback.tsv"


def read(path: Path) -> list[tuple[str, int, str, str]]:
    """Return the rows that the product reads, and see that it keeps every line."""
    (block,) = parse_tsv(io.BytesIO(path.read_bytes()))
    assert block.quarantined == []
    columns = [block.kept[name].to_pylist() for name in ("source", "label", "mark", "sentence")]
    return list(zip(*columns, strict=True))


def test_lines_have_cola_s_four_columns(path: Path) -> None:
    feedback = Feedback(str(path))
    assert not path.exists()
    assert feedback.add("The child has eaten.", 1) == AppendResult(1, True)
    assert feedback.add("The child have eat.", 0) == AppendResult(2, True)
    assert path.read_text() == "feedback\t1\t\tThe child has eaten.\nfeedback\t0\t*\tThe child have eat.\n"


def test_a_sentence_is_written_once_with_the_label_of_its_last_flag(path: Path) -> None:
    feedback = Feedback(str(path))
    feedback.add("Other.", 0)
    assert [feedback.add("Same.", label) for label in (1, 1, 0, 1)] == [
        (2, True), (2, False), (2, True), (2, True),
    ]  # fmt: skip
    assert read(path) == [("feedback", 0, "*", "Other."), ("feedback", 1, "", "Same.")]
    path.write_text("feedback\t1\t\tSame.\nfeedback\t0\t*\tSame.\nfeedback\t1\t\tBy hand.")  # both labels are held
    assert feedback.add("Same.", 1) == AppendResult(2, True)
    assert [(label, text) for _, label, _, text in read(path)] == [(1, "By hand."), (1, "Same.")]


@pytest.mark.parametrize("end", ["\r\n", ""])
def test_the_last_label_stays_in_a_file_with_other_line_ends(path: Path, end: str) -> None:
    path.write_bytes(f"feedback\t1\t\tOther.\r\nfeedback\t1\t\tOne.{end}".encode())
    feedback = Feedback(str(path))
    assert [feedback.add("One.", label) for label in (1, 0, 0)] == [(2, False), (2, True), (2, False)]
    assert path.read_bytes() == b"feedback\t1\t\tOther.\r\nfeedback\t0\t*\tOne.\n"


@pytest.mark.parametrize("text", ["a\tb\nc", " a  b\r\nc ", "a\x0bb\x1cc", "a\u2028b\u00a0c", "a\x85b\fc"])
def test_white_space_becomes_single_spaces(path: Path, text: str) -> None:
    Feedback(str(path)).add(text, 1)
    assert read(path) == [("feedback", 1, "", "a b c")]


@given(st.lists(st.tuples(st.text(st.characters(codec=None), max_size=8), st.integers(0, 1)), max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_sentence_is_rejected_or_read_back(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, int]]
) -> None:
    path = tmp_path_factory.mktemp("said") / "feedback.tsv"
    expected = []
    for sentence, label in said:
        try:
            written = Feedback(str(path)).add(sentence, label)
        except VerdictError:
            continue
        if written.new:
            expected = [row for row in expected if row[3] != one_line(sentence)]
            expected.append(("feedback", label, "" if label else "*", one_line(sentence)))
        assert written.lines == len(expected)
    assert (read(path) if path.exists() else []) == expected


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("", "not written: empty sentence"),
        (" \n", "not written: empty sentence"),
        ("a\0", "not written: NUL character"),
        ("x" * 2_001, "not written: sentence of 2001 characters, more than 2000"),
        ("\ud800", "half of a surrogate pair"),
    ],
)
def test_what_the_reader_would_reject_is_rejected(path: Path, sentence: str, message: str) -> None:
    with pytest.raises(VerdictError, match=message):
        Feedback(str(path)).add(sentence, 1)
    assert not path.exists() or path.read_bytes() == b""


def test_processes_and_threads_write_complete_lines(path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(path)]
    others = [subprocess.Popen([*command, name], cwd=ROOT) for name in ("one", "two")]
    feedback = Feedback(str(path))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: feedback.add(f"sentence {number} of here", number % 2), range(50)))
    assert [other.wait(60) for other in others] == [0, 0]
    rows = read(path)
    assert {(label, text) for _, label, _, text in rows} == {
        (number % 2, f"sentence {number} of {name}") for number in range(50) for name in ("one", "two", "here")
    }
    assert len(rows) == 150


def test_a_last_line_without_a_line_break_gets_one_first(path: Path) -> None:
    path.write_text("feedback\t1\t\tBy hand.")
    assert Feedback(str(path)).add("Next.", 1) == AppendResult(2, True)
    assert [text for *_, text in read(path)] == ["By hand.", "Next."]


def test_a_full_disk_leaves_no_half_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feedback = Feedback(str(path))
    feedback.add("First.", 1)
    before, write = path.read_bytes(), os.write

    def fill(handle: int, data: Any) -> int:
        if len(data) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data[:10])

    monkeypatch.setattr(module.os, "write", fill)
    with pytest.raises(VerdictError, match="No space left on device"):
        feedback.add("Second, and longer than ten.", 1)
    assert path.read_bytes() == before


def test_the_size_of_the_file_is_limited(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feedback = Feedback(str(path))
    feedback.add("First.", 1)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 30)
    with pytest.raises(VerdictError, match="has 19 bytes, at most 30; train with it, then move it"):
        feedback.add("Second.", 1)


def test_a_lock_that_is_not_released_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEEDBACK_LOCK_TIMEOUT_S", 0.05)
    with FileLock(f"{path}.lock"), pytest.raises(VerdictError, match=r"another process holds .*\.lock; try again"):
        Feedback(str(path)).add("Any.", 1)


@pytest.mark.parametrize("name", ["feedback.csv", "feedback", "out_of_domain_dev.tsv", "holdout.tsv", "test.tsv"])
def test_a_name_of_no_training_file_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"expected a training file's name: --feedback feedback\.tsv"):
        Feedback(str(tmp_path / name))


def test_a_path_that_is_no_file_is_a_usage_error(path: Path) -> None:
    path.mkdir()
    with pytest.raises(UsageError, match="feedback cannot go to"):
        Feedback(str(path))
    with pytest.raises(UsageError, match=r"cannot be read \(Not a directory\)"):
        Feedback("/dev/null/feedback.tsv")


def test_a_file_of_another_format_is_not_written_to(path: Path) -> None:
    path.write_text("sentence\tlabel\nThe child has eaten.\t1\n")
    with pytest.raises(UsageError, match=r"is not in CoLA's format \(line 1: 2 fields instead of 4\); name another"):
        Feedback(str(path))


def test_a_path_that_is_not_writable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    feedback = Feedback(str(tmp_path / "later" / "feedback.tsv"))
    (tmp_path / "later").symlink_to(tmp_path / "file")
    with pytest.raises(VerdictError, match=r"not written to .* \((File exists|Not a directory)\)"):
        feedback.add("Any.", 1)


def test_the_path_is_shown_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Feedback(".verdict/feedback/feedback.tsv").shown == ".verdict/feedback/feedback.tsv"
    assert Feedback("/elsewhere/feedback.tsv").shown == "/elsewhere/feedback.tsv"
