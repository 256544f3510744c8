"""Scoring a file: every row answered or quarantined, in order; a killed run resumes where it stopped."""

import bz2
import contextlib
import csv
import errno
import gzip
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy import SIGN, WORDS, facts

from flows.commands.predict import find_model
from tasks.core.errors import DataRejected, UsageError, VerdictError
from tasks.data import record_readers
from tasks.data.cola_format import BYTE_ORDER_MARK, QuarantinedRow, Row, RowRules
from tasks.data.sentences import SentenceSource, open_source, read_sentences
from tasks.data.table_format import TableFormat
from tasks.inference.bundle import CHAMPION, CHAMPION_URI, write_manifest
from tasks.inference.classifier import Classifier
from tasks.registry import register
from tasks.registry import tracking as runs
from tasks.registry.store import MlflowStore, locate_store
from tasks.serving import chunk_scoring, score_parts
from tasks.serving.batch_scoring import check_paths, score_file, score_to_file, score_to_stream
from tasks.serving.request_validation import RequestLimits
from tasks.serving.score_parts import Scorer, divide

ROOT = Path(__file__).parents[2]
GOOD, BAD = "the cat sees the dog", f"the cat {SIGN} sees the dog"
MIXED = [GOOD, BAD, 'the "old" bird, today', BAD + " here", "the child sees"]

pieces = st.sampled_from(
    [
        b"\t",
        b"\n",
        b"\r\n",
        b"\r",
        b'"',
        b" ",
        b",",
        b"{}",
        b'{"text": "a"}',
        b"\0",
        b"\xff",
        BYTE_ORDER_MARK,
        b"text\n",
    ]
)
files = st.lists(st.one_of(pieces, st.just(b"s\t1\t\tthe cat\n"), st.binary(max_size=4)), max_size=30).map(b"".join)


@pytest.fixture(scope="module")
def scorer(exported: Any) -> Scorer:
    return Scorer(Classifier.from_bundle(exported["bundle"], "cpu"), "7")


def write(folder: Path, data: str | bytes, name: str = "in.txt") -> str:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def text_of(count: int, seed: int = 0) -> str:
    """Return toy sentences, one a line; every seventh line is empty."""
    rng = random.Random(seed)
    lines = [" ".join(rng.choices([*WORDS, SIGN], k=rng.randint(1, 9))) for _ in range(count)]
    return "".join(f"{'' if number % 7 == 6 else line}\n" for number, line in enumerate(lines))


def score(path: str, out: Path, scorer: Scorer, size: int = 10) -> Any:
    return score_to_file(open_source(path), out, scorer, size)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def as_table(fields: list[list[str]], delimiter: str) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(fields)
    return text.getvalue()


WRITERS: dict[str, Callable[[Path], str]] = {
    "cola.tsv": lambda path: write(path, "".join(f"s\t{n % 2}\t\t{text}\n" for n, text in enumerate(MIXED)), "in.tsv"),
    "unlabelled.tsv": lambda path: write(path, "".join(f"s\t\t\t{text}\n" for text in MIXED), "in.tsv"),
    "headed.tsv": lambda path: write(path, "id\tsentence\n" + "".join(f"1\t{text}\n" for text in MIXED), "in.tsv"),
    "one-column.tsv": lambda path: write(path, "\n".join(["text", *MIXED]), "in.tsv"),
    "csv": lambda path: write(path, as_table([["text", "n"], *([text, "1"] for text in MIXED)], ","), "in.csv"),
    "jsonl": lambda path: write(path, "".join(json.dumps({"text": text}) + "\n" for text in MIXED), "in.jsonl"),
    "txt": lambda path: write(path, BYTE_ORDER_MARK + "\r\n".join(MIXED).encode()),
}


def parquet(path: Path) -> str:
    pq.write_table(pa.table({"n": [1] * len(MIXED), "sentence": MIXED}), path / "in.parquet")
    return str(path / "in.parquet")


