"""A folder laid out like genuine CoLA: CoLA itself where COLA_DIR names it, else some 240 sentences of our own grammar.

    book/ raw/ tokenized/                 one version of the corpus each
        in_domain_train.tsv out_of_domain_dev.tsv
    tokenized/in_domain_dev.tsv
    cola_public.zip                       that file once more

Our own lines have the blemishes of the genuine ones: backspaces (three lines), repeated sentences, sentences with both
labels, and holdout sentences that also train. `FIGURES` says how many, for either.
"""

import os
import zipfile
from pathlib import Path
from typing import NamedTuple

from tasks.data.cola_format import Row, format_row
from tasks.data.sample_corpus import HOLDOUT_FILE, TRAIN_FILE, generate
from tasks.data.sources import SECONDARY_FILE

COLA_DIR = os.environ.get("COLA_DIR", "")
VERSIONS = ("book", "raw", "tokenized")


class Figures(NamedTuple):
    """Counts of quality issues: of the training rows of the book, and of the holdout in each version."""

    control_lines: list[int]
    duplicates: int
    raw_duplicates: int
    conflicts: tuple[int, int]
    holdout: dict[str, int]
    train_digest: str | None


GENUINE = Figures(
    control_lines=[7130, 7131, 7132],
    duplicates=23,
    raw_duplicates=19,
    conflicts=(11, 15),
    holdout={"duplicate": 3, "conflict": 3, "leak": 12},
    train_digest="55d77501a11cb129c74190652661d846589319a2c8710033c5bb2d37f08e70cd",
)
OWN = Figures(
    control_lines=[181, 182, 183],
    duplicates=7,
    raw_duplicates=5,
    conflicts=(2, 3),
    holdout={"duplicate": 3, "conflict": 1, "leak": 4},
    train_digest=None,
)
FIGURES = GENUINE if COLA_DIR else OWN


def cola_folder(scratch: Path) -> Path:
    """Return the folder; our own lines are written to `scratch`."""
    if COLA_DIR:
        return Path(COLA_DIR)
    train, holdout = train_rows(), holdout_rows()
    raw = list(train)
    raw[183:185] = [row._replace(sentence=f"{row.sentence} ") for row in raw[183:185]]  # no longer exact repetitions
    for version, rows in zip(VERSIONS, (train, raw, _tokenized(train)), strict=True):
        _write(scratch / version / TRAIN_FILE, rows)
        _write(scratch / version / HOLDOUT_FILE, _tokenized(holdout) if version == "tokenized" else holdout)
    secondary = scratch / "tokenized" / SECONDARY_FILE
    _write(secondary, _tokenized(generate("train", 240, seed=1)[200:]))
    with zipfile.ZipFile(scratch / "cola_public.zip", "w") as archive:
        archive.write(secondary, f"cola_public/tokenized/{SECONDARY_FILE}")
    return scratch


def train_rows() -> list[Row]:
    """Return 194 rows: 180 clean ones, 3 with a backspace and 11 that repeat one of them, exactly or nearly."""
    rows = generate("train", 184, seed=1)[:183]
    rows[180:] = [row._replace(sentence=row.sentence.replace(" ", " \x08", 1)) for row in rows[180:]]
    repeated = rows[10:15]
    in_capitals = [row._replace(sentence=row.sentence.upper()) for row in rows[20:23]]
    relabelled = [row._replace(label=1 - row.label) for row in rows[30:32]]
    relabelled_in_capitals = rows[40]._replace(label=1 - rows[40].label, sentence=rows[40].sentence.upper())
    return [*rows, *repeated, *in_capitals, *relabelled, relabelled_in_capitals]


def holdout_rows() -> list[Row]:
    """Return 47 rows: 40 clean ones, 4 that also train, and 3 repeated ones, of which one has the other label."""
    rows = generate("holdout", 40, seed=1)
    return [*rows, *train_rows()[50:54], *rows[5:7], rows[8]._replace(label=1 - rows[8].label)]


def _tokenized(rows: list[Row]) -> list[Row]:
    return [row._replace(sentence=row.sentence.replace(".", " .")) for row in rows]


def _write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(format_row(row._replace(mark="" if row.label else "*")) for row in rows), encoding="utf-8")
