"""Sentences that a person should label: flagged ones, those on which versions differ, and those nearest the threshold.

Written in CoLA's format (.tsv) or as a table with what is known of each sentence (.csv); in both the label is left
empty for the person. `verdict retrain --data DIR --data FILE` reads the filled file; rows that stay open are deleted.
"""

import logging
from collections import Counter
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa

from tasks.core.errors import UsageError, VerdictError
from tasks.core.files import write_text
from tasks.core.printable import counted
from tasks.data.cola_format import QuarantinedRow, RowRules, make_row
from tasks.serving.feedback import one_line
from tasks.serving.logged_requests import ACCEPTABLE, with_sentences
from tasks.serving.request_summary import UNSURE_MARGIN, acceptable_of

log = logging.getLogger(__name__)

REVIEW_SOURCE = "review"
REASONS = ("flagged", "versions differ", "unsure")  # in the order of the queue
QUEUE_COLUMNS = ["label", "sentence", "source", "reason", "answer", "probability", "flagged", "times"]


class WrittenQueue(TypedDict):
    """A file of sentences to label, and how many of them are there for each reason."""

    path: str
    sentences: int
    reasons: dict[str, int]


def build_queue(table: pa.Table, flags: dict[str, int], threshold: float, limit: int) -> pd.DataFrame:
    """Return the sentences to label in QUEUE_COLUMNS, in the order of REASONS, those nearest to the threshold first.

    `answer` and `probability` (of "acceptable") are the last ones logged, `flagged` is a person's last label, `times`
    counts logged answers.

    Args:
        table: of `read_requests`.
        flags: a person's last label of each sentence; where the last answer agrees, the sentence is settled.
        threshold: the decision threshold.
        limit: most sentences.
    """
    logged, table = table, with_sentences(table)
    if hidden := len(logged) - len(table):
        log.warning("%s of which only a hash, or nothing, is logged cannot be queued", counted(hidden, "answer"))
    rows = table.select(["sentence", "version", "label"]).to_pandas().assign(probability=acceptable_of(table))
    rows["sentence"] = rows["sentence"].map(one_line)
    known = rows.groupby("sentence").agg(
        answer=("label", "last"), probability=("probability", "last"), times=("label", "size")
    )
    labels = rows.groupby(["sentence", "version"])["label"].last()
    known["differ"] = labels.groupby("sentence").nunique() > 1
    known = known.join(pd.Series(flags, name="flagged", dtype="Int64"), how="outer").rename_axis("sentence")
    distance = (known["probability"] - threshold).abs()
    answered = (known["answer"] == ACCEPTABLE).astype("Int64").where(known["answer"].notna())
    settled = answered.eq(known["flagged"]).fillna(False)
    reasons = [known["flagged"].notna(), known["differ"].eq(True), distance < UNSURE_MARGIN]
    known = known.assign(rank=np.select(reasons, range(3), default=3), distance=distance)[~settled].reset_index()
    known = known[known["rank"] < 3].sort_values(["rank", "distance"])
    readable = known["sentence"].map(_is_readable).astype(bool)
    if unreadable := int((~readable).sum()):
        log.warning(
            "%s not queued: training data takes none that is empty or too long", counted(unreadable, "sentence")
        )
    known = known[readable]
    known = known.assign(label="", source=REVIEW_SOURCE, reason=[REASONS[rank] for rank in known["rank"]])
    return known.astype({"times": "Int64"}).fillna({"times": 0})[QUEUE_COLUMNS].head(limit)


def write_queue(queue: pd.DataFrame, path: str) -> WrittenQueue:
    """Write a queue for a person to fill in the labels; an empty one is no file.

    Raises:
        UsageError: if the file's name ends in something else than .tsv and .csv.
        VerdictError: if it cannot be written.
    """
    check_queue(path)
    if path.endswith(".tsv"):
        text = "".join(f"{REVIEW_SOURCE}\t\t\t{sentence}\n" for sentence in queue["sentence"])
    else:
        text = queue.to_csv(index=False, float_format="%.4f")
    try:
        if len(queue):
            write_text(Path(path), text)
    except OSError as error:
        raise VerdictError(f"{path} cannot be written ({error.strerror}); name another: --queue FILE") from error
    return WrittenQueue(path=path, sentences=len(queue), reasons=dict(Counter(queue["reason"])))


def check_queue(path: str) -> None:
    """Check the name of the file, which says its format.

    Raises:
        UsageError: if it ends in something else than .tsv and .csv, or the file exists: it may hold a person's labels.
    """
    if not path.endswith((".tsv", ".csv")):
        raise UsageError(f"queue {path!r} ends in neither .csv nor .tsv; expected for example --queue review.csv")
    if Path(path).exists():
        raise UsageError(f"{path} exists and may hold labels; name a new file: --queue FILE")


def _is_readable(sentence: str) -> bool:
    """Return whether the reader of training data takes a sentence."""
    row = make_row(1, (REVIEW_SOURCE, "1", "", sentence), b"", RowRules())
    return not isinstance(row, QuarantinedRow)