@pytest.mark.parametrize("make", [*WRITERS.values(), parquet], ids=[*WRITERS, "parquet"])
def test_every_format_gives_the_same_answers_in_the_same_order(
    tmp_path: Path, scorer: Scorer, make: Callable[[Path], str]
) -> None:
    outcome = score(make(tmp_path), tmp_path / "out.parquet", scorer, size=2)
    assert (outcome["rows_in"], outcome["scored"], outcome["quarantined"]) == (5, 5, 0)
    scores = pd.read_parquet(tmp_path / "out.parquet")
    answers = scorer.classifier.predict(MIXED)
    assert scores["sentence"].tolist() == MIXED
    assert scores["label"].tolist() == [answer["label"] for answer in answers]
    assert scores["probability"].tolist() == pytest.approx([answer["probability"] for answer in answers], abs=1e-6)
    assert scores["line"].is_monotonic_increasing
    assert scores["line"].iloc[-1] - scores["line"].iloc[0] == 4
    assert set(scores["version"]) == {"7"}
    assert set(scores["digest"]) == {scorer.digest}
    assert left_in(tmp_path) == sorted([next(path.name for path in tmp_path.glob("in.*")), "out.parquet"])


def test_a_column_is_selected_by_name(tmp_path: Path, scorer: Scorer) -> None:
    path = write(tmp_path, "text,said\nnot this,the cat sees\n", "in.csv")
    assert [
        row.sentence for row in read_sentences(open_source(path, "text=said,label=text")) if isinstance(row, Row)
    ] == ["the cat sees"]


def test_what_cannot_be_scored_is_quarantined_with_its_bytes(tmp_path: Path, scorer: Scorer) -> None:
    lines = [b"s\t1\t\tthe cat", b"three\tfields\tonly", b"s\t1\t\t\xff", b"s\t1\t\t ", b"s\t1\t\t" + b"a " * 5_001]
    outcome = score(write(tmp_path, b"\n".join([*lines, lines[0]]), "in.tsv"), tmp_path / "out.parquet", scorer)
    assert (outcome["rows_in"], outcome["scored"], outcome["quarantined"]) == (6, 2, 4)
    assert outcome["reasons"] == {"field count": 1, "encoding": 1, "empty sentence": 1, "too long": 1}
    assert outcome["examples"][0] == "in.tsv line 2: 3 fields instead of 4"
    assert pd.read_parquet(tmp_path / "out.parquet")["line"].tolist() == [1, 6]
    assert outcome["quarantine"] == str(tmp_path / "out.parquet.quarantine.parquet")
    aside = pd.read_parquet(outcome["quarantine"])
    assert aside["line"].tolist() == [2, 3, 4, 5]
    assert aside["raw"].tolist() == lines[1:5]
    assert set(aside["file"]) == {"in.tsv"}
    # A clean run leaves nothing of it.
    score(write(tmp_path, GOOD, "in.txt"), tmp_path / "out.parquet", scorer)
    assert left_in(tmp_path) == ["in.tsv", "in.txt", "out.parquet"]


@pytest.mark.parametrize("ending", ["txt", "tsv", "csv", "jsonl"])
@given(data=files)
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
def test_rows_in_are_scored_or_quarantined_whatever_the_bytes(ending: str, data: bytes, scorer: Scorer) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        headed = b"text\n" + data if ending == "csv" else data
        path, out = write(Path(scratch), headed, f"in.{ending}"), Path(scratch) / "out.parquet"
        try:
            records = list(read_sentences(open_source(path)))
            outcome = score(path, out, scorer, size=3)
        except VerdictError:
            assert not out.exists()
            return
        assert outcome["rows_in"] == outcome["scored"] + outcome["quarantined"] == len(records)
        scores = pd.read_parquet(out)
        assert list(zip(scores["line"], scores["sentence"], strict=True)) == [
            (record.line, record.sentence) for record in records if isinstance(record, Row)
        ]
        faults = [record for record in records if isinstance(record, QuarantinedRow)]
        assert outcome["quarantined"] == len(faults)
        if faults:
            aside = pd.read_parquet(outcome["quarantine"])
            assert list(zip(aside["line"], aside["raw"], strict=True)) == [(fault.line, fault.raw) for fault in faults]
        if ending == "txt":
            assert len(records) == len(io.BytesIO(data.removeprefix(BYTE_ORDER_MARK)).readlines())


