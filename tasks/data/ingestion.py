"""From files to the data of a run: one snapshot a role, and a digest that names them together."""

import contextlib
import logging
import tempfile
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.errors import DataRejected, UsageError
from tasks.core.files import json_digest
from tasks.data.cola_format import RowRules
from tasks.data.normalization import normalise_all
from tasks.data.record_readers import TableFormat, in_blocks
from tasks.data.sentences import SentenceSource, open_source, read_sentences
from tasks.data.snapshots import SCRATCH_PREFIX, RowWriter, Snapshot, iter_snapshot, write_snapshot
from tasks.data.sources import Sources
from tasks.data.splitting import hash_fraction

HASH_SPLIT = "holdout"  # the key of the choice; it is no setting, because the holdout must not move with the seed

log = logging.getLogger(__name__)


class Dataset(TypedDict):
    """The snapshots of one run; `reported` is a holdout that does not judge, `text` has no labels of its own."""

    digest: str
    train: Snapshot
    holdout: Snapshot
    secondary: Snapshot | None
    text: Snapshot | None


def ingest(sources: Sources, folder: str, form: TableFormat, holdout_share: float, text: str = "") -> Dataset:
    """Snapshot the files of a run, each role merged.

    Args:
        sources: files by role; without a holdout file one is set apart from the training rows.
        folder: receives the snapshots.
        form: how the columns are called and what a row must satisfy.
        holdout_share: expected share of the sentences that are set apart, between 0 and 1.
        text: file of sentences without labels, or none.

    Raises:
        WrongUsage: if a file has no column that is needed, or the text no sentence.
        VerdictError: if a file cannot be read.
        DataRefused: if setting apart leaves one side empty.
    """
    train = write_snapshot(sources["train"], folder, form)
    if sources["holdout"]:
        holdout = write_snapshot(sources["holdout"], folder, form)
    else:
        train, holdout = split_off_holdout(train, folder, holdout_share)
        log.info("no holdout file: %d of %d rows set apart to judge", holdout["kept"], holdout["kept"] + train["kept"])
    reported = write_snapshot(sources["secondary"], folder, form) if sources["secondary"] else None
    if reported and not reported["kept"]:
        log.warning("%s has no readable row and is not reported; %s", reported["files"][0], reported["examples"][0])
        reported = None
    spare = ingest_text(text, folder, form) if text else None
    snapshots = {"train": train, "holdout": holdout, "secondary": reported, "text": spare}
    # Rows that were quarantined count too: data that got worse is other data, although the good rows are the same.
    digests = {
        name: digest
        for role, snapshot in snapshots.items()
        if snapshot
        for name, digest in ((role, snapshot["digest"]), (f"{role} quarantine", snapshot["quarantine_digest"]))
        if digest
    }
    return Dataset(digest=json_digest(digests), train=train, holdout=holdout, secondary=reported, text=spare)


def ingest_text(file: str, folder: str, form: TableFormat) -> Snapshot:
    """Snapshot sentences without labels, as rows that are called acceptable; what is no sentence is told and left out.

    Raises:
        WrongUsage: if there is no sentence, or no column for the text.
        VerdictError: if the file cannot be read.
    """
    expected = "expected one a line, or a column of them: --set data.text=FILE"
    source = _open_text(file, form)
    if next(read_sentences(source), None) is None:
        raise UsageError(f"text {file} holds no sentence (it is empty); {expected}")
    snapshot = write_snapshot([file], folder, form, lambda *_: in_blocks(read_sentences(source)))
    if not snapshot["kept"]:
        raise UsageError(f"text {file} holds no sentence ({snapshot['examples'][0]}); {expected}")
    if snapshot["quarantined"]:
        left, first = f"{snapshot['quarantined']} of {snapshot['rows_in']}", snapshot["examples"][0]
        log.warning("%s records of the text are left out: %s; all of them: %s", left, first, snapshot["quarantine"])
    return snapshot


def _open_text(file: str, form: TableFormat) -> SentenceSource:
    """Return a text as an input of acceptable sentences; its column is called like that of the data, or as usual."""
    source = None
    if column := form.columns.get("text"):
        with contextlib.suppress(UsageError):
            source = open_source(file, f"text={column}")
    return (source or open_source(file))._replace(rules=RowRules(form.rules.max_chars, {"1": 1}))


def split_off_holdout(snapshot: Snapshot, folder: str, share: float) -> tuple[Snapshot, Snapshot]:
    """Divide a snapshot into training rows and a holdout, by a hash of the folded sentence.

    Rows added later move no old row to the other side, and equal sentences stand on one side. What was quarantined is
    counted on the training side.

    Raises:
        DataRefused: if one side is empty.
    """
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=folder) as scratch:
        with RowWriter(Path(scratch), "train") as train, RowWriter(Path(scratch), "holdout") as holdout:
            for batch in iter_snapshot(snapshot["path"]):
                table = pa.Table.from_batches([batch])
                apart = pa.array(
                    [hash_fraction(text, HASH_SPLIT) < share for text in normalise_all(batch["sentence"])], pa.bool_()
                )
                train.add(table.filter(pc.invert(apart)))
                holdout.add(table.filter(apart))
        if not train.count or not holdout.count:
            raise DataRejected(_too_few(snapshot))
        paths = [side.publish(Path(folder)) for side in (train, holdout)]
    rest = Snapshot(**{**snapshot, "digest": train.digest, "path": paths[0], "kept": train.count})
    rest["rows_in"] = train.count + snapshot["quarantined"]
    judging = Snapshot(
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
    return rest, judging


def _too_few(snapshot: Snapshot) -> str:
    """Say why no holdout can be set apart: the rows cannot be read, or there are too few."""
    files = ", ".join(snapshot["files"])
    if snapshot["quarantined"] > snapshot["kept"]:
        return (
            f"{files}: {snapshot['quarantined']} of {snapshot['rows_in']} rows cannot be read "
            f"({snapshot['examples'][0]}; all of them: {snapshot['quarantine']}); "
            "expected source, label, mark, sentence, or a header: --columns text=NAME,label=NAME"
        )
    return (
        f"{files} has {snapshot['kept']} rows, too few to set a holdout apart; "
        "expected some hundreds, or a holdout of its own: --holdout FILE"
    )
