"""Turns the files of a run into its data set: one snapshot for each role, and a digest over all of them."""

import logging
import math
import tempfile
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.errors import DataRejected, UsageError
from tasks.core.files import json_digest
from tasks.core.printable import counted
from tasks.data.cola_format import RowRules
from tasks.data.normalization import normalise_all
from tasks.data.snapshots import (
    SCRATCH_PREFIX,
    RowWriter,
    Snapshot,
    describe_unreadable,
    iter_snapshot,
    log_remedy,
    write_snapshot,
)
from tasks.data.sources import Sources
from tasks.data.splitting import hash_fraction
from tasks.data.table_format import TableFormat

HOLDOUT_HASH_KEY = "holdout"  # not a setting, because the holdout must not change with the seed
WANTED_HOLDOUT = 50  # sentences that a holdout should have, for a message: the gate has the limit

log = logging.getLogger(__name__)


class Dataset(TypedDict):
    """The snapshots of one run.

    Args:
        digest: SHA-256 of the snapshots' digests, roles and quarantined rows.
        train: rows to train on.
        holdout: rows that decide the verdict.
        secondary: a holdout whose metrics are reported only.
        text: sentences without labels, stored as acceptable rows.
    """

    digest: str
    train: Snapshot
    holdout: Snapshot
    secondary: Snapshot | None
    text: Snapshot | None


def holdout_digests(data: Dataset) -> list[str]:
    """Return the digests of the snapshots whose sentences are not trained on."""
    return [snapshot["digest"] for snapshot in (data["holdout"], data["secondary"]) if snapshot]


def ingest(sources: Sources, folder: str, table_format: TableFormat, holdout_share: float, text: str = "") -> Dataset:
    """Write one snapshot for each role, merging the role's files.

    Args:
        sources: files by role; without a holdout file, one is split off the training rows.
        folder: receives the snapshots.
        table_format: names of the columns and what a row must satisfy.
        holdout_share: expected share of the sentences that are split off, between 0 and 1.
        text: file of sentences without labels; empty for none.

    Raises:
        UsageError: if a file lacks a required column, or the text has no sentence.
        VerdictError: if a file cannot be read.
        DataRejected: if one side of the split is empty.
    """
    train = whole = write_snapshot(sources["train"], folder, table_format)
    if sources["holdout"]:
        holdout = write_snapshot(sources["holdout"], folder, table_format)
    else:
        train, holdout = split_off_holdout(train, folder, holdout_share)
        log.info("no holdout file: %d of %d rows set apart to judge", holdout["kept"], holdout["kept"] + train["kept"])
    secondary = write_snapshot(sources["secondary"], folder, table_format) if sources["secondary"] else None
    if secondary and not secondary["kept"]:
        log.warning("%s has no readable row and is not reported; %s", secondary["files"][0], secondary["examples"][0])
        secondary = None
    for snapshot in filter(None, (whole, holdout, secondary)):
        log_remedy(snapshot)
    sentences = ingest_text(text, folder, table_format) if text else None
    snapshots = {"train": train, "holdout": holdout, "secondary": secondary, "text": sentences}
    # Quarantined rows count too: data that got worse is other data, although the kept rows are the same.
    digests = {
        name: digest
        for role, snapshot in snapshots.items()
        if snapshot
        for name, digest in ((role, snapshot["digest"]), (f"{role} quarantine", snapshot["quarantine_digest"]))
        if digest
    }
    return Dataset(digest=json_digest(digests), train=train, holdout=holdout, secondary=secondary, text=sentences)


def ingest_text(file: str, folder: str, table_format: TableFormat) -> Snapshot:
    """Write a snapshot of sentences without labels, as rows labelled acceptable; log records that are no sentences.

    A column that is named for the text of the data is used where the file has it, else the default one.

    Raises:
        UsageError: if there is no sentence, or no text column.
        VerdictError: if the file cannot be read.
    """
    default = TableFormat(rules=RowRules(table_format.rules.max_chars), labelled=False)
    named = default._replace(columns=table_format.columns)
    try:
        snapshot = write_snapshot([file], folder, named, allow_empty=True)
    except UsageError:
        if "text" not in named.columns:
            raise
        snapshot = write_snapshot([file], folder, default, allow_empty=True)
    if not snapshot["kept"]:
        reason = snapshot["examples"][0] if snapshot["examples"] else "it is empty"
        raise UsageError(
            f"text {file} holds no sentence ({reason}); expected one a line, or a column of them: --set data.text=FILE"
        )
    if snapshot["quarantined"]:
        log.warning(
            "%d of %d records of the text are left out: %s; all of them: %s",
            *(snapshot["quarantined"], snapshot["rows_in"], snapshot["examples"][0], snapshot["quarantine"]),
        )
    return snapshot


def split_off_holdout(snapshot: Snapshot, folder: str, share: float) -> tuple[Snapshot, Snapshot]:
    """Divide a snapshot into training rows and a holdout, by a hash of the normalised sentence.

    Rows added later move no old row to the other side, and sentences that are equal after normalisation are on one
    side. Quarantined rows are counted on the training side.

    Args:
        snapshot: rows to divide.
        folder: receives both snapshots.
        share: expected share of sentences in the holdout, between 0 and 1.

    Raises:
        DataRejected: if one side is empty.
    """
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=folder) as scratch:
        with RowWriter(Path(scratch), "train") as train, RowWriter(Path(scratch), "holdout") as holdout:
            for batch in iter_snapshot(snapshot["path"]):
                table = pa.Table.from_batches([batch])
                fractions = [hash_fraction(text, HOLDOUT_HASH_KEY) for text in normalise_all(batch["sentence"])]
                in_holdout = pc.less(pa.array(fractions, pa.float64()), share)
                train.add(table.filter(pc.invert(in_holdout)))
                holdout.add(table.filter(in_holdout))
        if not train.count or not holdout.count:
            raise DataRejected(_too_few(snapshot, share))
        paths = [side.publish(Path(folder)) for side in (train, holdout)]
    rest = Snapshot(**{**snapshot, "digest": train.digest, "path": paths[0], "kept": train.count})
    rest["rows_in"] = train.count + snapshot["quarantined"]
    held_out = Snapshot(
        digest=holdout.digest,
        path=paths[1],
        files=snapshot["files"],
        empty_files=[],
        quarantine_digest=None,
        rows_in=holdout.count,
        kept=holdout.count,
        quarantined=0,
        reasons={},
        quarantine=None,
        examples=[],
    )
    return rest, held_out


def _too_few(snapshot: Snapshot, share: float) -> str:
    """Explain why no holdout can be split off: the rows cannot be read, or there are too few different sentences."""
    files = ", ".join(snapshot["files"])
    if snapshot["quarantined"] > snapshot["kept"]:
        shown = f"{snapshot['examples'][0]}; all of them: {snapshot['quarantine']}"
        rows = counted(snapshot["rows_in"], "row")
        return describe_unreadable(snapshot["files"], snapshot["quarantined"], rows, snapshot["reasons"], shown)
    different = {text for batch in iter_snapshot(snapshot["path"]) for text in normalise_all(batch["sentence"])}
    among = f", {counted(len(different), 'different sentence')} among them" if len(different) < snapshot["kept"] else ""
    return (
        f"{files} has {counted(snapshot['kept'], 'row')}{among}, "
        f"too few to set a holdout apart; expected at least {math.ceil(WANTED_HOLDOUT / share)} different ones, or a "
        "holdout of its own: --holdout FILE"
    )