class Counting(Classifier):
    """Counts the sentences that it judges."""

    judged = 0

    def answer(self, sentences: Any, on_tokenised: Any = None) -> Any:
        self.judged += len(sentences)
        return super().answer(sentences, on_tokenised)


# Waits in the middle of its sixth part, so that the kill comes in time however late the tester gets a CPU.
KILLED = """
import sys, time
from pathlib import Path
from tasks.inference.classifier import Classifier
from tasks.serving import score_parts
from tasks.serving.batch_scoring import score_to_file
from tasks.serving.score_parts import Scorer
from tasks.data.sentences import open_source
path, out, bundle = sys.argv[1:]
write_table, written = score_parts.pq.write_table, []

def write(table, target, **options):
    if len(written) == 5:
        target.write_bytes(b"half")
        time.sleep(600)
    written.append(target)
    write_table(table, target, **options)

score_parts.pq.write_table = write
score_to_file(open_source(path), Path(out), Scorer(Classifier.from_bundle(bundle, "cpu"), "7"), 50)
"""


def test_a_killed_run_resumes_without_losing_or_repeating_a_row(
    tmp_path: Path, scorer: Scorer, exported: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path, out = write(tmp_path, text_of(3_000)), tmp_path / "out.parquet"
    parts = tmp_path / "out.parquet.parts"
    process = subprocess.Popen([sys.executable, "-c", KILLED, path, str(out), exported["bundle"]], cwd=ROOT)
    while not any(path.read_bytes() == b"half" for path in parts.glob(".part-*")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = len(list(parts.glob("part-*")))
    assert finished == 5
    assert not out.exists()
    classifier = Counting.from_bundle(exported["bundle"], "cpu")
    with caplog.at_level("INFO"):
        resumed = score(path, out, Scorer(classifier, "7"), size=50)
    assert f"{finished * 50} scored rows of an earlier run" in caplog.text
    assert resumed["reused"] == finished * 50
    rest = [line for line in text_of(3_000).splitlines()[finished * 50 :] if line]
    assert classifier.judged == len(rest)
    whole = score(path, tmp_path / "whole.parquet", scorer, size=50)
    assert whole["reused"] == 0
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "whole.parquet"))
    assert pq.read_table(resumed["quarantine"]).equals(pq.read_table(whole["quarantine"]))
    assert left_in(tmp_path) == sorted(
        ["in.txt", *(f"{name}.parquet{end}" for name in ("out", "whole") for end in ("", ".quarantine.parquet"))]
    )


def interrupt(path: str, out: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch, after: int = 3) -> None:
    """Score with a disk that is full after `after` parts."""
    real = pq.write_table
    written: list[Path] = []

    def fail(table: Any, target: Path, **options: Any) -> None:
        if len(written) == after:
            target.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(target)
        real(table, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(score_parts.pq, "write_table", fail)
        with pytest.raises(VerdictError) as caught:
            score(path, out, scorer)
    assert str(caught.value) == (
        f"no space left for {out}; {10 * after} rows are done and kept: free space, run the same command again"
    )


def test_a_full_disk_is_one_line_and_keeps_what_is_finished(
    tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write(tmp_path, text_of(95)), tmp_path / "out.parquet"
    interrupt(path, out, scorer, monkeypatch)
    assert left_in(tmp_path / "out.parquet.parts") == ["lock", *(f"part-00000{n}-00001.parquet" for n in (1, 2, 3))]
    outcome = score(path, out, scorer)
    assert (outcome["rows_in"], outcome["reused"]) == (95, 30)
    assert left_in(tmp_path) == ["in.txt", "out.parquet", "out.parquet.quarantine.parquet"]


@pytest.mark.parametrize("other", ["input", "model"])
def test_parts_of_another_input_or_model_are_not_used(
    tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, other: str
) -> None:
    path, out = write(tmp_path, text_of(95)), tmp_path / "out.parquet"
    interrupt(path, out, scorer, monkeypatch)
    if other == "input":
        write(tmp_path, text_of(60, seed=1))
    else:
        scorer = scorer._replace(version="8")
    outcome = score(path, out, scorer)
    assert outcome["reused"] == 0
    (logged,) = [record.getMessage() for record in caplog.records if record.name == "tasks.serving.chunk_scoring"]
    assert logged == f"parts in {out}.parts belong to another input, model or option and are not used"
    fresh = score(path, tmp_path / "fresh.parquet", scorer)
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "fresh.parquet"))
    assert fresh["rows_in"] == outcome["rows_in"]


