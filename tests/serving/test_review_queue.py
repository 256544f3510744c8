"""The review queue holds what a person should label, once each, and the filled file is training data."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from request_rows import logged

from tasks.core.errors import UsageError
from tasks.data.ingestion import ingest
from tasks.data.snapshots import read_snapshot
from tasks.data.sources import locate_sources
from tasks.data.table_format import TableFormat
from tasks.serving.feedback import Feedback, read_flags
from tasks.serving.request_log import hash_sentence
from tasks.serving.review_queue import build_queue, write_queue


def test_flagged_sentences_come_first_then_those_that_versions_label_differently_then_unsure_ones() -> None:
    table = pa.concat_tables(
        [
            logged(("Sure.", 0.99), ("Moved.", 0.7), ("Near.", 0.45), ("Flagged.", 0.9), ("Agreed.", 0.52)),
            logged(("Moved.", 0.2), ("Nearest.", 0.51), ("Near.", 0.45), (None, 0.5), version="2"),
        ]
    )
    queue = build_queue(table, {"Flagged.": 0, "Agreed.": 1, "Elsewhere.": 0}, 0.5, limit=10)
    shown = queue[["sentence", "reason", "answer", "times"]].fillna({"answer": ""})
    rows = list(shown.itertuples(index=False, name=None))
    assert rows == [
        ("Flagged.", "flagged", "acceptable", 1),
        ("Elsewhere.", "flagged", "", 0),
        ("Moved.", "versions differ", "unacceptable", 2),
        ("Nearest.", "unsure", "acceptable", 1),
        ("Near.", "unsure", "unacceptable", 2),
    ]
    assert queue["probability"].round(6).tolist()[2:] == [0.2, 0.51, 0.45]
    assert list(build_queue(table, {}, 0.5, limit=1)["sentence"]) == ["Moved."]


def test_what_is_no_training_sentence_is_not_queued_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    table = logged((hash_sentence("Near."), 0.5), ("", 0.5), ("x" * 2_001, 0.5), (" two \n lines ", 0.5))
    assert list(build_queue(table, {}, 0.5, limit=10)["sentence"]) == ["two lines"]
    assert [record.getMessage() for record in caplog.records] == [
        "1 answer of which only a hash, or nothing, is logged cannot be queued",
        "2 sentences not queued: training data takes none that is empty or too long",
    ]
    assert build_queue(table.slice(0, 0), {}, 0.5, limit=10).empty


@pytest.mark.parametrize("ending", ["tsv", "csv"])
def test_a_queue_with_labels_filled_in_is_training_data(tmp_path: Path, toy_data: Path, ending: str) -> None:
    path = tmp_path / f"review.{ending}"
    table = logged(("The cat, which sat.", 0.5), ('A "quoted" word.', 0.45))
    written = write_queue(build_queue(table, {}, 0.5, limit=10), str(path))
    assert written == {"path": str(path), "sentences": 2, "reasons": {"unsure": 2}}
    if ending == "tsv":
        path.write_text(path.read_text().replace("review\t\t", "review\t1\t"))
    else:
        pd.read_csv(path).assign(label=1).to_csv(path, index=False)
    sources = locate_sources([str(toy_data), str(path)], "", "", str(tmp_path))
    train = ingest(sources, str(tmp_path), TableFormat(), 0.2)["train"]
    rows = read_snapshot(train["path"]).query("source == 'review'")
    assert train["quarantined"] == 0
    assert list(rows["sentence"]) == ["The cat, which sat.", 'A "quoted" word.']
    assert list(rows["label"]) == [1, 1]
    with pytest.raises(UsageError, match="exists and may hold labels"):
        write_queue(build_queue(table, {}, 0.5, limit=10), str(path))


def test_an_empty_queue_leaves_no_file_that_would_stand_in_the_next_one_s_way(tmp_path: Path) -> None:
    path = tmp_path / "queue.csv"
    written = write_queue(build_queue(logged().slice(0, 0), {}, 0.5, limit=10), str(path))
    assert (written["sentences"], path.exists()) == (0, False)


def test_a_queue_of_another_format_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in neither \.csv nor \.tsv"):
        write_queue(build_queue(logged(), {}, 0.5, 10), str(tmp_path / "queue.xlsx"))


def test_the_last_flag_of_a_sentence_is_read(tmp_path: Path) -> None:
    path = tmp_path / "feedback.tsv"
    assert read_flags(str(path)) == {}
    feedback = Feedback(str(path))
    for sentence, label in (("One.", 1), ("Two.", 0), ("One.", 0)):
        feedback.add(sentence, label)
    assert read_flags(str(path)) == {"One.": 0, "Two.": 0}
    path.write_text("feedback\t0\t*\tOne.\nfeedback\t1\t\tOne.\n")  # written by hand
    assert read_flags(str(path)) == {"One.": 1}