def test_rows_before_a_change_of_the_input_stay_scored(
    tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write(tmp_path, text_of(95)), tmp_path / "out.parquet"
    interrupt(path, out, scorer, monkeypatch)
    lines = text_of(95).splitlines()
    write(tmp_path, "\n".join([*lines[:25], GOOD, *lines[26:]]))
    assert score(path, out, scorer)["reused"] == 20
    scores = pd.read_parquet(out)
    assert scores[scores["line"] == 26]["sentence"].tolist() == [GOOD]


def test_a_damaged_part_is_scored_again(tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = write(tmp_path, text_of(95)), tmp_path / "out.parquet"
    interrupt(path, out, scorer, monkeypatch)
    (tmp_path / "out.parquet.parts" / "part-000002-00001.parquet").write_bytes(b"PAR1")
    assert score(path, out, scorer)["reused"] == 20
    assert pd.read_parquet(out)["line"].tolist() == [n for n in range(1, 96) if n % 7]


@pytest.mark.parametrize("column", ["sentence", "probability", "line"])
def test_a_part_with_one_wrong_byte_is_scored_again(
    column: str, tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write(tmp_path, text_of(95)), tmp_path / "out.parquet"
    score(path, tmp_path / "expected.parquet", scorer)
    interrupt(path, out, scorer, monkeypatch)
    part = tmp_path / "out.parquet.parts" / "part-000002-00001.parquet"
    pages = pq.read_metadata(part).row_group(0)
    chunk = next(each for each in map(pages.column, range(pages.num_columns)) if each.path_in_schema == column)
    content = bytearray(part.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start + chunk.total_compressed_size - 1] ^= 1
    part.write_bytes(content)
    assert score(path, out, scorer)["reused"] == 20
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "expected.parquet"))


def test_the_rate_is_that_of_reading_scoring_and_writing(
    tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any) -> Any:
            time.sleep(0.2)
            return function(*arguments)

        return slow

    for name in ("read_chunk", "write_part"):
        monkeypatch.setattr(chunk_scoring, name, slowly(getattr(chunk_scoring, name)))
    path, started = write(tmp_path, text_of(8)), time.perf_counter()
    found = score(path, tmp_path / "out.parquet", scorer)
    rate = found["sentences_per_second"]
    assert rate is not None
    assert 0.4 <= found["scored"] / rate <= time.perf_counter() - started


def test_one_run_at_a_time_writes_an_output(tmp_path: Path, scorer: Scorer) -> None:
    path, out = write(tmp_path, GOOD), tmp_path / "out.parquet"
    (tmp_path / "out.parquet.parts").mkdir()
    with FileLock(tmp_path / "out.parquet.parts" / "lock"), pytest.raises(VerdictError, match="another run writes to"):
        score(path, out, scorer)
    assert score(path, out, scorer)["scored"] == 1


def test_a_run_that_starts_while_another_deletes_its_parts_gets_a_folder_of_its_own(
    tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, parts = write(tmp_path, GOOD), tmp_path / "out.parquet", tmp_path / "out.parquet.parts"
    unlink, deleted = os.unlink, list[str]()
    with contextlib.ExitStack() as other:

        def unlink_before_the_other_starts(name: Any, *arguments: Any, **options: Any) -> None:
            unlink(name, *arguments, **options)
            if str(name) == "lock" and not deleted:
                deleted.append(name)
                other.enter_context(score_parts.lock_parts(parts))

        monkeypatch.setattr(os, "unlink", unlink_before_the_other_starts)
        assert score(path, out, scorer)["scored"] == 1
        assert deleted == ["lock"]
        assert left_in(tmp_path) == ["in.txt", "out.parquet", "out.parquet.parts"]
        with pytest.raises(VerdictError, match="another run writes to"):
            score(path, out, scorer)


def test_what_a_killed_run_moved_aside_is_deleted_by_a_later_one(tmp_path: Path, scorer: Scorer) -> None:
    for name, days in (("old", 2), ("young", 0)):
        (tmp_path / f".out.parquet.parts.{name}").mkdir()
        os.utime(tmp_path / f".out.parquet.parts.{name}", (time.time() - days * 86_400,) * 2)
    score(write(tmp_path, GOOD), tmp_path / "out.parquet", scorer)
    assert left_in(tmp_path) == [".out.parquet.parts.young", "in.txt", "out.parquet"]


def test_large_records_make_short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_parts, "PART_BYTES", 100)
    large: list[Any] = [QuarantinedRow(line, "too long", "", b"x" * 60) for line in range(5)]
    assert [len(part) for part in divide(large, 10)] == [2, 2, 1]
    assert next(divide(iter(large), 1)) == large[:1]


def test_nothing_scored_is_a_failure_that_keeps_the_quarantined_rows(tmp_path: Path, scorer: Scorer) -> None:
    path, out = write(tmp_path, "one\tfield\n" * 2, "in.tsv"), tmp_path / "out.parquet"
    with pytest.raises(DataRejected) as caught:
        score(path, out, scorer)
    aside = tmp_path / "out.parquet.quarantine.parquet"
    assert str(caught.value) == (
        "none of 2 rows could be scored: 2 field count; in.tsv line 1: 2 fields instead of 4; "
        f"see {aside}, or name the format: --format"
    )
    assert len(pd.read_parquet(aside)) == 2
    assert left_in(tmp_path) == ["in.tsv", aside.name]
    with pytest.raises(VerdictError, match=r"in\.txt holds no sentence; expected at least one"):
        score(write(tmp_path, ""), out, scorer)
    assert left_in(tmp_path) == ["in.tsv", "in.txt", aside.name]  # nothing was started


@pytest.mark.parametrize(
    ("path", "out", "expected"),
    [
        ("missing.txt", "out.parquet", "input '.*missing.txt' does not exist; expected a file of sentences, or -"),
        (".", "out.parquet", r"is a folder, and not of one table \(it holds in, in.doc, in.parquet, .*\); name a file"),
        (os.fsdecode(b"caf\xe9.txt"), "out.parquet", "has a name that is not UTF-8; rename the file"),
        ("in.doc", "out.parquet", "has the unknown ending '.doc'; expected .tsv, .csv, .*or .txt, or --format tsv"),
        ("in", "out.parquet", "has no ending; expected"),
        ("in.parquet", "in.parquet", "would replace the input '.*in.parquet'; name another file"),
        ("o.parquet.quarantine.parquet", "o.parquet", "would replace the input"),
        ("in.txt", "out.csv", r"does not end in \.parquet; expected a Parquet file, or - for JSON lines"),
        ("in.txt", "folder.parquet", "is a folder; expected a Parquet file"),
        ("in.txt", "pipe.parquet", "is a pipe or device; expected a Parquet file, or - for JSON lines"),
        (
            "pipe.parquet",
            "out.parquet",
            "is a pipe or device, and is read more than once; expected a file of sentences",
        ),
        ("in.txt", "no/out.parquet", "no' of the output does not exist; run: mkdir -p "),
        ("in.txt", "/proc/out.parquet", r"folder '/proc' is not writable \("),
        ("no-text.csv", "out.parquet", "has no column 'sentence' for the text; it has 'a', 'b': --columns text=NAME"),
        ("twice.csv", "out.parquet", "has 2 columns 'text'; expected one for the text"),
        ("no-text.jsonl", "out.parquet", "has no column 'sentence' for the text; it has 'words': --columns text=NAME"),
    ],
)
def test_wrong_input_or_output_is_one_line_before_anything_is_written(
    tmp_path: Path, path: str, out: str, expected: str
) -> None:
    for name in ("in.doc", "in", "in.txt"):
        write(tmp_path, GOOD, name)
    for name in ("in.parquet", "o.parquet.quarantine.parquet"):
        pq.write_table(pa.table({"text": [GOOD]}), tmp_path / name)
    write(tmp_path, "a,b\n1,2\n", "no-text.csv")
    write(tmp_path, "text,text\n1,2\n", "twice.csv")
    write(tmp_path, '{"words": "a"}\n', "no-text.jsonl")
    (tmp_path / "folder.parquet").mkdir()
    os.mkfifo(tmp_path / "pipe.parquet")
    before = left_in(tmp_path)
    with pytest.raises(UsageError, match=expected) as caught:
        check_paths(str(tmp_path / path), str(tmp_path / out))
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path) == before


@pytest.mark.parametrize(
    ("columns", "form", "expected"),
    [
        ("sentence=text", "", "'sentence' is no role of a column; .*; sentences need text=NAME alone"),
        ("text", "", "expected NAME=VALUE,NAME=VALUE, such as text="),
        ("", "arrow", "arrow cannot be read from standard input; write it to a file, or use txt, tsv, csv, jsonl or"),
    ],
)
def test_wrong_options_are_one_line(columns: str, form: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        open_source("-", columns, form)


def test_a_column_of_a_file_of_text_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"--columns 'text=nosuch' names a column, and .*in\.txt is text, a sentence a"
    ):
        open_source(write(tmp_path, GOOD), "text=nosuch")


def test_an_output_that_is_a_link_to_itself_is_replaced(tmp_path: Path, scorer: Scorer) -> None:
    out = tmp_path / "out.parquet"
    out.symlink_to(out.name)
    check_paths(write(tmp_path, GOOD), str(out))
    assert score(write(tmp_path, GOOD), out, scorer)["scored"] == 1


def test_a_closed_standard_output_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(UsageError, match=r"^standard output is closed; expected a file or a program that reads it"):
        check_paths(write(tmp_path, GOOD), "-")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PAR1" * 20])
def test_a_damaged_parquet_input_is_one_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(VerdictError, match="cannot be read as Parquet"):
        open_source(write(tmp_path, content, "in.parquet"))


def test_values_that_are_no_text_are_quarantined(tmp_path: Path) -> None:
    records = ['{"text": 1}', '{"text": null}', "[]", "no json", '{"other": 1}', '{"text": "a"}', '{"text": "\\ud800"}']
    found = list(read_sentences(open_source(write(tmp_path, "\n".join(records), "in.jsonl"))))
    assert [record.kind if isinstance(record, QuarantinedRow) else record.sentence for record in found] == [
        *["record", "empty sentence", "record", "record", "field count", "a", "record"]
    ]
    pq.write_table(pa.table({"text": [1, None]}), tmp_path / "in.parquet")
    kinds = [record.kind for record in read_sentences(open_source(str(tmp_path / "in.parquet"))) if record]  # type: ignore[union-attr]
    assert kinds == ["record", "empty sentence"]


def test_a_line_without_end_takes_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_readers, "MAX_LINE_BYTES", 1_000)
    long_sentences = TableFormat(rules=RowRules(max_chars=5_000), labelled=False)
    for ending in ("txt", "tsv", "csv", "jsonl"):
        path = write(tmp_path, "text\n" + "a" * 1_200 + "\n", f"in.{ending}")
        last = list(read_sentences(SentenceSource(path, ending, long_sentences)))[-1]
        assert isinstance(last, QuarantinedRow)
        assert last.kind == "too long"


class Standard:
    """Stands for standard input."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]


def test_standard_input_to_standard_output_answers_line_by_line(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Standard(f"{GOOD}\n\n{BAD}\n".encode()))
    sink = io.StringIO()
    outcome = score_to_stream(open_source("-"), sink, scorer, size=2)
    answers = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert [(answer["line"], answer["label"]) for answer in answers] == [
        *[(1, "acceptable"), (2, None), (3, "unacceptable")]
    ]
    assert answers[1]["reason"] == "empty sentence"
    assert set(answers[0]) == {
        "line",
        "sentence",
        "label",
        "probability",
        "truncated",
        "reason",
        "version",
        "digest",
    }
    assert (outcome["rows_in"], outcome["scored"], outcome["quarantined"]) == (3, 2, 1)
    assert outcome["examples"] == ["standard input line 2: empty sentence"]


def test_standard_input_is_read_as_json_lines_with_the_format_option(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Standard(json.dumps({"said": GOOD}).encode()))
    sink = io.StringIO()
    score_to_stream(open_source("-", "text=said", "jsonl"), sink, scorer)
    assert json.loads(sink.getvalue())["sentence"] == GOOD


def test_a_reader_that_goes_away_is_one_line(exported: Any, tmp_path: Path) -> None:
    script = "\n".join(
        [
            "import sys",
            "from tasks.core.errors import VerdictError",
            "from tasks.serving.batch_scoring import score_file",
            "try: score_file(sys.argv[1], '-', sys.argv[2], None, 'cpu')",
            "except VerdictError as error: print(error, file=sys.stderr)",
        ]
    )
    path = write(tmp_path, (GOOD + "\n") * 5_000)
    process = subprocess.Popen(
        [sys.executable, "-c", script, path, exported["bundle"]],
        *[-1, None, None, subprocess.PIPE, subprocess.PIPE],
        cwd=ROOT,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0
    assert error.startswith("standard output was closed (Broken pipe) at row ")
    assert error.count("\n") == 1


@pytest.fixture(scope="module")
def champion(empty_store: Path, exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of stores in which version 1 is champion."""
    home = tmp_path_factory.mktemp("stores")
    shutil.copy(empty_store, home / "mlflow.db")
    store: MlflowStore = locate_store(str(home))
    run = runs.open_run(store, "a" * 16, {}, {})
    tags = {"verdict": "PROMOTE", "mcc": "0.5", "dataset": "d" * 64}
    register.move_alias(
        store, CHAMPION, register.register_bundle(store, run, exported["bundle"], exported["digest"], tags, "")
    )
    return home


def test_a_model_is_named_by_alias_number_or_folder(
    champion: Path, exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, f"{GOOD}\n{BAD}\n")
    labels = []
    for model, version in ((CHAMPION_URI, "1"), ("1", "1"), (exported["bundle"], f"sha256:{exported['digest'][:12]}")):
        found, bundle, _ = find_model(model, str(champion))
        assert found == version
        outcome = score_file(path, str(tmp_path / "out.parquet"), bundle, found, "cpu")
        assert (outcome["version"], outcome["digest"]) == (version, exported["digest"])
        scores = pd.read_parquet(tmp_path / "out.parquet")
        assert set(scores["version"]) == {version}
        labels.append(scores["label"].tolist())
    assert labels == [["acceptable", "unacceptable"]] * 3
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1").mkdir()
    assert find_model("1", str(champion))[0] == "1"
    with pytest.raises(VerdictError, match="model 'acceptability' has no version '2'"):
        find_model("2", str(champion))
    with pytest.raises(UsageError, match="is no registry address"):
        find_model("no-such-folder", str(champion))


def test_the_flow_scores_with_the_champion(champion: Path, prefect_server: str, tmp_path: Path, exported: Any) -> None:
    from flows.jobs.score import score as flow

    path, out = write(tmp_path, f"{GOOD}\n\n{BAD}\n"), str(tmp_path / "out.parquet")
    outcome = flow(path, out, CHAMPION_URI, "cpu", "", "", str(champion))
    expected = {"rows_in": 3, "scored": 2, "quarantined": 1, "out": out, "version": "1", "digest": exported["digest"]}
    assert {key: outcome[key] for key in expected} == expected
    assert outcome["provider"] == "CPUExecutionProvider"
    assert set(outcome["seconds"]) == {"find model", "score"}
    assert pd.read_parquet(out)["label"].tolist() == ["acceptable", "unacceptable"]


def test_a_model_that_fails_on_its_own_tokens_is_one_line(exported: Any, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(exported["bundle"], tmp_path / "bundle"))
    document = json.loads((bundle / "tokenizer.json").read_text())
    document["model"]["vocab"]["cat"] = 1_000_000  # there is no such row in the embedding
    (bundle / "tokenizer.json").write_text(json.dumps(document))
    write_manifest(bundle, facts(), {})
    (tmp_path / "in.txt").write_text("the cat sees the dog\n")
    with pytest.raises(VerdictError, match=r"bundle sha256:[0-9a-f]{12}: it cannot answer \(") as caught:
        score_file(str(tmp_path / "in.txt"), str(tmp_path / "out.parquet"), str(bundle), None, "cpu")
    assert "\n" not in str(caught.value)


def test_the_folder_of_the_command_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus" / "inner").mkdir(parents=True)
    for number in range(2):
        write(tmp_path / "corpus", f"text\n{GOOD}\n", f"part-{number:05}-of-00002.csv")
    for folder, path in (("corpus", "."), ("corpus/inner", "..")):
        monkeypatch.chdir(tmp_path / folder)
        assert open_source(path).name == "corpus"


def test_a_folder_that_is_one_table_is_scored_in_the_order_of_its_parts(tmp_path: Path, scorer: Scorer) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    for number, rows in enumerate((MIXED[:2], [], MIXED[2:])):
        pq.write_table(pa.table({"text": pa.array(rows, pa.string())}), folder / f"part-0000{number}.parquet")
    outcome = score(str(folder), tmp_path / "out.parquet", scorer, size=2)
    scores = pd.read_parquet(tmp_path / "out.parquet")
    assert (scores["sentence"].tolist(), scores["line"].tolist()) == (MIXED, [1, 2, 3, 4, 5])
    assert (outcome["rows_in"], outcome["quarantined"]) == (5, 0)


@pytest.mark.parametrize("packed", [bytes, gzip.compress, bz2.compress, lambda data: bytes(pa.compress(data, "zstd"))])
def test_standard_input_may_be_compressed_and_a_table(
    monkeypatch: pytest.MonkeyPatch, packed: Callable[[bytes], bytes]
) -> None:
    records = json.dumps([{"text": GOOD}])
    for form, data in {"txt": GOOD, "csv": f"n,text\n1,{GOOD}\n", "json": records, "jsonl": records}.items():
        monkeypatch.setattr(sys, "stdin", Standard(packed(data.encode())))
        (row,) = read_sentences(open_source("-", format_name=form))
        assert isinstance(row, Row)
        assert row.sentence == GOOD


def test_standard_input_that_is_no_text_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for data, expected in (
        (Path(parquet(tmp_path)).read_bytes(), "standard input is a parquet file; .*: name the file"),
        (b"PK\x03\x04", "standard input is a zip; .*: unpack it"),
    ):
        monkeypatch.setattr(sys, "stdin", Standard(data))
        with pytest.raises(UsageError, match=expected):
            list(read_sentences(open_source("-")))
    monkeypatch.setattr(sys, "stdin", Standard(gzip.compress(GOOD.encode())[:-9]))
    with pytest.raises(DataRejected, match=r"standard input cannot be unpacked with gzip .*: download"):
        list(read_sentences(open_source("-")))


def test_what_verdict_serve_answers_is_scored_but_an_empty_sentence(tmp_path: Path) -> None:
    limit = RequestLimits.characters
    texts = ["a" * limit, "two\nlines\tand\0more", "a" * (limit + 1), " "]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    found = list(read_sentences(open_source(str(tmp_path / "in.parquet"))))
    assert [row.kind if isinstance(row, QuarantinedRow) else row.sentence for row in found] == [
        *[*texts[:2], "too long", "empty sentence"]
    ]
